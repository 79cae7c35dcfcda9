import { join } from 'node:path'
import { isHealthy, openTunnel } from '../../admin/client.ts'
import type { ContainerRecord } from '../../admin/state.ts'
import { refuseForeignState } from '../../admin/sudo.ts'
import { openEngine } from '../../docker/dockerode-engine.ts'
import { type DockerEngine, type ContainerState, DockerError, type LogRequest } from '../../docker/engine.ts'
import { exitCode, type ExitCode, MirrorError } from '../../lib/errors.ts'
import { acquireFileLock } from '../../lib/file-lock.ts'
import { makeFolder } from '../../lib/fs.ts'
import type { CommandEnvironment } from '../../lib/process.ts'
import type { Clock } from '../../lib/time.ts'
import { getAdminPort, containerName, replacedName, getContainerOwner, getHostPort, volumeName } from './spec.ts'

/** Exceeds the 30 s that pulls in progress get. */
const stopSeconds = 40

/** Stops a container; its mirror drains first. */
export function stopContainer({ containers }: DockerEngine, id: string): Promise<void> {
  return wrapDockerError('The container cannot be stopped', containers.stop(id, stopSeconds))
}

/**
 * Starts a stopped container as the mirror again, under its name. Ignores the interruption of its successor. Throws a MirrorError
 * or a DockerError when it does not start.
 */
export async function restartContainer(engine: DockerEngine, id: string, clock: Clock): Promise<ContainerState> {
  const { containers } = engine
  const before = await containers.find(id)
  if (before === undefined) throw new MirrorError('The container does not exist any more.')
  if (before.name !== containerName) await containers.rename(id, containerName)
  await containers.start(id)
  const admin = getAdminPort(before)
  if (admin === undefined) return (await containers.find(id)) ?? before
  return awaitContainer(engine, { id, admin, clock, signal: new AbortController().signal })
}

/** Limits the time for the start of a mirror, ms. */
const maxStartMs = 60_000
const pollMs = 50
/** Polls less often through a remote engine, because each poll starts a program there. */
const remotePollMs = 500

interface AwaitedContainer {
  readonly id: string
  /** Holds the admin port in the container. */
  readonly admin: number
  readonly clock: Clock
  readonly signal: AbortSignal
}

/** Waits until the mirror in a container answers. Throws a MirrorError with that mirror's message when it does not start. */
export async function awaitContainer(engine: DockerEngine, awaited: AwaitedContainer): Promise<ContainerState> {
  const { id, admin, clock, signal } = awaited
  const end = clock.monotonic() + maxStartMs
  for (;;) {
    signal.throwIfAborted()
    const found = await engine.containers.find(id)
    if (found?.running && (await isAnswering(engine, found, admin))) return found
    // Counts a restart as an end: the engine restarts a mirror that has ended at once.
    const ended = found === undefined || found.restarting || !found.running
    if (ended) throw await readStartError(engine, id, describeEnd(found), found?.exitCode)
    if (clock.monotonic() > end)
      throw await readStartError(engine, id, describeSilence(engine, found, admin), undefined)
    await clock.sleep(engine.isRemote ? remotePollMs : pollMs, signal)
  }
}

async function isAnswering(engine: DockerEngine, found: ContainerState, admin: number): Promise<boolean> {
  const port = getHostPort(found, admin)
  if (!engine.isRemote) return port !== undefined && isHealthy(`http://127.0.0.1:${port}`)
  const connect = () => openTunnel(engine, found.id, admin)
  try {
    return await isHealthy(`http://127.0.0.1:${admin}`, { connect, timeoutMs: 10_000 })
  } catch (error) {
    // Waits for the next poll, because the container may have just ended.
    if (error instanceof MirrorError && error.cause instanceof DockerError) return false
    throw error
  }
}

function describeSilence({ isRemote }: DockerEngine, found: ContainerState, admin: number): string {
  const where = isRemote ? `its port ${admin}` : `127.0.0.1:${getHostPort(found, admin)} of this machine`
  return `it runs, but nothing answers at ${where}`
}

function describeEnd(found: ContainerState | undefined): string {
  return found === undefined ? 'the container does not exist' : `it ended with exit code ${found.exitCode}`
}

/** Reads from its log why the mirror in the container ended. */
async function readStartError(
  { containers }: DockerEngine,
  id: string,
  why: string,
  code: number | undefined,
): Promise<MirrorError> {
  const lines: string[] = []
  try {
    const request = { lines: 30, follow: false, signal: AbortSignal.timeout(5000) }
    for await (const line of containers.readLogs(id, request)) lines.push(line)
  } catch (error) {
    if (!(error instanceof DockerError)) throw error
  }
  const at = lines.findLastIndex((line) => line.startsWith('mirror: '))
  if (at === -1)
    return new MirrorError(`The mirror in the container could not be started: ${why}.`, { hints: lines.slice(-5) })
  const hints = lines.slice(at + 1).map((line) => line.trim())
  return new MirrorError(lines[at]!.slice('mirror: '.length), {
    exit: exitCodes.find((known) => known === code) ?? exitCode.failed,
    hints: hints.filter((line) => line !== '' && line !== 'Next:'),
  })
}

const exitCodes: readonly ExitCode[] = Object.values(exitCode).filter((code) => code !== 0)

/** Wraps a DockerError into a MirrorError: what failed, then the engine's message. */
export async function wrapDockerError<T>(what: string, call: Promise<T>, ...hints: string[]): Promise<T> {
  try {
    return await call
  } catch (error) {
    if (!(error instanceof DockerError)) throw error
    throw new MirrorError(`${what}: ${error.message}.`, { hints, cause: error })
  }
}

/** Returns the error of a cleanup after a failure that matters more; undefined when it succeeds. */
export async function catchDockerError(call: Promise<unknown>): Promise<MirrorError | DockerError | undefined> {
  try {
    await call
    return undefined
  } catch (error) {
    if (error instanceof MirrorError || error instanceof DockerError) return error
    throw error
  }
}

/**
 * Finds the container of this mirror; undefined when there is none. Throws a MirrorError when the name belongs to another
 * container. `name`: also of the container that is being replaced.
 */
export async function findOwnContainer(
  { containers }: Pick<DockerEngine, 'containers'>,
  owner: string,
  name: typeof containerName | typeof replacedName = containerName,
): Promise<ContainerState | undefined> {
  const found = await containers.find(name)
  if (found === undefined || getContainerOwner(found) === owner) return found
  const otherOwner = getContainerOwner(found)
  if (otherOwner === undefined)
    throw new MirrorError(`The container ${name} does not belong to mirror and was not changed.`, {
      hints: [`docker rename ${name} another-name`, `docker rm -f ${name}   (if it is not needed)`],
    })
  throw new MirrorError(`The container ${name} belongs to another mirror, with its state in ${otherOwner}.`, {
    hints: ['Stop it from there: MIRROR_HOME=… mirror down', 'Use that mirror: MIRROR_HOME=… mirror status'],
  })
}

/**
 * Stops and removes the container of the mirror with this state folder, and one that an interrupted `up` has set aside. Returns
 * false when there was none. Throws a MirrorError when the name belongs to another container.
 */
export async function removeOwnContainers(engine: DockerEngine, owner: string): Promise<boolean> {
  const found = await findOwnContainer(engine, owner)
  const replaced = await engine.containers.find(replacedName)
  const own = replaced !== undefined && getContainerOwner(replaced) === owner ? [found, replaced] : [found]
  for (const container of own) if (container !== undefined) await removeContainer(engine, container.id)
  return own.some((container) => container !== undefined)
}

/**
 * Removes the volume; returns false when there was none. Throws a MirrorError when it is in use, and for a volume that the mirror
 * with this state folder has not created.
 */
export async function removeVolume({ volumes }: DockerEngine, owner: string): Promise<boolean> {
  const found = await volumes.find(volumeName)
  if (found === undefined) return false
  const otherOwner = getContainerOwner(found)
  if (otherOwner !== owner)
    throw new MirrorError(
      otherOwner === undefined
        ? `The volume ${volumeName} was not created by mirror and was not removed.`
        : `The volume ${volumeName} belongs to another mirror, with its state in ${otherOwner}, and was not removed.`,
      { hints: [`docker volume rm ${volumeName}   (if it is not needed)`] },
    )
  try {
    await volumes.remove(volumeName)
    return true
  } catch (error) {
    if (!(error instanceof DockerError)) throw error
    throw new MirrorError(`The volume ${volumeName} cannot be removed: ${error.message}.`, {
      hints: [`docker ps -a --filter volume=${volumeName}`, `docker rm -f ${containerName}`],
      cause: error,
    })
  }
}

/** Reads the log of a mirror in a container line by line from the engine. */
export async function* readContainerLogs(
  surroundings: CommandEnvironment,
  { id, engine }: ContainerRecord,
  request: LogRequest,
): AsyncGenerator<string> {
  const { containers } = await openEngine(surroundings, engine)
  yield* containers.readLogs(id, request)
}

/** Reports whether the mirror that ran before was restored. */
interface RollbackResult {
  /** Explains why it could not be restored; undefined when it was. */
  readonly refusal: Error | undefined
  /** Holds the signal of the attempt. */
  readonly signal: AbortSignal
}

/** Adds the result of the rollback to the error of a replacement. Bugs stay as they are. */
export function addRollbackResult(error: unknown, { refusal, signal }: RollbackResult): unknown {
  const outcome =
    refusal === undefined
      ? 'The mirror that ran before runs again, as it was.'
      : `The mirror that ran before could not be restored: ${refusal.message}`
  const hints = refusal === undefined ? [] : ['mirror up   (again)']
  if (signal.aborted && error === signal.reason)
    return new MirrorError(`Interrupted. ${outcome}`, { exit: exitCode.interrupted, hints, cause: error })
  const failure = error instanceof DockerError ? new MirrorError(`The Docker engine refuses: ${error.message}.`) : error
  if (!(failure instanceof MirrorError)) return error
  const exit = signal.aborted ? exitCode.interrupted : failure.exit
  return new MirrorError(`${failure.message} ${outcome}`, { exit, hints: [...failure.hints, ...hints], cause: error })
}

/** Stops and removes a container; its volume stays. */
export async function removeContainer(engine: DockerEngine, id: string): Promise<void> {
  await stopContainer(engine, id)
  await wrapDockerError('The container cannot be removed', engine.containers.remove(id))
}

interface CommandLockOptions {
  readonly stateDir: string
  readonly clock: Clock
  /** Ends the waiting. */
  readonly signal: AbortSignal
  readonly notify: (text: string) => void
}

const lockPollMs = 100

/**
 * Runs work that changes which container is the mirror, one command of this user at a time: a container that another command has
 * set aside must not look like a leftover. A command that died does not block others.
 */
export async function withCommandLock<T>(options: CommandLockOptions, task: () => Promise<T>): Promise<T> {
  const { stateDir, clock, signal, notify } = options
  await makeFolder(stateDir)
  refuseForeignState(stateDir)
  let isReported = false
  for (;;) {
    const result = await acquireFileLock(join(stateDir, 'turn.json'), { clock, signal, isLocal: true })
    if ('lock' in result) {
      try {
        return await task()
      } finally {
        await result.lock.release()
      }
    }
    if (!isReported) notify(`Waiting for another mirror command (pid ${result.holder.pid}) to finish.`)
    isReported = true
    await clock.sleep(lockPollMs, signal)
  }
}

/** Runs work like `withCommandLock`, but skips it while another command has the lock. */
export async function withCommandLockIfFree(
  options: Pick<CommandLockOptions, 'stateDir' | 'clock'>,
  task: () => Promise<void>,
): Promise<void> {
  const whileBusy = new AbortController()
  try {
    await withCommandLock({ ...options, signal: whileBusy.signal, notify: () => whileBusy.abort() }, task)
  } catch (error) {
    if (!whileBusy.signal.aborted) throw error
  }
}

/** Explains why an unreachable engine is needed. */
export function explainRememberedEngine(error: unknown): unknown {
  if (!(error instanceof MirrorError)) return error
  const { message, exit, hints } = error
  return new MirrorError(`The mirror ran in a container the last time. ${message}`, { exit, hints, cause: error })
}
