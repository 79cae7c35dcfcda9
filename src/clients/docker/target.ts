import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createDockerEngine } from '../../docker/dockerode-engine.ts'
import { type DockerEndpoint, renderDockerHost } from '../../docker/endpoint.ts'
import type { DockerEngineInfo } from '../../docker/engine.ts'
import { getErrno, exitCode, MirrorError } from '../../lib/errors.ts'
import { ifVisible } from '../../lib/fs.ts'
import { type Clock, systemClock } from '../../lib/time.ts'
import { parseVersion } from '../address.ts'
import { namesMirror } from '../containerd/hosts-toml.ts'
import { localFiles } from '../files/local.ts'
import type {
  ClientReload,
  ConfigPlan,
  ConfigTarget,
  FilePort,
  Machine,
  MirrorForClient,
  Observation,
  Reason,
} from '../types.ts'
import {
  type DockerTarget,
  emptyDaemonJsonLists,
  getDockerForm,
  getListedMirrors,
  isSameUrl,
  validateDaemonJson,
} from './daemon-json.ts'
import { type DockerdProcess, type DockerInstallation, findDockerd } from './engines.ts'
import { inspectDocker } from './inspect.ts'
import { listTrustSteps, planDocker, stripDocker } from './plan.ts'

interface DockerTargetOptions {
  readonly machine: Machine
  readonly installation: DockerInstallation
  readonly target: DockerTarget
  /** Is undefined when no engine answers. */
  readonly endpoint: DockerEndpoint | undefined
  readonly dockerd: DockerdProcess | undefined
  /** Holds the notes of the plan about guesses. */
  readonly notes: readonly string[]
}

const pullTimeoutMs = 90_000
/** Sets the time between polls of `docker info` after a reload, ms. */
const pollMs = 100
/** Limits the time until dockerd has applied a reload, ms. */
const maxWaitMs = 5000
/**
 * Is the first major version whose BuildKit takes new mirrors from a reload. Before it, BuildKit keeps those of the start of
 * dockerd.
 */
const minLiveBuildsMajor = 26

/** Creates the target for an engine with a daemon.json on this machine. */
export function createConfigTarget(options: DockerTargetOptions): ConfigTarget {
  const { machine, installation, target, endpoint, dockerd, notes } = options
  const { kind, scope, title, location } = installation
  const { daemonJson, certsFolder, version, imageStore } = target
  const form = getDockerForm(target)
  const canReload = endpoint !== undefined && form !== 'folders' && (kind === 'system' || kind === 'rootless')
  return {
    id: getTargetId(installation, machine),
    title,
    details: {
      kind,
      scope,
      daemonJson,
      ...(kind === 'file' && { file: daemonJson }),
      ...(certsFolder !== undefined && { certsFolder }),
      ...(version !== undefined && { version }),
      ...(imageStore !== undefined && { imageStore }),
      ...(endpoint !== undefined && { endpoint: JSON.stringify(endpoint) }),
    },
    location,
    files: localFiles,
    inputs: { files: [daemonJson], trees: certsFolder === undefined ? [] : [certsFolder] },
    plan(mirror, files) {
      const plan = planDocker(mirror, target, files)
      const changesDaemonJson = plan.changes.some(({ path }) => path === daemonJson)
      return {
        changes: plan.changes,
        notes: [...notes, ...plan.notes],
        todo: changesDaemonJson ? [...plan.todo, ...listReloadSteps(options)] : plan.todo,
      }
    },
    strip: (mirror, files) => stripDocker(mirror, target, files),
    inspect: (cache, files) => inspectDocker(cache, target, files),
    ...(!machine.detached &&
      (kind === 'system' || kind === 'rootless') && {
        async validate(changes) {
          const change = changes.find(({ path }) => path === daemonJson)
          if (change) await validateDaemonJson(change, dockerd?.program ?? 'dockerd', machine.runCommand)
        },
      }),
    ...(!machine.detached && {
      listUndoSteps: (paths: readonly string[]) => (paths.includes(daemonJson) ? listUndoSteps(options) : []),
    }),
    ...(endpoint && { observe: ({ cache }) => observeDocker(options, cache) }),
    ...(canReload && {
      reload: createDockerReload(
        { endpoint, daemonJson, version, dockerd, isRootless: kind === 'rootless' },
        systemClock,
      ),
    }),
    ...(endpoint && { pull: (image) => createDockerEngine(endpoint).images.tryPull(image, pullTimeoutMs) }),
    reasons: [{ why: 'docker is not configured for this mirror', fix: 'mirror configure docker' }],
  }
}

/** Creates the target for an engine whose settings are not a file of this machine: its plan prints the settings on stdout. */
export function createManualTarget(options: Omit<DockerTargetOptions, 'target'>): ConfigTarget {
  const { installation, endpoint, notes } = options
  const { kind, scope, title, location } = installation
  return {
    id: kind,
    title,
    details: { kind, scope, ...(endpoint !== undefined && { endpoint: JSON.stringify(endpoint) }) },
    location,
    files: localFiles,
    inputs: { files: [], trees: [] },
    plan: (mirror) => planByHand(mirror, kind, notes),
    strip: () => [],
    ...(endpoint && { pull: (image) => createDockerEngine(endpoint).images.tryPull(image, pullTimeoutMs) }),
    reasons: [
      {
        why: 'the settings of the virtual machine do not name the mirror, or it was not restarted since',
        fix: "docker info --format '{{.RegistryConfig.Mirrors}}'",
      },
    ],
  }
}

function planByHand(
  { cache, ca }: MirrorForClient,
  kind: DockerInstallation['kind'],
  notes: readonly string[],
): ConfigPlan {
  const { host } = new URL(cache)
  const settings = {
    'registry-mirrors': [cache],
    ...(cache.startsWith('http:') && { 'insecure-registries': [host] }),
  }
  const trust = listTrustSteps({ cache, ca })
  if (kind === 'colima')
    return {
      changes: [],
      notes: [...notes, 'Docker in Colima mirrors Docker Hub only, and takes its settings from Colima.'],
      todo: ['colima edit   (replace "docker: {}" by the line on stdout)', ...trust, 'colima restart'],
      // Print JSON because it is valid YAML on one line.
      output: `docker: ${JSON.stringify(settings)}\n`,
    }
  return {
    changes: [],
    notes: [...notes, "The program that runs this engine's virtual machine keeps its settings."],
    todo: ['Add this to its engine settings (Docker Desktop: Settings, Docker Engine), and restart it there', ...trust],
    output: `${JSON.stringify(settings, null, 2)}\n`,
  }
}

/** Identifies a system engine with its own daemon.json by that path, any other by its kind. */
function getTargetId({ kind, daemonJson = kind }: DockerInstallation, { root }: Machine): string {
  const isDefault = daemonJson === join(root, 'etc', 'docker', 'daemon.json')
  return kind === 'file' || (kind === 'system' && !isDefault) ? daemonJson : kind
}

/** Maps engines whose settings another program reads to their restart commands. */
const restartSteps: Partial<Record<DockerInstallation['kind'], string>> = {
  desktop: 'Restart Docker Desktop: docker desktop restart',
  orbstack: 'Restart its engine: orb restart docker',
}

/** Lists the steps until the engine has applied its changed daemon.json. */
function listReloadSteps({ installation, target, endpoint, dockerd }: DockerTargetOptions): string[] {
  const restart = restartSteps[installation.kind]
  if (restart !== undefined) return [restart]
  switch (installation.kind) {
    case 'file':
      return []
    default: {
      const command = getReloadCommand(dockerd, installation.kind === 'rootless')
      const major = parseVersion(target.version)?.[0]
      return [
        `${command}   (dockerd reads its file again${endpoint === undefined ? '' : '; --reload does it for you'})`,
        ...(major === undefined || major < minLiveBuildsMajor
          ? [
              'docker build (BuildKit) before Docker 26 uses the mirror only after a restart of dockerd, which stops containers.',
            ]
          : []),
      ]
    }
  }
}

/** Lists the restart of an engine that mirror cannot reload; `observeDocker` asks the other engines for their mirrors. */
function listUndoSteps({ installation: { kind } }: DockerTargetOptions): string[] {
  const restart = restartSteps[kind]
  return restart === undefined ? [] : [restart]
}

/** Compares the engine's own list, its daemon.json and its folder for Docker Hub with the mirror's address. */
async function observeDocker(
  { installation, target, endpoint }: DockerTargetOptions,
  cache: string,
): Promise<Observation> {
  const { daemonJson, certsFolder } = target
  const hostsToml = certsFolder === undefined ? undefined : join(certsFolder, 'docker.io', 'hosts.toml')
  const info = endpoint && (await createDockerEngine(endpoint).findInfo())
  const file = await inspectFile(localFiles, daemonJson, (text) =>
    describeMirrorList(getListedMirrors(daemonJson, text) ?? [], cache),
  )
  const folder =
    hostsToml === undefined
      ? undefined
      : await inspectFile(localFiles, hostsToml, (text) => describeHostsToml(text, cache))
  const saw = [
    ...(endpoint === undefined ? [] : [describeInfo(info, renderDockerHost(endpoint))]),
    `${daemonJson} ${file.description}.`,
    ...(hostsToml !== undefined && folder !== undefined && (folder.exists || file.names !== true)
      ? [`${hostsToml} ${folder.description}.`]
      : []),
  ]
  if (info === undefined || endpoint === undefined)
    return { inUse: undefined, saw, reasons: [{ why: 'No Docker engine answers', fix: 'docker info' }], todo: [] }

  const readsFolders = getDockerForm({ ...target, version: info.version, imageStore: info.imageStore }) === 'folders'
  const isLoaded = info.mirrors.some((url) => isSameUrl(url, cache))
  const inUse = readsFolders && folder?.exists ? folder.names === true : isLoaded
  const reload = getReloadCommand(await findDockerd(endpoint), installation.kind === 'rootless')
  const isStale = !inUse && !readsFolders && file.names === true
  return {
    inUse,
    saw,
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
function getReloadCommand(dockerd: DockerdProcess | undefined, isRootless: boolean): string {
  const sudo = isRootless || process.getuid?.() === 0 ? '' : 'sudo '
  return dockerd === undefined
    ? `${sudo}systemctl ${isRootless ? '--user ' : ''}reload docker`
    : `${sudo}kill -HUP ${dockerd.pid}`
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
