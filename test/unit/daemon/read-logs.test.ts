import { appendFile, copyFile, mkdtemp, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { readLogs } from '../../../src/daemon/read-logs.ts'
import { systemClock } from '../../../src/lib/time.ts'

let folder: string
let logFile: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-logs-'))
  logFile = join(folder, 'log')
})
afterEach(() => rm(folder, { recursive: true }))

// Polls often, so that the tests are fast.
const clock = { ...systemClock, sleep: (_ms: number, signal?: AbortSignal) => systemClock.sleep(5, signal) }

async function read(lines: number): Promise<string[]> {
  const seen: string[] = []
  const signal = new AbortController().signal
  await readLogs({ logFile, lines, follow: false, signal, clock, write: (line) => seen.push(line) })
  return seen
}

describe('the log', () => {
  test.each([
    [0, []],
    [1, ['c']],
    [2, ['b', 'c']],
    [9, ['a', 'b', 'c']],
  ])('ends with its last %d lines', async (lines, expected) => {
    await writeFile(logFile, 'a\nb\nc\n')
    expect(await read(lines)).toEqual(expected)
  })

  test('may end in the middle of a line, and be longer than a block', async () => {
    const long = 'é'.repeat(100_000)
    await writeFile(logFile, `first\n${long}\n${long}x`)
    expect(await read(1)).toEqual([long, `${long}x`])
    expect(await read(9)).toEqual(['first', long, `${long}x`])
  })

  test('reads no line from an empty file, and throws ENOENT for a missing one', async () => {
    await expect(read(1)).rejects.toMatchObject({ code: 'ENOENT' })
    await writeFile(logFile, '')
    expect(await read(1)).toEqual([])
  })

  test('reads on in the rotated log when it needs more lines', async () => {
    await writeFile(`${logFile}.1`, 'a\nb\nc\n')
    await writeFile(logFile, 'd\n')
    expect(await read(1)).toEqual(['d'])
    expect(await read(3)).toEqual(['b', 'c', 'd'])
    expect(await read(9)).toEqual(['a', 'b', 'c', 'd'])
    await writeFile(logFile, '')
    expect(await read(2)).toEqual(['b', 'c'])
  })

  test('that is followed loses no line in a rotation', async () => {
    await writeFile(logFile, 'a\nb\n')
    const seen: string[] = []
    const stop = new AbortController()
    // Rotates the log, with a line that is not read yet, while the reader waits.
    let isPutAside = false
    const waiting = {
      ...systemClock,
      async sleep() {
        if (isPutAside) return systemClock.sleep(5)
        isPutAside = true
        await appendFile(logFile, 'c\n')
        await copyFile(logFile, `${logFile}.1`)
        await truncate(logFile)
      },
    }
    const write = (line: string) => void seen.push(line)
    const reading = readLogs({ logFile, lines: 9, follow: true, signal: stop.signal, clock: waiting, write })
    await expect.poll(() => seen).toEqual(['a', 'b', 'c'])
    await appendFile(logFile, 'd\n')
    await expect.poll(() => seen).toEqual(['a', 'b', 'c', 'd'])
    stop.abort()
    await reading
  })

  test('is followed through rotations until the signal aborts', async () => {
    await writeFile(logFile, 'a\nb\n')
    const seen: string[] = []
    const stop = new AbortController()
    const reading = readLogs({
      logFile,
      lines: 1,
      follow: true,
      signal: stop.signal,
      clock,
      write: (line) => seen.push(line),
    })
    await expect.poll(() => seen).toEqual(['b'])
    await appendFile(logFile, 'c\npart')
    await expect.poll(() => seen).toEqual(['b', 'c'])
    await appendFile(logFile, 'ial\n')
    await expect.poll(() => seen).toEqual(['b', 'c', 'partial'])
    await truncate(logFile)
    await systemClock.sleep(50)
    await appendFile(logFile, 'new\n')
    await expect.poll(() => seen).toEqual(['b', 'c', 'partial', 'new'])
    stop.abort()
    await reading
  })
})
