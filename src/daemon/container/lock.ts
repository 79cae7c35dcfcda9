import { randomUUID } from 'node:crypto'
import { link, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { refuseOthersState } from '../../admin/sudo.ts'
import { errnoOf } from '../../lib/errors.ts'
import { makeFolder } from '../../lib/fs.ts'
import { parseObject } from '../../lib/json.ts'
import { isSameProcess, processIdentity } from '../../lib/process.ts'
import type { Clock } from '../../lib/time.ts'

interface CommandLockOptions {
  readonly stateDir: string
  readonly clock: Clock
  /** Ends the waiting. */
  readonly signal: AbortSignal
  readonly say: (text: string) => void
}

const lookMs = 100

/**
 * Does work that changes which container is the mirror, when no other command of this user is at it: what that one has put
 * aside must not be taken for something left over. A command that has died holds nobody up.
 */
export async function withCommandLock<T>(request: CommandLockOptions, work: () => Promise<T>): Promise<T> {
  const { stateDir, clock, signal, say } = request
  await makeFolder(stateDir)
  refuseOthersState(stateDir)
  const file = join(stateDir, 'turn.json')
  const self = { pid: process.pid, identity: await processIdentity(process.pid), nonce: randomUUID() }
  let hasSaid = false
  while (!(await publish(file, self))) {
    const holder = await read(file)
    if (holder === undefined) continue
    if (!(await isSameProcess(holder.pid, holder.identity))) {
      await clear(file, holder)
      continue
    }
    if (!hasSaid) say(`Waiting for another mirror command (pid ${holder.pid}) to finish.`)
    hasSaid = true
    await clock.sleep(lookMs, signal)
  }
  try {
    return await work()
  } finally {
    await clear(file, self)
  }
}

/** The same for work that is not worth waiting for: undone when another command is at it. */
export async function withCommandLockIfFree(
  request: Pick<CommandLockOptions, 'stateDir' | 'clock'>,
  work: () => Promise<void>,
): Promise<void> {
  const busy = new AbortController()
  try {
    await withCommandLock({ ...request, signal: busy.signal, say: () => busy.abort() }, work)
  } catch (error) {
    if (!busy.signal.aborted) throw error
  }
}

interface Holder {
  readonly pid: number
  readonly identity: string | undefined
  readonly nonce: string
}

/** Makes the file appear with its content, or not at all. */
async function publish(file: string, self: Holder): Promise<boolean> {
  const candidate = `${file}.${self.nonce}`
  await writeFile(candidate, JSON.stringify(self), { mode: 0o600 })
  try {
    await link(candidate, file)
    return true
  } catch (error) {
    if (errnoOf(error) === 'EEXIST') return false
    throw error
  } finally {
    await rm(candidate, { force: true })
  }
}

/** Removes the file of this holder. Moved away first: what was moved can be looked at, and given back when it was another's. */
async function clear(file: string, holder: Holder): Promise<void> {
  if ((await read(file))?.nonce !== holder.nonce) return
  const aside = `${file}.${randomUUID()}`
  try {
    await rename(file, aside)
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return
    throw error
  }
  const moved = await read(aside)
  if (moved !== undefined && moved.nonce !== holder.nonce) await publish(file, moved)
  await rm(aside, { force: true })
}

/** Undefined when nobody has it; one that cannot be read is of somebody who is gone. */
async function read(file: string): Promise<Holder | undefined> {
  try {
    const { pid, identity, nonce } = parseObject(await readFile(file, 'utf8')) ?? {}
    return { pid: Number(pid), identity: typeof identity === 'string' ? identity : undefined, nonce: String(nonce) }
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw error
  }
}
