import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { createAdminClient } from '../admin/client.ts'
import {
  type ContainerRecord,
  findRunning,
  type MirrorState,
  type ProcessMirrorState,
  readState,
  removeState,
  readVolumeMarkerEngine,
  type ServedConfig,
} from '../admin/state.ts'
import { listSettingVariables } from '../config/load.ts'
import type { MirrorPaths } from '../config/paths.ts'
import { openEngine } from '../docker/dockerode-engine.ts'
import type { DockerEngine } from '../docker/engine.ts'
import { getErrno, MirrorError } from '../lib/errors.ts'
import { writeFileAtomic } from '../lib/fs.ts'
import { isSameProcess, type CommandEnvironment } from '../lib/process.ts'
import type { Clock } from '../lib/time.ts'
import { recordRestored } from './container/credentials.ts'
import { containerName, replacedName, getContainerOwner } from './container/spec.ts'
import {
  wrapDockerError,
  catchDockerError,
  removeContainer,
  restartContainer,
  stopContainer,
  addRollbackResult,
  explainRememberedEngine,
} from './container/stop.ts'
import { startProcess } from './spawn.ts'

interface StopRequest {
  paths: MirrorPaths
  clock: Clock
  surroundings: CommandEnvironment
}

export interface StoppedMirror {
  /** Is undefined for one in a container. */
  pid?: number
  /** Names its container. */
  container?: string
  /** Names the volume with the container's data; undefined for a folder, or when it is unknown. */
  volume?: string | undefined
  /** Names the data folder of a process; undefined when it was not recorded. */
  dataDir?: string | undefined
  /** Is true when it did not end in time and was killed. */
  killed: boolean
}

/** Limits the time to end: pulls in flight get 30 s. */
const stopTimeoutMs = 40_000
const pollMs = 50

/** Stops the running mirror and waits until it has ended; undefined when there was none. */
async function stopMirror({ paths, clock, surroundings }: StopRequest): Promise<StoppedMirror | undefined> {
  const running = await findRunning(paths.stateFile)
  if (running === undefined) return undefined
  if (running.container) return stopRecordedContainer(running.container, paths, surroundings)
  await requestStop(running, paths, surroundings.platform)
  const killed = !(await hasEnded(running, clock, stopTimeoutMs))
  if (killed) {
    signal(running.pid, 'SIGKILL')
    await hasEnded(running, clock, 5000)
  }
  await removeState(paths.stateFile, running.pid)
  return { pid: running.pid, dataDir: running.served?.dataDir, killed }
}

async function stopRecordedContainer(
  { name, volume, engine }: ContainerRecord,
  paths: MirrorPaths,
  surroundings: CommandEnvironment,
): Promise<StoppedMirror> {
  const { openEngine } = await import('../docker/dockerode-engine.ts')
  const { removeOwnContainers } = await import('./container/stop.ts')
  await removeOwnContainers(await openEngine(surroundings, engine), paths.stateDir)
  await removeState(paths.stateFile, undefined)
  return { container: name, volume, killed: false }
}

async function requestStop(
  { pid, endpoints }: ProcessMirrorState,
  paths: MirrorPaths,
  platform: string,
): Promise<void> {
  const [url] = endpoints.admin
  // Windows has no signals: a process that gets one is ended at once.
  if (platform !== 'win32' || url === undefined) return signal(pid, 'SIGTERM')
  await createAdminClient({ url, tokenFile: paths.tokenFile, timeoutMs: 5000 }).stop()
}

async function hasEnded(
  { pid, processIdentity }: ProcessMirrorState,
  clock: Clock,
  withinMs: number,
): Promise<boolean> {
  const end = clock.monotonic() + withinMs
  while (await isSameProcess(pid, processIdentity)) {
    if (clock.monotonic() > end) return false
    await clock.sleep(pollMs)
  }
  return true
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name)
  } catch (error) {
    if (getErrno(error) === 'ESRCH') return
    if (getErrno(error) !== 'EPERM') throw error
    throw new MirrorError(`The mirror (pid ${pid}) belongs to another user, so it cannot be stopped.`, { cause: error })
  }
}

/**
 * Stops the running mirror. Without a record of one it removes this user's container, which was stopped by hand or whose record was
 * lost. Undefined when there was none. Throws a MirrorError (exit 4) when a container is recorded and its engine does not answer.
 */
export async function stopAnyMirror(request: StopRequest): Promise<StoppedMirror | undefined> {
  const stopped = await stopMirror(request)
  if (stopped !== undefined) return stopped
  const { paths, surroundings } = request
  const state = await readState(paths.stateFile)
  // Remove the record of a mirror that died, because the user knows now that it does not run.
  if (state !== undefined && state.container === undefined) await removeState(paths.stateFile, state.pid)
  const recorded = state?.container
  let engine: DockerEngine
  try {
    engine = await openEngine(surroundings, recorded?.engine ?? (await readVolumeMarkerEngine(paths.stateDir)))
  } catch (error) {
    // The container starts again with its engine.
    if (recorded !== undefined) throw explainRememberedEngine(error)
    // Without an engine there is no container.
    if (error instanceof MirrorError) return undefined
    throw error
  }
  const found = await Promise.all([containerName, replacedName].map((name) => engine.containers.find(name)))
  const own = found.filter((container) => container && getContainerOwner(container) === paths.stateDir)
  for (const container of own) await removeContainer(engine, container!.id)
  if (recorded !== undefined) await removeState(paths.stateFile, undefined)
  return own.length === 0 ? undefined : { container: containerName, volume: recorded?.volume, killed: false }
}

/** Brings back the mirror that runs now if its successor does not start. */
export interface Rollback {
  /** Stops it, because only one of the two can hold the store and the ports. */
  stop(): Promise<void>
  /** Starts it again, as it was. Throws a MirrorError or a DockerError when it does not start. */
  restore(): Promise<void>
  /** Removes the rest of it once its successor runs. */
  commit(): Promise<void>
}

interface RollbackRequest {
  readonly paths: MirrorPaths
  readonly surroundings: CommandEnvironment
  readonly clock: Clock
  /** bin/run.js */
  readonly program: string
}

export async function prepareRollback(running: MirrorState, request: RollbackRequest): Promise<Rollback> {
  const { container, served } = running
  if (container !== undefined) {
    return createContainerRollback(running, container, request)
  }
  return {
    stop: async () => void (await stopMirror(request)),
    restore: () =>
      served === undefined ? start(request, request.surroundings.env) : restartWithConfig(served, request),
    commit: () => Promise.resolve(),
  }
}

/** Starts the mirror with the configuration that it had, whatever mirror.yaml, flags and variables contain now. */
async function restartWithConfig({ config, dataDir }: ServedConfig, request: RollbackRequest): Promise<void> {
  const before = join(request.paths.stateDir, 'before.yaml')
  const settings = new Set(listSettingVariables())
  const others = Object.entries(request.surroundings.env).filter(([name]) => !settings.has(name))
  await writeFileAtomic(before, `${JSON.stringify(config)}\n`)
  try {
    await start(request, { ...Object.fromEntries(others), MIRROR_CONFIG: before, MIRROR_DATA: dataDir })
  } finally {
    await rm(before, { force: true })
  }
}

async function start({ program, paths }: RollbackRequest, env: CommandEnvironment['env']): Promise<void> {
  // An interruption of the successor must not interrupt this start.
  await startProcess({ program, paths, env, signal: new AbortController().signal })
}

/**
 * Stops a mirror and starts its successor. When that fails or is interrupted, it restores the earlier mirror, and the error says so.
 * `rollback` is undefined when no mirror ran before.
 */
export async function replaceWithRollback<T>(
  rollback: Rollback | undefined,
  signal: AbortSignal,
  start: () => Promise<T>,
): Promise<T> {
  await rollback?.stop()
  let started: T
  try {
    signal.throwIfAborted()
    started = await start()
  } catch (error) {
    throw rollback ? addRollbackResult(error, { refusal: await catchDockerError(rollback.restore()), signal }) : error
  }
  // `mirror down` finds what this leaves behind.
  if (rollback) await catchDockerError(rollback.commit())
  return started
}

/** Creates the rollback to a mirror in a container, which is only stopped until its successor runs. */
async function createContainerRollback(
  before: MirrorState,
  { id, engine: recorded }: ContainerRecord,
  { paths, surroundings, clock }: RollbackRequest,
): Promise<Rollback> {
  const engine = await openEngine(surroundings, recorded)
  const ports = (await engine.containers.find(id))?.ports ?? []
  return {
    stop: () => stopContainer(engine, id),
    async restore() {
      const container = await restartContainer(engine, id, clock)
      await recordRestored(engine, paths, { container, before, ports })
    },
    commit: () => wrapDockerError('The container of the mirror before cannot be removed', engine.containers.remove(id)),
  }
}
