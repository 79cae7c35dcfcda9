import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { ImageSavings } from '../../../src/stats/savings.ts'
import { temporaryFolder } from '../../support/store/store.ts'

describe('what images saved', () => {
  test('adds up by name, and survives a restart', async () => {
    const path = join(await temporaryFolder(), 'savings.json')
    const savings = new ImageSavings()
    savings.record('docker.io/library/alpine:3.20', 100)
    savings.record('docker.io/library/alpine:3.20', 50)
    savings.record('docker.io/library/redis:7', 0)
    expect(savings.get('docker.io/library/alpine:3.20')).toBe(150)
    expect(savings.get('docker.io/library/redis:7')).toBe(0)
    await savings.save(path)
    const again = new ImageSavings()
    await again.load(path)
    expect(again.get('docker.io/library/alpine:3.20')).toBe(150)
    // Nothing has come since.
    await writeFile(path, 'unchanged')
    await again.save(path)
    expect(await readFile(path, 'utf8')).toBe('unchanged')
  })

  test('forgets the images without a pull for the longest time', () => {
    const savings = new ImageSavings()
    savings.record('first', 1)
    savings.record('second', 1)
    savings.record('first', 1)
    for (let at = 0; at < 4999; at++) savings.record(`image-${at}`, 1)
    expect([savings.get('first'), savings.get('second')]).toEqual([2, 0])
  })

  test.each([
    'no JSON',
    '{"images":5}',
    '{"images":[5,["a"],["b","c"],["d",-1],["e",0.5],[7,7],{"f":1},["g",null]]}',
    '[]',
  ])('starts with none for the file %s', async (text) => {
    const path = join(await temporaryFolder(), 'savings.json')
    await writeFile(path, text)
    const savings = new ImageSavings()
    await savings.load(path)
    for (const name of ['a', 'b', 'd', 'e', 'f', 'g']) expect(savings.get(name)).toBe(0)
  })
})
