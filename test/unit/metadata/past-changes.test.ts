import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { PastChanges, toTagKey } from '../../../src/metadata/past-changes.ts'
import { digestFor } from '../../support/metadata.ts'
import { temporaryFolder } from '../../support/store/store.ts'

const redis = { host: 'docker.io', name: 'library/redis' }

test('past changes survive a restart', async () => {
  const path = join(await temporaryFolder(), 'past-changes.json')
  const before = new PastChanges(() => 7)
  before.recordRemoval(digestFor('a'), 'evicted')
  before.recordRemoval(toTagKey(redis, '7'), 'removed')
  before.recordTag(toTagKey(redis, '8'), digestFor('b'))
  before.recordTag(toTagKey(redis, '9'), undefined)
  await before.save(path)
  const after = new PastChanges(() => 8)
  await after.load(path)
  expect(after.findRemoval(digestFor('a'))).toEqual({ why: 'evicted', at: 7 })
  expect(after.findRemoval(toTagKey(redis, '7'))).toEqual({ why: 'removed', at: 7 })
  expect(after.findTagChange(toTagKey(redis, '8'))).toEqual({ at: 7, from: digestFor('b') })
  expect(after.findTagChange(toTagKey(redis, '9'))).toEqual({ at: 7, from: undefined })
})

test('past changes are bounded, and the oldest are forgotten first', () => {
  const changes = new PastChanges(() => 1)
  for (let at = 0; at <= 5000; at++) changes.recordRemoval(digestFor(String(at)), 'evicted')
  expect(changes.findRemoval(digestFor('0'))).toBeUndefined()
  expect(changes.findRemoval(digestFor('1'))).toBeDefined()
  changes.recordRemoval(digestFor('1'), 'damaged')
  changes.recordRemoval(digestFor('new'), 'removed')
  expect(changes.findRemoval(digestFor('1'))).toEqual({ why: 'damaged', at: 1 })
  expect(changes.findRemoval(digestFor('2'))).toBeUndefined()
})

test('past changes are written only when there are any', async () => {
  const path = join(await temporaryFolder(), 'past-changes.json')
  const changes = new PastChanges(() => 1)
  await changes.save(path)
  await expect(readFile(path)).rejects.toMatchObject({ code: 'ENOENT' })
  changes.recordRemoval(digestFor('a'), 'evicted')
  changes.forgetRemoval(digestFor('a'))
  await changes.save(path)
  expect(await readFile(path, 'utf8')).toBe('{"removals":{},"tags":{}}')
})

test.each([
  '',
  'null',
  '{"removals":[1],"tags":"x"}',
  '{"removals":{"a":{"why":"magic","at":1},"b":{"why":"evicted","at":"1"}},"tags":{"c":{"at":-1}}}',
])('a damaged file of past changes counts as empty: %s', async (text) => {
  const path = join(await temporaryFolder(), 'past-changes.json')
  await writeFile(path, text, { mode: 0o600 })
  const changes = new PastChanges(() => 1)
  await changes.load(path)
  for (const key of ['a', 'b', 'c']) {
    expect(changes.findRemoval(digestFor(key))).toBeUndefined()
    expect(changes.findTagChange(toTagKey(redis, key))).toBeUndefined()
  }
})
