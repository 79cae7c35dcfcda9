import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { MirrorError } from '../../../src/lib/errors.ts'
import { startDetached } from '../../../src/daemon/spawn.ts'
import { isSameProcess } from '../../../src/lib/process.ts'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-detached-'))
})
afterEach(() => rm(folder, { recursive: true }))

const endpoints = { cache: ['http://127.0.0.1:1'], registry: [], admin: [], networks: {} }

async function start(script: string, { timeoutMs = 10_000, signal = new AbortController().signal } = {}) {
  const program = join(folder, 'program.mjs')
  await writeFile(program, script)
  const logFile = join(folder, 'log')
  return startDetached({ args: [program], env: process.env, logFile, timeoutMs, signal })
}

async function failure(started: Promise<unknown>): Promise<MirrorError> {
  const error = await started.then(
    () => undefined,
    (error: unknown) => error,
  )
  expect(error).toBeInstanceOf(MirrorError)
  return error as MirrorError
}

describe('a detached mirror', () => {
  test('has started when it reports that it is ready, and continues to run', async () => {
    const mirror = await start(
      `process.send({type: 'ready', endpoints: ${JSON.stringify(endpoints)}}); console.log('hello'); setTimeout(() => {}, 60_000)`,
    )
    try {
      expect(mirror.endpoints).toEqual(endpoints)
      expect(await isSameProcess(mirror.pid, undefined)).toBe(true)
      await expect.poll(() => readFile(join(folder, 'log'), 'utf8')).toBe('hello\n')
    } finally {
      process.kill(mirror.pid, 'SIGKILL')
    }
  })

  test('that reports why it cannot start fails with its message, next steps and exit code', async () => {
    const error = await failure(
      start(
        `process.send({type: 'failed', message: 'No.', hints: ['do this'], exit: 4}); setTimeout(() => {}, 60_000)`,
      ),
    )
    expect(error).toMatchObject({ message: 'No.', hints: ['do this'], exit: 4 })
  })

  test('that dies without a report fails with the end of its log', async () => {
    await writeFile(join(folder, 'log'), 'from an earlier run\n')
    const error = await failure(start(`console.error('something broke'); process.exit(7)`))
    expect(error.message).toContain('exit code 7')
    expect(error.hints).toContain('something broke')
    expect(error.hints.join()).not.toContain('earlier')
  })

  test('that never answers is killed', async () => {
    const script = `process.stdout.write(String(process.pid)); setTimeout(() => {}, 60_000)`
    const error = await failure(start(script, { timeoutMs: 500 }))
    expect(error.message).toContain('did not answer within 0.5 s')
    const pid = Number(await readFile(join(folder, 'log'), 'utf8'))
    await expect.poll(() => isSameProcess(pid, undefined)).toBe(false)
  })

  test('is killed when the user interrupts the start', async () => {
    const error = await failure(start(`setTimeout(() => {}, 60_000)`, { signal: AbortSignal.timeout(200) }))
    expect(error.exit).toBe(130)
  })
})
