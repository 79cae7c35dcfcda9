import { createAdminClient } from '../admin/client.ts'
import { type ContainerPlace, findRunning, type MirrorState, removeState } from '../admin/state.ts'
import type { MirrorPaths, Surroundings } from '../config/paths.ts'
import { errnoOf, MirrorError } from '../lib/errors.ts'
import { isSameProcess } from '../lib/process.ts'
import type { Clock } from '../lib/time.ts'

export interface StopRequest {
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
export async function stopMirror({ paths, clock, surroundings }: StopRequest): Promise<StoppedMirror | undefined> {
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
  const { downContainer } = await import('../app/container/down-container.ts')
  await downContainer(await openEngine(surroundings, engine), paths.stateDir)
  await removeState(paths.stateFile, 0)
  return { container: name, volume, killed: false }
}

async function askToEnd({ pid, endpoints }: MirrorState, paths: MirrorPaths, platform: string): Promise<void> {
  const [url] = endpoints.admin
  // Windows has no signals: a process that gets one is ended at once.
  if (platform !== 'win32' || url === undefined) return signal(pid, 'SIGTERM')
  await createAdminClient({ url, tokenFile: paths.tokenFile, timeoutMs: 5000 }).stop()
}

async function isGone({ pid, processIdentity }: MirrorState, clock: Clock, withinMs: number): Promise<boolean> {
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
