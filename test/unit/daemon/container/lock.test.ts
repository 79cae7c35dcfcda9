import { randomUUID } from 'node:crypto'
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { withCommandLock, withCommandLockIfFree } from '../../../../src/daemon/container/stop.ts'
import { getProcessIdentity } from '../../../../src/lib/process.ts'
import { systemClock } from '../../../../src/lib/time.ts'

let stateDir: string
beforeEach(async () => {
  stateDir = await mkdtemp(join(tmpdir(), 'mirror-turn-'))
})
afterEach(() => rm(stateDir, { recursive: true }))

const request = (messages: string[] = [], signal = new AbortController().signal) => ({
  stateDir,
  clock: systemClock,
  signal,
  notify: (text: string) => messages.push(text),
})

test('only one command at a time changes which container is the mirror', async () => {
  const messages: string[] = []
  let working = 0
  let maxRunning = 0
  const work = async () => {
    maxRunning = Math.max(maxRunning, (working += 1))
    await systemClock.sleep(5)
    working -= 1
  }
  await Promise.all(Array.from({ length: 4 }, () => withCommandLock(request(messages), work)))
  expect(maxRunning).toBe(1)
  expect(messages[0]).toContain(`pid ${process.pid}`)
  expect(await readdir(stateDir)).toEqual([])
})

test('a command that failed or died does not block others', async () => {
  const failing = withCommandLock(request(), () => Promise.reject(new Error('no')))
  await expect(failing).rejects.toThrow('no')
  const former = { pid: process.pid, identity: 'an-earlier-boot:1', nonce: 'n' }
  const dead = { pid: 2147483646, nonce: 'f'.repeat(32) }
  for (const leftover of [JSON.stringify(former), JSON.stringify(dead), 'garbage', '']) {
    await writeFile(join(stateDir, 'turn.json'), leftover)
    expect(await withCommandLock(request(), () => Promise.resolve('done'))).toBe('done')
    expect(await readdir(stateDir)).toEqual([])
  }
})

test('a lock that a running command of an earlier version wrote is respected', async () => {
  const identity = await getProcessIdentity(process.pid)
  const holder = { pid: process.pid, identity, nonce: randomUUID() }
  await writeFile(join(stateDir, 'turn.json'), JSON.stringify(holder))
  let isRun = false
  await withCommandLockIfFree({ stateDir, clock: systemClock }, async () => void (isRun = true))
  expect(isRun).toBe(false)
  expect(await readdir(stateDir)).toEqual(['turn.json'])
})

test('a lock of a command before a reboot does not delay the next command', async () => {
  const holder = { pid: process.pid, bootId: 'an-earlier-boot', processStart: '1', nonce: 'e'.repeat(32) }
  await writeFile(join(stateDir, 'turn.json'), JSON.stringify(holder))
  let waitedMs = 0
  const clock = { ...systemClock, sleep: async (ms: number) => void (waitedMs += ms) }
  expect(await withCommandLock({ ...request(), clock }, () => Promise.resolve('done'))).toBe('done')
  expect(waitedMs).toBeLessThan(200)
})

test('waiting for the command lock ends when the signal aborts', async () => {
  const interrupt = new AbortController()
  await withCommandLock(request(), async () => {
    const waiting = withCommandLock(request([], interrupt.signal), () => Promise.resolve())
    interrupt.abort()
    await expect(waiting).rejects.toBe(interrupt.signal.reason)
  })
  expect(await readdir(stateDir)).toEqual([])
})

test('withCommandLockIfFree skips the work while another command has the lock', async () => {
  const done: string[] = []
  const work = (what: string) => async () => void done.push(what)
  await withCommandLock(request(), () => withCommandLockIfFree(request(), work('meanwhile')))
  await withCommandLockIfFree(request(), work('afterwards'))
  await expect(withCommandLockIfFree(request(), () => Promise.reject(new Error('no')))).rejects.toThrow('no')
  expect(done).toEqual(['afterwards'])
  expect(await readdir(stateDir)).toEqual([])
})
