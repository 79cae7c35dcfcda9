import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createDockerEngine } from '../../docker/dockerode-engine.ts'
import { type DockerEndpoint, renderDockerHost } from '../../docker/endpoint.ts'
import { type DockerEngine, type DockerEngineInfo, DockerError } from '../../docker/engine.ts'
import { createDeferred } from '../../lib/async.ts'
import { exitCode, getErrno, MirrorError } from '../../lib/errors.ts'
import { ifVisible } from '../../lib/fs.ts'
import { readProcessStart } from '../../lib/process.ts'
import { type Clock, runLater } from '../../lib/time.ts'
import { parseVersion } from '../address.ts'
import { namesMirror } from '../containerd/hosts-toml.ts'
import { localFiles } from '../files/local.ts'
import type { ClientReload, FilePort, Observation, Reason } from '../types.ts'
import { type DockerTarget, emptyDaemonJsonLists, getDockerForm, getListedMirrors, isSameUrl } from './daemon-json.ts'
import { type DockerdProcess, type DockerInstallation, findDockerd } from './engines.ts'

interface ObservedDocker {
  readonly installation: DockerInstallation
  readonly target: DockerTarget
  /** Is undefined when no engine answers. */
  readonly endpoint: DockerEndpoint | undefined
}

/** Compares the engine's own list, its daemon.json and its folder for Docker Hub with the mirror's address. */
export async function observeDocker(
  { installation, target, endpoint }: ObservedDocker,
  { cache, since }: { readonly cache: string; readonly since?: string | undefined },
): Promise<Observation> {
  const { daemonJson, certsFolder } = target
  const hostsToml = certsFolder === undefined ? undefined : join(certsFolder, 'docker.io', 'hosts.toml')
  const engine = endpoint && createDockerEngine(endpoint)
  const info = await engine?.findInfo()
  const failure = engine !== undefined && info === undefined ? await findFailure(engine) : undefined
  const file = await inspectFile(localFiles, daemonJson, (text) =>
    describeMirrorList(getListedMirrors(daemonJson, text) ?? [], cache),
  )
  const folder =
    hostsToml === undefined
      ? undefined
      : await inspectFile(localFiles, hostsToml, (text) => describeHostsToml(text, cache))
  const saw = [
    ...(endpoint === undefined ? [] : [failure ?? describeInfo(info, renderDockerHost(endpoint))]),
    `${daemonJson} ${file.description}.`,
    ...(hostsToml !== undefined && folder !== undefined && (folder.exists || file.names !== true)
      ? [`${hostsToml} ${folder.description}.`]
      : []),
  ]
  if (info === undefined || endpoint === undefined)
    return {
      inUse: undefined,
      ...(failure !== undefined && { failure }),
      saw,
      reasons: [{ why: 'No Docker engine answers', fix: 'docker info' }],
      todo: [],
    }

  const readsFolders = getDockerForm({ ...target, version: info.version, imageStore: info.imageStore }) === 'folders'
  const isLoaded = info.mirrors.some((url) => isSameUrl(url, cache))
  const inUse = readsFolders && folder?.exists ? folder.names === true : isLoaded
  const dockerd = await findDockerd(endpoint)
  const isRootless = installation.kind === 'rootless'
  const reload = getReloadCommand(dockerd, isRootless)
  const isStale = !inUse && !readsFolders && file.names === true
  const isBypassed = inUse && !readsFolders && file.names === true && !buildsAfterReload(info.version)
  const wasReloaded = isBypassed && (await isOlder(dockerd, since))
  return {
    inUse,
    saw,
    ...(wasReloaded && {
      bypasses: [
        {
          why: `docker build (BuildKit) bypasses the mirror: dockerd ${info.version} runs since before it was configured, and gives BuildKit the mirrors of its start only`,
          fix: `${getRestartCommand(isRootless)}   (stops containers without a restart policy)`,
        },
      ],
    }),
    reasons: listReasons({
      info,
      cache,
      inUse,
      readsFolders,
      isStale,
      folderNames: folder?.names === true,
      daemonJson,
    }),
    todo: isStale ? [`${reload}   (dockerd reads its file again, no containers stop; --reload does it for you)`] : [],
  }
}

/** Reports whether dockerd started before a time; false when that is unknown. */
async function isOlder(dockerd: DockerdProcess | undefined, since: string | undefined): Promise<boolean> {
  const start = dockerd === undefined ? undefined : await readProcessStart(dockerd.pid)
  return start !== undefined && since !== undefined && start < Date.parse(since)
}

/** Limits the time of the request that tells why an engine gives no information, ms. */
const failureMs = 2000

/** Finds the error with which an engine answers; undefined for one that does not answer at all. */
async function findFailure(engine: DockerEngine): Promise<string | undefined> {
  const late = createDeferred<undefined>()
  const stop = runLater(
    failureMs,
    () => late.resolve(undefined),
    () => {},
  )
  try {
    await Promise.race([engine.getInfo(), late.promise])
    return undefined
  } catch (error) {
    if (error instanceof DockerError && error.status >= 500)
      return `docker info fails: ${error.message.trim().replace(/\.$/, '')}.`
    if (error instanceof DockerError || error instanceof MirrorError || getErrno(error) !== undefined) return undefined
    throw error
  } finally {
    stop()
  }
}

interface EngineFindings {
  readonly info: DockerEngineInfo
  readonly cache: string
  readonly inUse: boolean
  readonly readsFolders: boolean
  readonly isStale: boolean
  readonly folderNames: boolean
  readonly daemonJson: string
}

function listReasons({ info, cache, inUse, readsFolders, isStale, folderNames, daemonJson }: EngineFindings): Reason[] {
  const log = 'journalctl -u docker -n 50   (dockerd reports the reason in its log only)'
  if (isStale)
    return [{ why: `dockerd has not read ${daemonJson} since it was written`, fix: 'mirror configure docker --reload' }]
  if (!inUse && folderNames)
    return [
      {
        why: `This engine (${describeEngine(info)}) does not read hosts.toml`,
        fix: 'mirror configure docker',
      },
    ]
  if (!inUse) return [{ why: 'docker is not configured for this mirror', fix: 'mirror configure docker' }]
  if (readsFolders) return [{ why: `dockerd could not use its hosts.toml, or did not reach ${cache}`, fix: log }]
  const first = info.mirrors.find((url) => !isSameUrl(url, cache))
  const comesFirst = first !== undefined && info.mirrors[0] === first
  return [
    ...(comesFirst
      ? [{ why: `dockerd asks ${first} first`, fix: `Put ${cache} first in "registry-mirrors" of ${daemonJson}` }]
      : []),
    { why: `dockerd did not reach ${cache}`, fix: log },
  ]
}

function describeInfo(info: DockerEngineInfo | undefined, where: string): string {
  if (info === undefined) return `No Docker engine answers at ${where}.`
  const mirrors = info.mirrors.length === 0 ? 'no mirror' : info.mirrors.map((url) => url.replace(/\/$/, '')).join(', ')
  return `docker info (${describeEngine(info)}) lists ${info.mirrors.length === 0 ? '' : 'the mirrors '}${mirrors}.`
}

function describeEngine({ version, imageStore }: DockerEngineInfo): string {
  return `Docker ${version}, ${imageStore} image store`
}

interface FileFindings {
  readonly exists: boolean
  /** Is true when the file names the mirror; undefined when it cannot be read. */
  readonly names: boolean | undefined
  /** Holds the rest of a sentence that starts with its path. */
  readonly description: string
}

/** Reads a file. `read` returns for its text if that names the mirror, and the description. */
async function inspectFile(
  files: FilePort,
  path: string,
  read: (text: string) => readonly [names: boolean, description: string],
): Promise<FileFindings> {
  try {
    const state = await files.read(path)
    if (state === undefined) return { exists: false, names: false, description: 'does not exist' }
    const [names, description] = read(Buffer.from(state.bytes).toString())
    return { exists: true, names, description }
  } catch (error) {
    if (error instanceof MirrorError)
      return { exists: true, names: undefined, description: `is broken: ${error.message}` }
    if (getErrno(error) === undefined) throw error
    return { exists: true, names: undefined, description: `cannot be read (${getErrno(error)})` }
  }
}

function describeMirrorList(mirrors: readonly string[], cache: string): [boolean, string] {
  const names = mirrors.some((url) => isSameUrl(url, cache))
  if (mirrors.length === 0) return [names, 'names no mirror']
  return [names, `names ${mirrors.join(', ')}`]
}

function describeHostsToml(text: string, cache: string): [boolean, string] {
  const names = namesMirror(text, cache)
  return [names, `${names ? 'names' : 'does not name'} ${cache}`]
}

/** Sets the time between polls of `docker info` after a reload, ms. */
const pollMs = 100
/** Limits the time until dockerd has applied a reload, ms. */
const maxWaitMs = 5000
/**
 * Is the first major version whose BuildKit takes new mirrors from a reload. Before it, BuildKit keeps those of the start of
 * dockerd.
 */
const minLiveBuildsMajor = 26

/** Reports whether BuildKit in this Docker takes new mirrors from a reload; false for an unknown version. */
export function buildsAfterReload(version: string | undefined): boolean {
  const major = parseVersion(version)?.[0]
  return major !== undefined && major >= minLiveBuildsMajor
}

interface ReloadedDockerd {
  readonly endpoint: DockerEndpoint
  readonly daemonJson: string
  /** Holds the version of Docker; undefined when unknown. */
  readonly version?: string | undefined
  /** Holds the process at the time of detection. */
  readonly dockerd: DockerdProcess | undefined
  readonly isRootless: boolean
}

/** Creates a reload that sends SIGHUP to dockerd, then polls the engine until it lists the mirrors of daemon.json. */
export function createDockerReload(
  { endpoint, daemonJson, version, dockerd, isRootless }: ReloadedDockerd,
  clock: Clock,
): ClientReload {
  return {
    question: 'Reload dockerd now (SIGHUP, no containers stop)?',
    done: `Sent SIGHUP to dockerd${dockerd === undefined ? '' : ` (pid ${dockerd.pid})`}.`,
    async run() {
      const running = await findDockerd(endpoint)
      if (running === undefined)
        throw new MirrorError('Found no dockerd to reload.', {
          exit: exitCode.missing,
          hints: [getReloadCommand(undefined, isRootless)],
        })
      sendHangup(running, isRootless)
      await waitUntilReloaded(endpoint, daemonJson, clock)
    },
    planInterim: (mirror, files) => emptyDaemonJsonLists(mirror, daemonJson, files, version),
  }
}

/** Returns the command that a user can run for the same reload. */
export function getReloadCommand(dockerd: DockerdProcess | undefined, isRootless: boolean): string {
  const sudo = isRootless || process.getuid?.() === 0 ? '' : 'sudo '
  return dockerd === undefined
    ? `${sudo}systemctl ${isRootless ? '--user ' : ''}reload docker`
    : `${sudo}kill -HUP ${dockerd.pid}`
}

/** Returns the command by which dockerd starts again. */
export function getRestartCommand(isRootless: boolean): string {
  const sudo = isRootless || process.getuid?.() === 0 ? '' : 'sudo '
  return `${sudo}systemctl ${isRootless ? '--user ' : ''}restart docker`
}

function sendHangup(dockerd: DockerdProcess, isRootless: boolean): void {
  try {
    process.kill(dockerd.pid, 'SIGHUP')
  } catch (cause) {
    if (getErrno(cause) !== 'EPERM' && getErrno(cause) !== 'ESRCH') throw cause
    throw new MirrorError(`No permission to signal dockerd (pid ${dockerd.pid}).`, {
      exit: exitCode.usage,
      hints: [getReloadCommand(dockerd, isRootless)],
      cause,
    })
  }
}

/** Polls the engine until it lists the mirrors of daemon.json. Throws MirrorError after `maxWaitMs`: dockerd reports errors in its log only. */
async function waitUntilReloaded(endpoint: DockerEndpoint, daemonJson: string, clock: Clock): Promise<void> {
  const text = await ifVisible(readFile(daemonJson, 'utf8'))
  const expected = text === undefined ? undefined : getListedMirrors(daemonJson, text)
  if (expected === undefined) return
  const engine = createDockerEngine(endpoint)
  const end = clock.monotonic() + maxWaitMs
  while (clock.monotonic() < end) {
    const mirrors = (await engine.findInfo())?.mirrors
    if (mirrors?.length === expected.length && expected.every((url, at) => isSameUrl(url, mirrors[at]!))) return
    await clock.sleep(pollMs)
  }
  throw new MirrorError(`dockerd was reloaded, but its mirrors still differ from those in ${daemonJson}.`, {
    hints: ['journalctl -u docker -n 20   (shows the reason)', "docker info --format '{{.RegistryConfig.Mirrors}}'"],
  })
}
