import { statSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import { uptime } from 'node:os'
import { join } from 'node:path'
import { mustCheckOwners, mirrorPaths, type MirrorPaths } from '../config/paths.ts'
import { findDockerEndpoint } from '../docker/endpoint.ts'
import { DockerError } from '../docker/engine.ts'
import { getErrno, MirrorError } from '../lib/errors.ts'
import { ifVisible } from '../lib/fs.ts'
import { mirrorName, getNetworkInterfaces } from '../lib/network.ts'
import { isRootControlled, readOwnedFile } from '../lib/ownership.ts'
import { getBoot, readBootId, runCommand, type RunCommand, type CommandEnvironment } from '../lib/process.ts'
import {
  type Endpoints,
  findContainer,
  findRunning,
  isRunning,
  type ContainerMirrorState,
  type MirrorState,
  type ProcessMirrorState,
  parseState,
  readState,
  writeState,
  type RuntimeKind,
} from './state.ts'

/** Describes a running mirror and its owner. */
export interface FoundMirror {
  readonly running: MirrorState
  readonly paths: MirrorPaths
  /** Holds the user who has become root and owns the mirror; undefined for the own mirror. */
  readonly user: InvokingUser | undefined
}

/**
 * Finds the running mirror of this user; for root without one, that of the user who has become root. When root ignores the home
 * that MIRROR_HOME names, only the user's mirror with that home counts, because no other was meant.
 */
export async function findRunningMirror(surroundings: CommandEnvironment): Promise<FoundMirror | undefined> {
  const paths = mirrorPaths(surroundings)
  const callers = surroundings.callers ?? surroundings
  const ignoresHome = Boolean(callers.env['MIRROR_HOME']) && !surroundings.env['MIRROR_HOME']
  const usesOwnState = !ignoresHome && (!mustCheckOwners(surroundings) || isRootControlled(paths.stateFile))
  const own = usesOwnState ? await findOwnMirror(paths) : undefined
  const user = own === undefined ? await findUserBehindRoot(surroundings) : undefined
  if (user === undefined) return own
  // Stops at a MIRROR_HOME that belongs to root, because it means this mirror only.
  if (usesOwnState && surroundings.env['MIRROR_HOME']) return undefined
  const { home, uid } = user
  const defaultPaths = mirrorPaths({ ...surroundings, env: {}, homedir: home })
  for (const candidate of [mirrorPaths(callers), ...(ignoresHome ? [] : [defaultPaths])]) {
    const running = await findRunningMirrorOf(candidate.stateFile, uid)
    if (running !== undefined) return { running, paths: candidate, user }
  }
  return undefined
}

async function findOwnMirror(paths: MirrorPaths): Promise<FoundMirror | undefined> {
  const running = await findRunning(paths.stateFile)
  return running && { running, paths, user: undefined }
}

async function findUserBehindRoot(surroundings: CommandEnvironment): Promise<InvokingUser | undefined> {
  if (!mustCheckOwners(surroundings)) return undefined
  return findInvokingUser(surroundings)
}

/**
 * Finds the running mirror of another user's state file. Root trusts as little of the file as possible: the process must be that
 * user's, the engine of a container and every address must be on this machine.
 */
async function findRunningMirrorOf(stateFile: string, uid: number): Promise<MirrorState | undefined> {
  const text = await readOwnedFile(stateFile, uid)
  const state = text === undefined ? undefined : parseState(text)
  if (state === undefined) return undefined
  const { container } = state
  if (container?.elsewhere || (container?.engine && container.engine.kind !== 'socket')) return undefined
  if (!state.container && (await belongsToOtherUser(state.pid, uid))) return undefined
  const checked = { ...state, endpoints: filterOwnEndpoints(state.endpoints) }
  return (await isRunning(checked)) ? checked : undefined
}

async function belongsToOtherUser(pid: number, uid: number): Promise<boolean> {
  if (!Number.isSafeInteger(pid) || pid <= 0) return true
  const process = await ifVisible(stat(`/proc/${pid}`))
  return process !== undefined && process.uid !== uid
}

function filterOwnEndpoints({ cache, registry, admin, networks }: Endpoints): Endpoints {
  const own = new Set(getNetworkInterfaces().map(({ address }) => address))
  const isOwn = (host: string) =>
    host === 'localhost' ||
    // Loads `node:net` here, because few commands need it.
    (process.getBuiltinModule('node:net').isIP(host) !== 0 &&
      (host.startsWith('127.') || ['::1', '0.0.0.0', '::'].includes(host) || own.has(host)))
  const isHere = (url: string) => isOwn(parseHost(url))
  return {
    cache: cache.filter(isHere),
    registry: registry.filter(isHere),
    admin: admin.filter(isHere),
    // Keeps the mirror's name, by which containers reach a mirror in a container.
    networks: Object.fromEntries(
      Object.entries(networks).filter(([, url]) => isHere(url) || parseHost(url) === mirrorName),
    ),
  }
}

/** Returns the host of a mirror's URL; empty for anything but a plain URL. */
function parseHost(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined
  if (url === undefined || !/^https?:$/.test(url.protocol)) return ''
  if (url.pathname !== '/' || url.search !== '' || url.hash !== '' || url.username !== '') return ''
  return url.hostname.replace(/^\[|\]$/g, '')
}

/** Describes the user who has become root. */
interface InvokingUser {
  readonly uid: number
  readonly name: string
  readonly home: string
}

const timeoutMs = 5000

/**
 * Finds the user who has become root to start this process: sudo, doas and pkexec set a variable, `su -m` keeps the home folder.
 * Returns undefined when this process is not root, or root itself has started it.
 */
export async function findInvokingUser(
  { env, platform, callers }: Pick<CommandEnvironment, 'env' | 'platform' | 'callers'>,
  run: RunCommand = runCommand,
): Promise<InvokingUser | undefined> {
  if (process.geteuid?.() !== 0) return undefined
  const invoker = env['SUDO_UID'] ?? env['DOAS_USER'] ?? env['PKEXEC_UID'] ?? readOwner(callers?.homedir)
  if (invoker === undefined || !/^[\w][\w.-]*\$?$/.test(invoker)) return undefined
  // Uses `id -P` on macOS, which has no getent: it prints the same line.
  const result =
    platform === 'darwin'
      ? await run('id', ['-P', invoker], { timeoutMs })
      : await run('getent', ['passwd', invoker], { timeoutMs })
  const fields = result?.exitCode === 0 ? result.stdout.trim().split(':') : []
  const [name, , uid] = fields
  const home = fields.at(-2)
  if (!name || !home?.startsWith('/') || !/^\d+$/.test(uid ?? '') || uid === '0') return undefined
  return { name, uid: Number(uid), home }
}

function readOwner(home: string | undefined): string | undefined {
  const owner = home === undefined ? undefined : statSync(home, { throwIfNoEntry: false })?.uid
  return owner === 0 ? undefined : owner?.toString()
}

/** Describes a mirror that ended without being stopped. */
export interface DeadMirror {
  readonly runtime: RuntimeKind
  readonly version: string
  /** Process number; absent for a container. */
  readonly pid?: number
  /** Names the container. */
  readonly container?: string
  /** Gives the time in ISO 8601. */
  readonly startedAt: string
  /** Holds the time a process was last seen, to about ten seconds, or the end of a container (ISO 8601). */
  readonly lastSeen?: string
  /**
   * Distinguishes `died`: no command stopped it; `reboot`: the machine has started since; `exited` and `out-of-memory`: the end of
   * the container; `removed`: the container does not exist; `no-engine`: the Docker engine does not answer.
   */
  readonly reason: 'died' | 'reboot' | 'exited' | 'out-of-memory' | 'removed' | 'no-engine'
  readonly exitCode?: number
  /** Is true when `mirror logs` can show its log. */
  readonly hasLog: boolean
}

/** Finds out how the recorded mirror ended; undefined when it was stopped, or never started. */
export async function findDeadMirror(
  paths: MirrorPaths,
  surroundings: CommandEnvironment,
): Promise<DeadMirror | undefined> {
  const state = await readState(paths.stateFile)
  if (state === undefined) return undefined
  return state.container ? describeDeadContainer(state, surroundings) : describeDeadProcess(state, paths)
}

async function describeDeadProcess(state: ProcessMirrorState, paths: MirrorPaths): Promise<DeadMirror> {
  const { runtime, version, pid, startedAt, logFile } = state
  const lastSeen = await findLastSeen(state, paths)
  return {
    runtime,
    version,
    pid,
    startedAt,
    ...(lastSeen !== undefined && { lastSeen }),
    reason: (await wasRebooted(state)) ? 'reboot' : 'died',
    hasLog: logFile !== undefined,
  }
}

async function findLastSeen(
  { startedAt, logFile, lastSeen }: ProcessMirrorState,
  { stateDir, stateFile }: MirrorPaths,
): Promise<string | undefined> {
  if (lastSeen !== undefined) return lastSeen
  const time = await readLastWriteTime([join(stateDir, 'stats.json'), stateFile, logFile])
  return time === undefined ? undefined : new Date(Math.max(time, Date.parse(startedAt))).toISOString()
}

/** Records until when a process that ended without being stopped wrote its files, before a start that may fail writes to them. */
export async function recordLastSeen(paths: MirrorPaths): Promise<void> {
  const state = await readState(paths.stateFile)
  if (state === undefined || state.container || (await isRunning(state))) return
  const lastSeen = await findLastSeen(state, paths)
  if (lastSeen !== state.lastSeen) await writeState(paths.stateFile, { ...state, lastSeen })
}

const clockSlackMs = 60_000

/** Returns whether the machine started after the mirror. */
async function wasRebooted({ processIdentity, startedAt }: ProcessMirrorState): Promise<boolean> {
  const [bootAtStart, currentBoot] = [getBoot(processIdentity), await readBootId()]
  if (bootAtStart !== undefined && currentBoot !== undefined) return bootAtStart !== currentBoot
  return Date.now() - uptime() * 1000 - clockSlackMs > Date.parse(startedAt)
}

/** Returns the latest modification of the files that a running mirror writes; wall clock ms. */
async function readLastWriteTime(files: readonly (string | undefined)[]): Promise<number | undefined> {
  const times: number[] = []
  for (const file of files) {
    if (file === undefined) continue
    try {
      times.push((await stat(file)).mtimeMs)
    } catch (error) {
      if (getErrno(error) === undefined) throw error
    }
  }
  return times.length === 0 ? undefined : Math.max(...times)
}

async function describeDeadContainer(
  { runtime, version, startedAt, container: { id, name, engine } }: ContainerMirrorState,
  surroundings: CommandEnvironment,
): Promise<DeadMirror> {
  const common = { runtime, version, container: name, startedAt }
  try {
    const endpoint = engine ?? (await findDockerEndpoint(surroundings))
    if (endpoint === undefined) return { ...common, reason: 'no-engine', hasLog: false }
    const found = await findContainer(endpoint, id)
    if (found === undefined) return { ...common, reason: 'removed', hasLog: false }
    const { exitCode, finishedAt, outOfMemory } = found
    return {
      ...common,
      ...(finishedAt !== undefined && { lastSeen: finishedAt }),
      reason: outOfMemory === true ? 'out-of-memory' : 'exited',
      exitCode,
      hasLog: true,
    }
  } catch (error) {
    if (!(error instanceof MirrorError) && !(error instanceof DockerError)) throw error
    return { ...common, reason: 'no-engine', hasLog: false }
  }
}
