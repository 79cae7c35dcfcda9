import { readFile, rm } from 'node:fs/promises'
import { homedir } from 'node:os'
import { join } from 'node:path'
import type { MirrorPaths } from '../config/paths.ts'
import { type DockerEndpoint, renderDockerHost, findDockerEndpoint, parseRecordedEndpoint } from '../docker/endpoint.ts'
import { getErrno, exitCode, MirrorError } from '../lib/errors.ts'
import { readSmallFile, writeFileAtomic } from '../lib/fs.ts'
import { isObject, parseObject } from '../lib/json.ts'
import type { Logger } from '../lib/logger.ts'
import { isSameProcess } from '../lib/process.ts'
import { createWriteBehind } from '../lib/time.ts'
import type { StatusReport } from './api.ts'
import { isHealthy } from './client.ts'

/** Reads a state file; undefined when it is absent or damaged. */
export async function readState(stateFile: string): Promise<MirrorState | undefined> {
  const text = await readStateText(stateFile)
  return text === undefined ? undefined : parseState(text)
}

/** Returns whether the file has exactly this state. */
async function hasState(stateFile: string, state: MirrorState): Promise<boolean> {
  return (await readStateText(stateFile)) === renderState(state)
}

async function readStateText(stateFile: string): Promise<string | undefined> {
  try {
    return await readSmallFile(stateFile)
  } catch (error) {
    if (['ENOENT', 'ENOTDIR', 'EFBIG'].includes(getErrno(error) ?? '')) return undefined
    throw error
  }
}

/** Reads the state of a mirror that runs; undefined when it does not. Throws like `isContainerUp`. */
export async function findRunning(stateFile: string, isUp = isContainerUp): Promise<MirrorState | undefined> {
  const state = await readState(stateFile)
  return state !== undefined && (await isRunning(state, isUp)) ? state : undefined
}

/** Returns whether the mirror of this state runs. */
export async function isRunning(state: MirrorState, isUp = isContainerUp): Promise<boolean> {
  return state.container ? isUp(state.container, state.endpoints) : isSameProcess(state.pid, state.processIdentity)
}

export async function writeState(stateFile: string, state: MirrorState): Promise<void> {
  await writeFileAtomic(stateFile, renderState(state))
}

/** Renders the state file, in which a container has the process number 0. */
function renderState(state: MirrorState): string {
  const { version, runtime, startedAt, configHashes, endpoints } = state
  const common = { version, runtime, startedAt, configHashes, endpoints }
  const { container } = state
  const fields = container
    ? { pid: 0, ...common, container }
    : {
        pid: state.pid,
        processIdentity: state.processIdentity,
        ...common,
        logFile: state.logFile,
        served: state.served,
        lastSeen: state.lastSeen,
      }
  return `${JSON.stringify(fields, null, 2)}\n`
}

/** Removes the file if it is still the one of this process, or of a container (`pid` undefined); a successor's file stays. */
export async function removeState(stateFile: string, pid: number | undefined): Promise<void> {
  const state = await readState(stateFile)
  if (state === undefined || getPid(state) === pid) await rm(stateFile, { force: true })
}

function getPid(state: MirrorState): number | undefined {
  return state.container ? undefined : state.pid
}

/** Parses a state file; undefined when it is damaged. */
export function parseState(text: string): MirrorState | undefined {
  const value = parseObject(text)
  if (!value || !isObject(value['endpoints']) || !isObject(value['configHashes'])) return undefined
  const { pid, processIdentity, version, runtime, startedAt, configHashes, logFile, served, lastSeen, container } =
    value
  if (typeof pid !== 'number' || typeof version !== 'string' || typeof startedAt !== 'string') return undefined
  if (runtime !== 'process' && runtime !== 'container') return undefined
  const common = {
    version,
    startedAt,
    configHashes: toStringRecord(configHashes),
    endpoints: parseEndpoints(value['endpoints']),
  }
  if (isObject(container)) return { ...common, runtime: 'container', container: parseContainer(container) }
  return {
    ...common,
    runtime,
    pid,
    processIdentity: typeof processIdentity === 'string' ? processIdentity : undefined,
    logFile: typeof logFile === 'string' ? logFile : undefined,
    served: isObject(served) ? parseServed(served) : undefined,
    lastSeen: typeof lastSeen === 'string' ? lastSeen : undefined,
  }
}

function parseServed({ config, dataDir }: Record<string, unknown>): ServedConfig | undefined {
  return isObject(config) && typeof dataDir === 'string' ? { config, dataDir } : undefined
}

function parseContainer({
  id,
  name,
  instance,
  volume,
  credentials,
  handedOverAt,
  engine,
  elsewhere,
}: Record<string, unknown>): ContainerRecord {
  return {
    id: String(id),
    name: String(name),
    instance: typeof instance === 'string' ? instance : undefined,
    volume: typeof volume === 'string' ? volume : undefined,
    credentials: toStrings(credentials),
    handedOverAt: String(handedOverAt),
    ...(isObject(engine) && { engine: parseRecordedEndpoint(engine) }),
    ...(isObject(elsewhere) && { elsewhere: { adminPort: Number(elsewhere['adminPort']) } }),
  }
}

function parseEndpoints(value: Record<string, unknown>): Endpoints {
  return {
    cache: toStrings(value['cache']),
    registry: toStrings(value['registry']),
    admin: toStrings(value['admin']),
    networks: toStringRecord(value['networks']),
  }
}

function toStrings(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((text) => typeof text === 'string') : []
}

function toStringRecord(value: unknown): Record<string, string> {
  if (!isObject(value)) return {}
  return Object.fromEntries(
    Object.entries(value).filter((entry): entry is [string, string] => typeof entry[1] === 'string'),
  )
}

interface KeepStateOptions {
  stateFile: string
  /** Returns the current state. */
  getState: () => MirrorState
  logger: Logger
  /** Sets the interval between comparisons of the file with the state, ms. */
  everyMs?: number
}

export type KeptState = ReturnType<typeof keepState>

/**
 * Writes the state file of this process and keeps it current: writes every change, and writes again when the file is lost,
 * damaged or changed by others.
 */
export function keepState({ stateFile, getState, logger, everyMs = 5000 }: KeepStateOptions) {
  const written = writeState(stateFile, getState())
  // Prevents an unhandled rejection; `written` reports the failure.
  const first = written.catch(() => {})
  const writer = createWriteBehind({
    async write() {
      await first
      const current = getState()
      if (await hasState(stateFile, current)) return
      if (!(await belongsToOther(stateFile, current))) await writeState(stateFile, current)
    },
    logger,
    failure: 'could not write the state file',
    everyMs,
  })
  // Picks up changes during the first write.
  writer.update()
  return {
    /** Resolves after the first write of the file; rejects when it fails. */
    written,
    /** Announces a change of the state. */
    update: () => writer.update(),
    /** Removes the file at the end of the mirror; a successor's file stays. */
    async remove(): Promise<void> {
      await writer.stop()
      await removeState(stateFile, getPid(getState()))
    },
  }
}

/** Returns whether the file belongs to another mirror that runs. */
async function belongsToOther(stateFile: string, own: MirrorState): Promise<boolean> {
  try {
    const running = await findRunning(stateFile)
    return running !== undefined && getPid(running) !== getPid(own)
  } catch (error) {
    // Assumes so while the engine of the other mirror does not answer.
    if (error instanceof MirrorError) return true
    throw error
  }
}

export type Endpoints = StatusReport['endpoints']

/** Tells whether the server runs in a process of this machine, or in a container. */
export type RuntimeKind = StatusReport['runtime']

/**
 * Describes the content of a state file, by which other commands find the mirror: a process, or a container that a command started.
 */
export type MirrorState = ProcessMirrorState | ContainerMirrorState

interface CommonMirrorState {
  version: string
  /** Gives the time in ISO 8601. */
  startedAt: string
  /** Holds the hashes by top-level part of the configuration, see `hashConfig`. */
  configHashes: Record<string, string>
  endpoints: Endpoints
}

/** Describes a mirror that runs as a process of this machine, or of the container that this state file is in. */
export interface ProcessMirrorState extends CommonMirrorState {
  /** Is `container` for the server in a container, which keeps a state file of its own there. */
  runtime: RuntimeKind
  pid: number
  /** Identifies this process among all with the same number; undefined where the platform does not tell. */
  processIdentity: string | undefined
  /** Is undefined when the log goes to a terminal or to a container's log. */
  logFile: string | undefined
  /** Holds the settings that the process was started with; undefined for one in a container. */
  served?: ServedConfig | undefined
  /** Gives the time until which the process wrote its files (ISO 8601), for one that ended without being stopped; see `recordLastSeen`. */
  lastSeen?: string | undefined
  container?: undefined
}

/** Describes a mirror that runs in a container of a Docker engine. */
export interface ContainerMirrorState extends CommonMirrorState {
  runtime: 'container'
  container: ContainerRecord
  pid?: undefined
  processIdentity?: undefined
  logFile?: undefined
  served?: undefined
}

/** Holds the settings to start a mirror again as it was. */
export interface ServedConfig {
  /** Holds the content of a mirror.yaml, see `toConfigDocument`. */
  config: Record<string, unknown>
  dataDir: string
}

/** Describes the container that a mirror runs in. */
export interface ContainerRecord {
  id: string
  name: string
  /** Identifies the mirror, also after a restart of the container; undefined when not recorded. */
  instance: string | undefined
  /** Holds the volume with the data; undefined when that is a folder of this machine. */
  volume: string | undefined
  /** Holds the registries whose credentials were exported to the container. */
  credentials: string[]
  /** Gives the time of the last export (ISO 8601). */
  handedOverAt: string
  /** Holds the engine of the container; undefined when not recorded. */
  engine?: DockerEndpoint | undefined
  /** Is present when the engine and the mirror's addresses are another machine's: commands reach the mirror through the engine. */
  elsewhere?: { readonly adminPort: number } | undefined
}

/** Describes a mirror that has started and answers. */
export interface StartedMirror {
  pid: number
  endpoints: Endpoints
}

/**
 * Returns whether the mirror in a container is up. An answer of the mirror saves asking the engine, which takes half a second; a
 * mirror that does not answer may be starting, and then its container runs. Throws a MirrorError when a remote engine does not
 * answer.
 */
export async function isContainerUp(container: ContainerRecord, { admin }: Endpoints): Promise<boolean> {
  const { id, instance, engine, elsewhere } = container
  const [url] = admin
  // Requires the instance, because another mirror may have the port by now.
  const isHere = elsewhere === undefined && url !== undefined && instance !== undefined
  if (isHere && (await isHealthy(url, { instance }))) return true
  const endpoint =
    engine ?? (await findDockerEndpoint({ platform: process.platform, env: process.env, homedir: homedir() }))
  if (endpoint === undefined) return false
  try {
    return await isContainerRunning(endpoint, id)
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    // Concludes that there is no container, because this machine has no engine.
    if (elsewhere === undefined) return false
    const { message, exit, hints } = error
    throw new MirrorError(`The mirror is in a container on ${renderDockerHost(endpoint)}. ${message}`, {
      exit,
      hints,
      cause: error,
    })
  }
}

async function isContainerRunning(endpoint: DockerEndpoint, id: string): Promise<boolean> {
  const found = await findContainer(endpoint, id)
  return found?.running === true || found?.restarting === true
}

/** Describes the last run of a container. */
interface ContainerRun {
  readonly running: boolean
  readonly restarting: boolean
  readonly exitCode: number
  /** Gives the time of the end (ISO 8601); absent for a container that has not ended. */
  readonly finishedAt?: string
  readonly outOfMemory?: boolean
}

/** Returns a container of an engine; undefined when it has none with this id. Throws a MirrorError when the engine does not answer. */
export async function findContainer(endpoint: DockerEndpoint, id: string): Promise<ContainerRun | undefined> {
  const { openEngineAt } = await import('../docker/dockerode-engine.ts')
  const { containers } = await openEngineAt(endpoint)
  return containers.find(id)
}

/** Records that the data is in a volume of the Docker engine, which only a container reaches. */
export async function writeVolumeMarker(stateDir: string, volume: string, engine: DockerEndpoint): Promise<void> {
  await writeFileAtomic(getVolumeMarkerPath(stateDir), `${JSON.stringify({ volume, engine })}\n`)
}

/** Removes the record: the data is on this machine's disk, or the volume is removed. */
export async function removeVolumeMarker(stateDir: string): Promise<void> {
  await rm(getVolumeMarkerPath(stateDir), { force: true })
}

async function hasVolumeMarker(stateDir: string): Promise<boolean> {
  return (await readVolumeMarker(stateDir)) !== undefined
}

/** Reads the engine of the recorded volume; undefined when there is none, or it is not recorded. */
export async function readVolumeMarkerEngine(stateDir: string): Promise<DockerEndpoint | undefined> {
  const engine = parseObject((await readVolumeMarker(stateDir)) ?? '')?.['engine']
  return isObject(engine) ? parseRecordedEndpoint(engine) : undefined
}

async function readVolumeMarker(stateDir: string): Promise<string | undefined> {
  try {
    return await readFile(getVolumeMarkerPath(stateDir), 'utf8')
  } catch (error) {
    if (getErrno(error) === 'ENOENT') return undefined
    throw error
  }
}

/** Throws a MirrorError (exit 3) when the data is in a volume, so that the disk of this machine would show none of it. */
export async function assertDataOnHost(stateDir: string): Promise<void> {
  if (!(await hasVolumeMarker(stateDir))) return
  throw new MirrorError('The mirror is down, and its data is in a volume of the Docker engine.', {
    exit: exitCode.notRunning,
    hints: ['mirror up', 'mirror down --volumes   (removes it)'],
  })
}

function getVolumeMarkerPath(stateDir: string): string {
  return join(stateDir, 'resting.json')
}

/** Reads the state of a running mirror that is to be replaced; undefined also when its engine does not answer. */
export async function findReachableMirror(stateFile: string): Promise<MirrorState | undefined> {
  try {
    return await findRunning(stateFile)
  } catch (error) {
    if (error instanceof MirrorError) return undefined
    throw error
  }
}

/**
 * Returns where the mirror runs or ran last; undefined when it never ran. After its end a container is known while its data is in
 * a volume.
 */
export async function readLastRuntime({ stateFile, stateDir }: MirrorPaths): Promise<RuntimeKind | undefined> {
  const state = await readState(stateFile)
  return state?.runtime ?? ((await hasVolumeMarker(stateDir)) ? 'container' : undefined)
}
