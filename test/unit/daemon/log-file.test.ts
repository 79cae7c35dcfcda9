import {
  closeSync,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import koffi from 'koffi'
import { describe, expect, onTestFinished, test } from 'vitest'
import { createLogWriter, LogFile } from '../../../src/daemon/logging.ts'
import { readLogs } from '../../../src/daemon/read-logs.ts'
import { getErrno } from '../../../src/lib/errors.ts'
import { systemClock } from '../../../src/lib/time.ts'
import { loadLibc } from '../../../src/server/send/sendfile.ts'
import { temporaryFolder } from '../../support/store/store.ts'

const kernel = await loadLibc(process)

const limitOpenFiles = process.platform === 'linux' ? openFilesLimiter() : undefined

/** Returns a function that sets this process's soft limit on open files, which Node cannot do. */
function openFilesLimiter(): (limit: bigint) => void {
  const library = koffi.load(null)
  const prlimit = library.func('int prlimit(int pid, int resource, const void *wanted, void *before)')
  const openFiles = 7
  return (limit) => {
    const values = new BigUint64Array(2)
    if (prlimit(0, openFiles, null, values) !== 0) throw new Error('the limit cannot be read')
    if (prlimit(0, openFiles, new BigUint64Array([limit, values[1]!]), null) !== 0)
      throw new Error('the limit cannot be set')
  }
}

/** Runs the work while all descriptors that the process may have are in use. */
function withoutDescriptors(work: () => void): void {
  const fillers = [openSync('/dev/null', 'r')]
  const usual = softLimit()
  limitOpenFiles!(BigInt(Math.max(...readdirSync('/proc/self/fd').map(Number)) + 1))
  try {
    try {
      for (;;) fillers.push(openSync('/dev/null', 'r'))
    } catch (error) {
      expect(getErrno(error)).toBe('EMFILE')
    }
    work()
    expect(() => openSync('/dev/null', 'r')).toThrow('EMFILE')
  } finally {
    for (const descriptor of fillers) closeSync(descriptor)
    limitOpenFiles!(usual)
  }
}

function softLimit(): bigint {
  return BigInt(/^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))![1]!)
}

/** Opens a log whose file is also open at a shared descriptor, as stderr is. */
async function openLog(maxBytes: number | undefined, redirect: ((from: number, to: number) => boolean) | undefined) {
  const path = join(await temporaryFolder(), 'mirror.log')
  const shared = openSync(path, 'a', 0o600)
  const file = new LogFile(path, { ...(maxBytes !== undefined && { maxBytes }), redirect, shared })
  onTestFinished(() => {
    file.close()
    closeSync(shared)
  })
  const write = (text: string) => void file.write(Buffer.from(text), 0)
  const sizes = () => [path, `${path}.1`].map((name) => statSync(name, { throwIfNoEntry: false })?.size ?? 0)
  return { path, shared, file, write, sizes, text: (name = path) => readFileSync(name, 'utf8') }
}

describe.each([
  ['put aside by its name', kernel?.duplicate, kernel === undefined],
  ['copied and emptied', undefined, false],
] as const)('a log that is %s when it is full', (_, redirect, isMissing) => {
  test.skipIf(isMissing)('keeps the newest lines, and stderr goes where the log goes', async () => {
    const { path, shared, write, text } = await openLog(20, redirect)
    for (let line = 0; line < 10; line += 1) write(`line ${line}...\n`)
    expect(text()).toBe('line 8...\nline 9...\n')
    expect(text(`${path}.1`)).toBe('line 6...\nline 7...\n')
    writeSync(shared, 'a crash\n')
    expect(text()).toBe('line 8...\nline 9...\na crash\n')
  })

  test.skipIf(isMissing)('never exceeds its bound while 200 MB are written as fast as they can be', async () => {
    const most = 1024 * 1024
    const { path, file, sizes, text } = await openLog(most, redirect)
    const writer = createLogWriter(file)
    const line = (number: number) => `${JSON.stringify({ number, text: 'x'.repeat(500) })}\n`
    const count = Math.ceil(200e6 / line(100_000).length)
    let largest = 0
    for (let number = 0; number < count; number += 1) {
      writer.write(line(number))
      if (number % 997 !== 0) continue
      await new Promise((resolve) => setImmediate(resolve))
      largest = Math.max(largest, ...sizes())
    }
    await new Promise((resolve) => setImmediate(resolve))
    largest = Math.max(largest, ...sizes())
    expect(largest).toBeLessThanOrEqual(most)
    const numbers = [`${path}.1`, path].flatMap((name) =>
      text(name)
        .trim()
        .split('\n')
        .map((entry) => (JSON.parse(entry) as { number: number }).number),
    )
    expect(numbers.at(-1)).toBe(count - 1)
    expect(numbers).toStrictEqual(numbers.map((_number, at) => count - numbers.length + at))
  })

  test.skipIf(isMissing)('is followed without a line that is lost or comes twice', async () => {
    const { path, write } = await openLog(2000, redirect)
    write('begin\n')
    const seen: string[] = []
    const stop = new AbortController()
    const clock = { ...systemClock, sleep: (_ms: number, signal?: AbortSignal) => systemClock.sleep(2, signal) }
    const reading = readLogs({
      logFile: path,
      lines: 9,
      follow: true,
      signal: stop.signal,
      clock,
      write: (line) => seen.push(line),
    })
    await expect.poll(() => seen).toStrictEqual(['begin'])
    const expected = ['begin']
    for (let number = 0; number < 1000; number += 1) {
      expected.push(`line ${number}`)
      write(`line ${number}\n`)
      // Waits for the reader, so that it is never more than one file behind.
      if (number % 50 === 49) await expect.poll(() => seen.length, { interval: 1 }).toBe(expected.length)
    }
    stop.abort()
    await reading
    expect(seen).toStrictEqual(expected)
  })
})

test.skipIf(limitOpenFiles === undefined).each([
  ['put aside by its name', kernel?.duplicate, kernel === undefined],
  ['copied and emptied', undefined, false],
] as const)('a log that is %s loses nothing when no descriptor is left', async (_, redirect, isMissing) => {
  if (isMissing) return
  const { write, path } = await openLog(20, redirect)
  withoutDescriptors(() => {
    for (let line = 0; line < 10; line += 1) write(`line ${line}...\n`)
  })
  expect(readFileSync(path, 'utf8')).toBe('line 8...\nline 9...\n')
  expect(readFileSync(`${path}.1`, 'utf8')).toBe('line 6...\nline 7...\n')
})

test('a log and its rotated file hold at most 32 MiB by default', async () => {
  const { write, sizes } = await openLog(undefined, kernel?.duplicate)
  const line = `${'x'.repeat(64 * 1024 - 1)}\n`
  let most = 0
  for (let at = 0; at < 640; at += 1) {
    write(line)
    most = Math.max(most, sizes()[0]! + sizes()[1]!)
  }
  expect(most).toBe(32 * 1024 * 1024)
})

test('a removed log file is created again', async () => {
  const { path, write, text } = await openLog(1000, undefined)
  write('a\n')
  rmSync(path)
  write('b\n')
  expect(text()).toBe('b\n')
})

test.each([
  ['copied', undefined, false],
  ['put aside', kernel?.duplicate, kernel === undefined],
] as const)(
  'a log that was replaced by the file of another program continues there (%s when full)',
  async (...given) => {
    const [, redirect, isMissing] = given
    if (isMissing) return
    const { path, shared, write, text, sizes } = await openLog(20, redirect)
    write('before\n')
    rmSync(path)
    writeFileSync(path, 'theirs\n')
    write('a\n')
    write('b\n')
    expect(text()).toBe('theirs\na\nb\n')
    if (redirect) expect(fstatSync(shared).ino).toBe(statSync(path).ino)
    // Checks that bytes of other writers count too.
    rmSync(path)
    writeFileSync(path, 'x'.repeat(19))
    write('line\n')
    expect(text()).toBe('line\n')
    expect(sizes()).toEqual([5, 19])
  },
)

test('a log that was replaced by a folder keeps its limit and leaves the folder alone', async () => {
  const { path, file, write } = await openLog(20, kernel?.duplicate)
  rmSync(path)
  mkdirSync(path)
  for (let line = 0; line < 10; line += 1) write('a line\n')
  expect(statSync(path).isDirectory()).toBe(true)
  expect(statSync(`${path}.1`, { throwIfNoEntry: false })).toBeUndefined()
  rmSync(path, { recursive: true })
  expect(file.write(Buffer.from('again\n'), 0)).toBe(6)
  expect(readFileSync(path, 'utf8')).toBe('again\n')
})

test('a log in a folder that takes no new file keeps its limit and continues', async () => {
  const { path, write, text, sizes } = await openLog(10, () => {
    throw new Error('not reached')
  })
  // Makes the rotation fail, because a rename cannot replace a folder by a file.
  mkdirSync(`${path}.1`)
  for (const line of ['one....\n', 'two....\n', 'three..\n']) write(line)
  expect(text()).toBe('three..\n')
  expect(sizes()[0]).toBe(8)
})

test('output of other code to stderr counts towards the limit of the log', async () => {
  const { path, shared, write, text } = await openLog(20, kernel?.duplicate)
  writeSync(shared, 'x'.repeat(15))
  write('line one\n')
  expect(text()).toBe('line one\n')
  expect(text(`${path}.1`)).toBe('x'.repeat(15))
})

test.skipIf(kernel === undefined)('the descriptors of a log stay as many as they are', async () => {
  const { write, shared, path } = await openLog(20, kernel?.duplicate)
  const before = readdirSync('/proc/self/fd').length
  for (let line = 0; line < 5000; line += 1) write('a long line\n')
  expect(readdirSync('/proc/self/fd')).toHaveLength(before)
  expect(fstatSync(shared).ino).toBe(statSync(path).ino)
  expect(statSync(path).mode & 0o777).toBe(0o600)
})
