import { randomBytes } from 'node:crypto'
import { link, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { basename, dirname } from 'node:path'
import type { Clock } from '../lib/clock.ts'
import { errnoOf, MirrorError } from '../lib/errors.ts'
import { describeSelf, isHolderAlive, parseLockHolder, type LockHolder } from './lock-holder.ts'
import type { StoreLayout } from './layout.ts'

/** The right to write to a store; one process has it at a time. */
export interface StoreLock {
  /** Gives it back; somebody else's lock is left alone. */
  release(): Promise<void>
}

const retryMs = 20
const attempts = 150

/** Takes the lock of a store. A stale one is replaced; a live holder is a `MirrorError`. */
export async function acquireStoreLock(layout: StoreLayout, clock: Clock): Promise<StoreLock> {
  const self = await describeSelf(randomBytes(16).toString('hex'))
  const holder = await take(layout.lock, self, clock)
  if (holder) throw heldBy(layout, holder)
  await sweepGuards(layout)
  return {
    async release() {
      if ((await readHolder(layout.lock))?.nonce === self.nonce) await rm(layout.lock, { force: true })
    },
  }
}

/**
 * Undefined once the file is ours, or its live holder. A stale file may be removed by one process only: the one that
 * holds the guard named after that very holder. So nobody can remove a lock that was taken a moment ago in the belief
 * that it is still the stale one. A guard is a lock like any other, and a stale guard is replaced in the same way.
 */
async function take(path: string, self: LockHolder, clock: Clock): Promise<LockHolder | undefined> {
  let lastSeen: LockHolder | undefined
  for (let attempt = 0; attempt < attempts; attempt++) {
    if (attempt > 0) await clock.sleep(retryMs)
    if (await publish(path, self)) return undefined
    const holder = await readHolder(path)
    if (holder === undefined) continue
    lastSeen = holder
    // Without hard links a file that seems damaged may be one that is being written.
    if (holder === nobody && attempt === 0) continue
    if (holder !== nobody && (await isHolderAlive(holder))) return holder
    const guard = `${path}.${holder.nonce}`
    if (await take(guard, self, clock)) continue
    if ((await readHolder(path))?.nonce === holder.nonce) await rm(path, { force: true })
    await rm(guard, { force: true })
  }
  return lastSeen ?? self
}

/** Makes the file appear with its content, or not at all. */
async function publish(path: string, self: LockHolder): Promise<boolean> {
  const candidate = `${path}.${self.nonce}.${randomBytes(4).toString('hex')}`
  const content = JSON.stringify(self)
  try {
    await writeFile(candidate, content, { flag: 'wx', mode: 0o600 })
    await link(candidate, path)
    return true
  } catch (error) {
    const code = errnoOf(error)
    // ENOENT: the holder of the lock has swept our candidate away.
    if (code === 'EEXIST' || code === 'ENOENT') return false
    if (code === 'EPERM' || code === 'ENOTSUP' || code === 'ENOSYS') return publishWithoutLinks(path, content)
    throw error
  } finally {
    await rm(candidate, { force: true })
  }
}

async function publishWithoutLinks(path: string, content: string): Promise<boolean> {
  try {
    await writeFile(path, content, { flag: 'wx', mode: 0o600 })
    return true
  } catch (error) {
    if (errnoOf(error) === 'EEXIST') return false
    throw error
  }
}

/** Who holds the file; undefined when there is none. A damaged file has nobody as its holder. */
async function readHolder(path: string): Promise<LockHolder | undefined> {
  try {
    return parseLockHolder(await readFile(path, 'utf8')) ?? nobody
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw error
  }
}

const nobody: LockHolder = { pid: 0, bootId: undefined, processStart: undefined, nonce: 'damaged' }

/** Guards and candidates of processes that died. Those of live ones are of no use to them while the lock is held. */
async function sweepGuards(layout: StoreLayout): Promise<void> {
  const prefix = `${basename(layout.lock)}.`
  const folder = dirname(layout.lock)
  for (const name of await readdir(folder))
    if (name.startsWith(prefix)) await rm(layout.entry(folder, name), { force: true })
}

function heldBy(layout: StoreLayout, holder: LockHolder): MirrorError {
  const who = holder.pid === process.pid ? `this process (${holder.pid})` : `process ${holder.pid}`
  return new MirrorError(`The store at ${layout.root} is in use by ${who}; only one process can write to it.`, {
    hints: [
      'See what runs: mirror status',
      'Stop it: mirror down',
      'Or give this one a store of its own, by MIRROR_HOME or --data',
      `If process ${holder.pid} is no mirror, remove ${layout.lock}`,
    ],
  })
}
