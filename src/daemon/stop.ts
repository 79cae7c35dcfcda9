import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { createAdminClient } from '../admin/client.ts'
import {
  type ContainerPlace,
  findRunning,
  type MirrorState,
  type ProcessMirrorState,
  readState,
  removeState,
  volumeMarkerEngine,
  type ServedConfig,
} from '../admin/state.ts'
import { settingVariables } from '../config/load.ts'
import type { MirrorPaths } from '../config/paths.ts'
import { openEngine } from '../docker/dockerode-engine.ts'
import type { DockerEngine } from '../docker/engine.ts'
import { errnoOf, MirrorError } from '../lib/errors.ts'
import { writeFileAtomic } from '../lib/fs.ts'
import { isSameProcess, type Surroundings } from '../lib/process.ts'
import type { Clock } from '../lib/time.ts'
import { recordRestored } from './container/credentials.ts'
import { containerName, replacedName, ownerOf } from './container/spec.ts'
import {
  wrapDockerError,
  catchDockerError,
  removeContainer,
  startAgain,
  stopContainer,
  describeRollback,
  whereItRan,
} from './container/stop.ts'
import { startProcess } from './spawn.ts'

interface StopRequest {
  paths: MirrorPaths
  clock: Clock
  surroundings: Surroundings
}

export interface StoppedMirror {
  /** Undefined for one in a container. */
  pid?: number
  /** The name of its container. */
  container?: string
  /** The volume with that container's data; undefined when that is a folder, or nobody knows any more. */
  volume?: string | undefined
  /** The folder with the data of a process; undefined where nobody has noted it. */
  dataDir?: string | undefined
  /** It did not end by itself. */
  killed: boolean
}

/** Pulls in flight get 30 s; what takes longer hangs. */
const patienceMs = 40_000
const lookMs = 50

/** Ends the running mirror and waits for it to be gone; undefined when there was none. */
async function stopMirror({ paths, clock, surroundings }: StopRequest): Promise<StoppedMirror | undefined> {
  const running = await findRunning(paths.stateFile)
  if (running === undefined) return undefined
  if (running.container) return stopRecordedContainer(running.container, paths, surroundings)
  await askToEnd(running, paths, surroundings.platform)
  const killed = !(await isGone(running, clock, patienceMs))
  if (killed) {
    signal(running.pid, 'SIGKILL')
    await isGone(running, clock, 5000)
  }
  await removeState(paths.stateFile, running.pid)
  return { pid: running.pid, dataDir: running.served?.dataDir, killed }
}

async function stopRecordedContainer(
  { name, volume, engine }: ContainerPlace,
  paths: MirrorPaths,
  surroundings: Surroundings,
): Promise<StoppedMirror> {
  const { openEngine } = await import('../docker/dockerode-engine.ts')
  const { downContainer } = await import('./container/stop.ts')
  await downContainer(await openEngine(surroundings, engine), paths.stateDir)
  await removeState(paths.stateFile, undefined)
  return { container: name, volume, killed: false }
}

async function askToEnd({ pid, endpoints }: ProcessMirrorState, paths: MirrorPaths, platform: string): Promise<void> {
  const [url] = endpoints.admin
  // Windows has no signals: a process that gets one is ended at once.
  if (platform !== 'win32' || url === undefined) return signal(pid, 'SIGTERM')
  await createAdminClient({ url, tokenFile: paths.tokenFile, timeoutMs: 5000 }).stop()
}

async function isGone({ pid, processIdentity }: ProcessMirrorState, clock: Clock, withinMs: number): Promise<boolean> {
  const end = clock.monotonic() + withinMs
  while (await isSameProcess(pid, processIdentity)) {
    if (clock.monotonic() > end) return false
    await clock.sleep(lookMs)
  }
  return true
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name)
  } catch (error) {
    if (errnoOf(error) === 'ESRCH') return
    if (errnoOf(error) !== 'EPERM') throw error
    throw new MirrorError(`The mirror (pid ${pid}) belongs to another user, so it cannot be stopped.`, { cause: error })
  }
}

/**
 * Ends the running mirror; where nothing has noted that one runs, a container of ours all the same: one that was stopped by
 * hand, or whose note was lost. Undefined when there was none. Throws a MirrorError (exit 4) when one was noted and its engine
 * cannot be asked.
 */
export async function stopAnyMirror(request: StopRequest): Promise<StoppedMirror | undefined> {
  const stopped = await stopMirror(request)
  if (stopped !== undefined) return stopped
  const { paths, surroundings } = request
  const state = await readState(paths.stateFile)
  // Of one that died: its user knows now that it runs no more.
  if (state !== undefined && state.container === undefined) await removeState(paths.stateFile, state.pid)
  const noted = state?.container
  let engine: DockerEngine
  try {
    engine = await openEngine(surroundings, noted?.engine ?? (await volumeMarkerEngine(paths.stateDir)))
  } catch (error) {
    // It comes back with its engine.
    if (noted !== undefined) throw whereItRan(error)
    // Where no engine is there is no container.
    if (error instanceof MirrorError) return undefined
    throw error
  }
  const found = await Promise.all([containerName, replacedName].map((name) => engine.containers.find(name)))
  const ours = found.filter((container) => container && ownerOf(container) === paths.stateDir)
  for (const container of ours) await removeContainer(engine, container!.id)
  if (noted !== undefined) await removeState(paths.stateFile, undefined)
  return ours.length === 0 ? undefined : { container: containerName, volume: noted?.volume, killed: false }
}

/** How to have the mirror again that runs now, should its successor not start. */
export interface Rollback {
  /** Ends it, for only one of them can have the store and the ports. */
  stop(): Promise<void>
  /** It runs again, as it was. Throws a MirrorError, or a DockerError, when it does not. */
  restore(): Promise<void>
  /** Its successor is up: what is left of it goes. */
  commit(): Promise<void>
}

interface RollbackRequest {
  readonly paths: MirrorPaths
  readonly surroundings: Surroundings
  readonly clock: Clock
  /** bin/run.js */
  readonly program: string
}

export async function prepareRollback(running: MirrorState, request: RollbackRequest): Promise<Rollback> {
  const { container, served } = running
  if (container !== undefined) {
    return containerRollback(running, container, request)
  }
  return {
    stop: async () => void (await stopMirror(request)),
    restore: () =>
      served === undefined ? start(request, request.surroundings.env) : restartWithConfig(served, request),
    commit: () => Promise.resolve(),
  }
}

/** With its own configuration, whatever mirror.yaml, the flags and the variables say by now. */
async function restartWithConfig({ config, dataDir }: ServedConfig, request: RollbackRequest): Promise<void> {
  const before = join(request.paths.stateDir, 'before.yaml')
  const settings = new Set(settingVariables())
  const others = Object.entries(request.surroundings.env).filter(([name]) => !settings.has(name))
  await writeFileAtomic(before, `${JSON.stringify(config)}\n`)
  try {
    await start(request, { ...Object.fromEntries(others), MIRROR_CONFIG: before, MIRROR_DATA: dataDir })
  } finally {
    await rm(before, { force: true })
  }
}

async function start({ program, paths }: RollbackRequest, env: Surroundings['env']): Promise<void> {
  // What has interrupted its successor does not interrupt this.
  await startProcess({ program, paths, env, signal: new AbortController().signal })
}

/**
 * Ends a mirror and has its successor start; where that fails, or somebody interrupts, goes back to the one before, and the
 * error says so. Without a way back nothing ran before.
 */
export async function replaceWithRollback<T>(
  back: Rollback | undefined,
  signal: AbortSignal,
  start: () => Promise<T>,
): Promise<T> {
  await back?.stop()
  let started: T
  try {
    signal.throwIfAborted()
    started = await start()
  } catch (error) {
    throw back ? describeRollback(error, { refusal: await catchDockerError(back.restore()), signal }) : error
  }
  // Should something of it stay, the next `mirror down` finds it.
  if (back) await catchDockerError(back.commit())
  return started
}

/** Back to a mirror in a container: it is only stopped until its successor is up. */
async function containerRollback(
  before: MirrorState,
  { id, engine: noted }: ContainerPlace,
  { paths, surroundings, clock }: RollbackRequest,
): Promise<Rollback> {
  const engine = await openEngine(surroundings, noted)
  const ports = (await engine.containers.find(id))?.ports ?? []
  return {
    stop: () => stopContainer(engine, id),
    async restore() {
      const container = await startAgain(engine, id, clock)
      await recordRestored(engine, paths, { container, before, ports })
    },
    commit: () => wrapDockerError('The container of the mirror before cannot be removed', engine.containers.remove(id)),
  }
}
