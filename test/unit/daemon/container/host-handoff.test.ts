import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { openHostHandoff, removePredecessorExports } from '../../../../src/daemon/container/handoff.ts'
import { silentLogger } from '../../../../src/lib/logger.ts'

/** Writes exported files of each of these instances. */
async function createExports(...instances: string[]): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'mirror-outside-'))
  onTestFinished(() => rm(folder, { recursive: true }))
  for (const instance of instances) {
    await mkdir(join(folder, instance, 'docker'), { recursive: true })
    await writeFile(join(folder, instance, 'docker', 'config.json'), '{"auths": {}}')
  }
  return folder
}

test('the exports of a mirror are removed once its successor has its addresses, and not before', async () => {
  const folder = await createExports('old', 'new')
  const handoff = openHostHandoff({ MIRROR_INSTANCE: 'new' }, (instance) => join(folder, instance))!
  let reads = 0
  const watched = { ...handoff, readEndpoints: () => ((reads += 1), handoff.readEndpoints()) }
  onTestFinished(removePredecessorExports(watched, silentLogger, 1))
  await expect.poll(() => reads).toBeGreaterThan(3)
  expect((await readdir(folder)).toSorted()).toEqual(['new', 'old'])
  const endpoints = { cache: ['http://127.0.0.1:1'], registry: [], admin: [], networks: {} }
  await writeFile(join(folder, 'new', 'endpoints.json'), JSON.stringify(endpoints))
  await expect.poll(() => readdir(folder)).toEqual(['new'])
  expect(await handoff.readEndpoints()).toEqual(endpoints)
  const before = reads
  await new Promise((resolve) => setTimeout(resolve, 20))
  expect(reads, 'nothing is left to look for').toBe(before)
})

test('a mirror handoff of a container of mirror up has no exports', async () => {
  expect(openHostHandoff({})).toBeUndefined()
  const folder = await createExports()
  const handoff = openHostHandoff({ MIRROR_INSTANCE: 'new' }, (instance) => join(folder, 'nowhere', instance))!
  expect(await handoff.readEndpoints()).toBeUndefined()
  await handoff.removeOthers()
})
