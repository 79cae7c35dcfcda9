import { readdir, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { exitCode, MirrorError } from '../../../src/lib/errors.ts'
import { describeSelf } from '../../../src/lib/file-lock.ts'
import { type Clock, systemClock } from '../../../src/lib/time.ts'
import { makeStoreFolders, createStoreLayout, type StoreLayout } from '../../../src/store/layout.ts'
import { acquireStoreLock } from '../../../src/store/open-store.ts'
import { buildStoreProgram, startStoreProgram } from '../../support/store/child.ts'
import { temporaryFolder } from '../../support/store/store.ts'

const nonce = '0123456789abcdef0123456789abcdef'
const onLinux = process.platform === 'linux'

async function layoutWithLock(content?: string): Promise<StoreLayout> {
  const layout = createStoreLayout(await temporaryFolder())
  await makeStoreFolders(layout)
  if (content !== undefined) await writeFile(layout.lock, content)
  return layout
}

function deadHolder(nonce: string): string {
  return JSON.stringify({ pid: 2147483646, nonce })
}

async function lockFiles(layout: StoreLayout): Promise<string[]> {
  return (await readdir(layout.home)).filter((name) => name.startsWith('lock'))
}

describe('the lock of a store', () => {
  test('is refused to a second instance in this process, and free after release', async () => {
    const layout = await layoutWithLock()
    const lock = await acquireStoreLock(layout, { clock: systemClock })
    const error = await acquireStoreLock(layout, { clock: systemClock }).catch((error: unknown) => error)
    expect(error).toBeInstanceOf(MirrorError)
    expect(error).toMatchObject({ exit: exitCode.failed, message: expect.stringContaining(`${process.pid}`) })
    expect((error as MirrorError).hints.join('\n')).toContain('mirror down')
    await lock.release()
    expect(await lockFiles(layout)).toEqual([])
    await (await acquireStoreLock(layout, { clock: systemClock })).release()
  })

  test.each([
    ['is empty', ''],
    ['is half written', '{"pid":12'],
    ['is something else', '[]'],
    ['has an invalid number', `{"pid":"1","nonce":"${nonce}"}`],
    ['names no process', `{"pid":-1,"nonce":"${nonce}"}`],
    ['has a nonce with a path', '{"pid":1,"nonce":"../../../../etc/passwd"}'],
    ['is of a process that has ended', `{"pid":2147483646,"nonce":"${nonce}"}`],
  ])('is recovered when it %s', async (_, content) => {
    const layout = await layoutWithLock(content)
    const lock = await acquireStoreLock(layout, { clock: systemClock })
    expect(JSON.parse(await readFile(layout.lock, 'utf8'))).toMatchObject({ pid: process.pid })
    expect(await lockFiles(layout)).toEqual(['lock'])
    await lock.release()
  })

  test.runIf(onLinux)('is recovered when another process has its process number', async () => {
    const self = await describeSelf(nonce)
    const stale = await layoutWithLock(JSON.stringify({ ...self, processStart: '1' }))
    await (await acquireStoreLock(stale, { clock: systemClock })).release()
    const layout = await layoutWithLock(JSON.stringify(self))
    await expect(acquireStoreLock(layout, { clock: systemClock })).rejects.toThrow('in use')
  })

  test('is recovered after an earlier recovery was killed half way', async () => {
    const layout = await layoutWithLock(deadHolder(nonce))
    await writeFile(`${layout.lock}.${nonce}`, deadHolder(nonce.replace('0', 'f')))
    const lock = await acquireStoreLock(layout, { clock: systemClock })
    expect(await lockFiles(layout)).toEqual(['lock'])
    await lock.release()
  })

  test('goes to exactly one of many processes that find it stale at once', async () => {
    for (const content of [undefined, '', `{"pid":2147483646,"nonce":"${nonce}"}`]) {
      const layout = await layoutWithLock(content)
      const all = await Promise.allSettled(
        Array.from({ length: 12 }, () => acquireStoreLock(layout, { clock: systemClock })),
      )
      const won = all.filter((result) => result.status === 'fulfilled')
      expect(won).toHaveLength(1)
      for (const result of all) if (result.status === 'rejected') expect(result.reason).toBeInstanceOf(MirrorError)
      await won[0]!.value.release()
    }
  })

  test('is not recovered while another process recovers it, which then holds it', async () => {
    const layout = await layoutWithLock(deadHolder(nonce))
    const other = JSON.stringify(await describeSelf('f'.repeat(32)))
    await writeFile(`${layout.lock}.${nonce}`, other)
    const acquiring = acquireStoreLock(layout, { clock: systemClock }).catch((error: unknown) => error)
    await setTimeout(50)
    expect(await readFile(layout.lock, 'utf8')).toBe(deadHolder(nonce))
    await writeFile(layout.lock, other)
    await rm(`${layout.lock}.${nonce}`)
    expect(await acquiring).toBeInstanceOf(MirrorError)
    expect(await readFile(layout.lock, 'utf8')).toBe(other)
  })

  test('is not removed by release when another process holds it', async () => {
    const layout = await layoutWithLock()
    const lock = await acquireStoreLock(layout, { clock: systemClock })
    await writeFile(layout.lock, `{"pid":1,"nonce":"${nonce}"}`)
    await lock.release()
    expect(await lockFiles(layout)).toEqual(['lock'])
  })
})

describe('the lock of a process in another namespace', () => {
  /** Returns a clock whose time passes as soon as a caller waits; `meanwhile` runs then. */
  function hurriedClock(meanwhile: () => Promise<void> = () => Promise.resolve()): Clock {
    let now = 0
    return {
      ...systemClock,
      monotonic: () => now,
      async sleep(ms) {
        now += ms
        await meanwhile()
      },
    }
  }
  const foreign = async (difference: object) =>
    JSON.stringify({ ...(await describeSelf(nonce)), pid: 1, ...difference })
  const elsewhere: [string, object][] = [
    ['in another container', { pidNamespace: 'pid:[1]' }],
    ['on another machine, or of a boot that is over,', { bootId: 'another boot' }],
  ]

  test.runIf(onLinux).each(elsewhere)('%s is respected while the holder touches it', async (_, difference) => {
    const layout = await layoutWithLock(await foreign({ ...difference, instance: 'theirs' }))
    let beats = 0
    const beat = () => utimes(layout.lock, (beats += 1), beats)
    const acquiring = acquireStoreLock(layout, { clock: hurriedClock(beat), instance: 'ours' })
    await expect(acquiring).rejects.toThrow('in use by a mirror in a container')
    expect(beats).toBe(1)
  })

  test.runIf(onLinux).each(elsewhere)(
    '%s is recovered when the holder has not touched it for a while',
    async (_, difference) => {
      const layout = await layoutWithLock(await foreign(difference))
      await (await acquireStoreLock(layout, { clock: hurriedClock() })).release()
      expect(await lockFiles(layout)).toEqual([])
    },
  )

  test.runIf(onLinux)('is respected when this process was paused while it polled', async () => {
    const layout = await layoutWithLock(await foreign({ pidNamespace: 'pid:[1]' }))
    let now = 0
    const clock: Clock = {
      ...systemClock,
      monotonic: () => now,
      async sleep() {
        now += 3_600_000
        // Simulates a holder that resumes later than this process, and touches its lock again.
        if (now > 7_200_000) await utimes(layout.lock, 1, 1)
      },
    }
    await expect(acquireStoreLock(layout, { clock })).rejects.toThrow('in use')
  })

  test.runIf(onLinux)('of this container before its restart is recovered at once', async () => {
    const layout = await layoutWithLock(await foreign({ pidNamespace: 'pid:[1]', instance: 'ours' }))
    const clock = { ...systemClock, monotonic: () => expect.unreachable() }
    await (await acquireStoreLock(layout, { clock, instance: 'ours' })).release()
  })

  test('is touched by its holder, which learns when another process takes it', async () => {
    const layout = await layoutWithLock()
    let lost = 0
    const lock = await acquireStoreLock(layout, { clock: systemClock, onLost: () => (lost += 1) })
    const touched = async () => (await stat(layout.lock)).mtimeMs
    const before = await touched()
    await expect.poll(touched).toBeGreaterThan(before)
    await rm(layout.lock)
    await expect.poll(() => lockFiles(layout)).toEqual(['lock'])
    expect(lost).toBe(0)

    const theirs = await foreign({ nonce: 'f'.repeat(32) })
    await writeFile(layout.lock, theirs)
    await expect.poll(() => lost).toBe(1)
    await lock.release()
    expect(await readFile(layout.lock, 'utf8')).toBe(theirs)
  })
})

describe('processes on one store', () => {
  test('one process at a time opens a store; the next one after kill -9 or a stop of the first', async () => {
    const folder = await temporaryFolder()
    const program = await buildStoreProgram(join(folder, 'program'))
    const root = join(folder, 'cache')

    const first = await startStoreProgram(program, root)
    expect(first.answer).toBe('open')
    expect((await startStoreProgram(program, root)).answer).toBe('refused')
    await first.kill()

    // Starts four processes that all find the lock of the killed one.
    const racers = await Promise.all(Array.from({ length: 4 }, () => startStoreProgram(program, root)))
    expect(racers.map(({ answer }) => String(answer)).toSorted()).toEqual(['open', 'refused', 'refused', 'refused'])
    await racers.find(({ answer }) => answer === 'open')!.stop()
    expect(await lockFiles(createStoreLayout(root))).toEqual([])
  })
})
