import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createDockerodeEngine } from '../../docker/dockerode.ts'
import { type DockerEndpoint, engineHost } from '../../docker/endpoint.ts'
import type { DockerEngineInfo } from '../../docker/engine.ts'
import { errnoOf, exitCode, MirrorError } from '../../lib/errors.ts'
import { ifVisible } from '../../lib/fs.ts'
import { type Clock, systemClock } from '../../lib/time.ts'
import { majorAndMinor } from '../address.ts'
import { namesMirror } from '../containerd/hosts-toml.ts'
import { localFiles } from '../files/local.ts'
import type {
  ConfigTarget,
  ClientReload,
  ConfigPlan,
  FilePort,
  Machine,
  MirrorForClient,
  Observation,
  Reason,
} from '../types.ts'
import {
  dockerForm,
  type DockerTarget,
  forgetInDaemonJson,
  isSameUrl,
  mirrorsIn,
  validateDaemonJson,
} from './daemon-json.ts'
import { type DockerdProcess, findDockerd } from './engines.ts'
import { type DockerLocation, planDocker, stripDocker, trustByHand } from './plan.ts'

interface DockerTargetOptions {
  readonly machine: Machine
  readonly site: DockerLocation
  readonly target: DockerTarget
  /** Undefined: there is nobody to speak to. */
  readonly endpoint: DockerEndpoint | undefined
  readonly dockerd: DockerdProcess | undefined
  /** How sure all this is. */
  readonly notes: readonly string[]
}

const pullMs = 90_000
/** Until then BuildKit keeps the mirrors that dockerd was started with. */
const firstWithLiveBuilds = 26

/** One engine as a place for a configuration. */
export function dockerTarget(options: DockerTargetOptions): ConfigTarget {
  const { machine, site, target, endpoint, dockerd, notes } = options
  const { kind, scope, title, home } = site
  const { daemonJson, certsFolder, version, imageStore } = target
  const form = dockerForm(target)
  const hangsUp = endpoint !== undefined && form !== 'folders' && (kind === 'system' || kind === 'rootless')
  return {
    id: idOf(site, machine),
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
    location: home,
    files: localFiles,
    wants: { files: [daemonJson], trees: certsFolder === undefined ? [] : [certsFolder] },
    plan(mirror, files) {
      const plan = planDocker(mirror, target, files)
      const takesNotice = plan.changes.some(({ path }) => path === daemonJson)
      return {
        changes: plan.changes,
        notes: [...notes, ...plan.notes],
        todo: takesNotice ? [...plan.todo, ...afterwards(options)] : plan.todo,
      }
    },
    strip: (mirror, files) => stripDocker(mirror, target, files),
    ...(!machine.detached &&
      (kind === 'system' || kind === 'rootless') && {
        async validate(changes) {
          const change = changes.find(({ path }) => path === daemonJson)
          if (change) await validateDaemonJson(change, dockerd?.program ?? 'dockerd', machine.runCommand)
        },
      }),
    ...(!machine.detached && {
      afterUndo: (paths: readonly string[]) => (paths.includes(daemonJson) ? untilUndone(options) : []),
    }),
    ...(endpoint && { observe: ({ cache }) => observeDocker(options, cache) }),
    ...(hangsUp && {
      reload: dockerReload({ endpoint, daemonJson, version, dockerd, isRootless: kind === 'rootless' }, systemClock),
    }),
    ...(endpoint && { pull: (image) => createDockerodeEngine(endpoint).tryPull(image, pullMs) }),
    reasons: [{ why: 'docker is not configured for this mirror', fix: 'mirror configure docker' }],
  }
}

/** An engine whose settings are no file of this machine: what to put there goes to stdout. */
export function manualDockerTarget(options: Omit<DockerTargetOptions, 'target'>): ConfigTarget {
  const { site, endpoint, notes } = options
  const { kind, scope, title, home } = site
  return {
    id: kind,
    title,
    details: { kind, scope, ...(endpoint !== undefined && { endpoint: JSON.stringify(endpoint) }) },
    location: home,
    files: localFiles,
    wants: { files: [], trees: [] },
    plan: (mirror) => planByHand(mirror, kind, notes),
    strip: () => [],
    ...(endpoint && { pull: (image) => createDockerodeEngine(endpoint).tryPull(image, pullMs) }),
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
  kind: DockerLocation['kind'],
  notes: readonly string[],
): ConfigPlan {
  const { host } = new URL(cache)
  const settings = {
    'registry-mirrors': [cache],
    ...(cache.startsWith('http:') && { 'insecure-registries': [host] }),
  }
  const trust = trustByHand({ cache, ca })
  if (kind === 'colima')
    return {
      changes: [],
      notes: [...notes, 'Docker in Colima mirrors Docker Hub only, and reads what Colima gives it.'],
      todo: ['colima edit   (put this where "docker: {}" stands)', ...trust, 'colima restart'],
      // JSON is YAML.
      output: `docker: ${JSON.stringify(settings)}\n`,
    }
  return {
    changes: [],
    notes: [...notes, "This Docker's settings are kept by the program that runs its virtual machine."],
    todo: ['Add this to its engine settings (Docker Desktop: Settings, Docker Engine), and restart it there', ...trust],
    output: `${JSON.stringify(settings, null, 2)}\n`,
  }
}

/** Engines of the system with files of their own are places of their own. */
function idOf({ kind, daemonJson = kind }: DockerLocation, { root }: Machine): string {
  const isUsual = daemonJson === join(root, 'etc', 'docker', 'daemon.json')
  return kind === 'file' || (kind === 'system' && !isUsual) ? daemonJson : kind
}

/** What makes an engine take notice whose settings are read by another program. */
const restarts: Partial<Record<DockerLocation['kind'], string>> = {
  desktop: 'Restart Docker Desktop: docker desktop restart',
  orbstack: 'Restart its engine: orb restart docker',
}

/** What makes the engine take notice of its changed daemon.json. */
function afterwards({ site, target, endpoint, dockerd }: DockerTargetOptions): string[] {
  const restart = restarts[site.kind]
  if (restart !== undefined) return [restart]
  switch (site.kind) {
    case 'file':
      return []
    default: {
      const command = reloadCommand(dockerd, site.kind === 'rootless')
      const major = majorAndMinor(target.version)?.[0]
      return [
        `${command}   (dockerd reads its file again${endpoint === undefined ? '' : '; --reload does it for you'})`,
        ...(major === undefined || major < firstWithLiveBuilds
          ? [
              'docker build (BuildKit) before Docker 26 uses it only after a restart of dockerd, which stops containers.',
            ]
          : []),
      ]
    }
  }
}

/** What makes an engine forget the mirror that mirror cannot reload; the others are asked what they still have. */
function untilUndone({ site: { kind } }: DockerTargetOptions): string[] {
  const restart = restarts[kind]
  return restart === undefined ? [] : [restart]
}

/** What the engine, its daemon.json and its folder for Docker Hub say of a mirror. */
async function observeDocker({ site, target, endpoint }: DockerTargetOptions, cache: string): Promise<Observation> {
  const { daemonJson, certsFolder } = target
  const hostsToml = certsFolder === undefined ? undefined : join(certsFolder, 'docker.io', 'hosts.toml')
  const info = endpoint && (await createDockerodeEngine(endpoint).info())
  const file = await look(localFiles, daemonJson, (text) => listed(mirrorsIn(daemonJson, text) ?? [], cache))
  const folder = hostsToml === undefined ? undefined : await look(localFiles, hostsToml, (text) => inHosts(text, cache))
  const saw = [
    ...(endpoint === undefined ? [] : [sayInfo(info, engineHost(endpoint))]),
    `${daemonJson} ${file.says}.`,
    ...(hostsToml !== undefined && folder !== undefined && (folder.there || file.names !== true)
      ? [`${hostsToml} ${folder.says}.`]
      : []),
  ]
  if (info === undefined || endpoint === undefined)
    return { inUse: undefined, saw, reasons: [{ why: 'No Docker engine answers', fix: 'docker info' }], todo: [] }

  const readsFolders = dockerForm({ ...target, version: info.version, imageStore: info.imageStore }) === 'folders'
  const isLoaded = info.mirrors.some((url) => isSameUrl(url, cache))
  const inUse = readsFolders && folder?.there ? folder.names === true : isLoaded
  const reload = reloadCommand(await findDockerd(endpoint), site.kind === 'rootless')
  const isStale = !inUse && !readsFolders && file.names === true
  return {
    inUse,
    saw,
    reasons: reasonsFor({ info, cache, inUse, readsFolders, isStale, folderNames: folder?.names === true, daemonJson }),
    todo: isStale ? [`${reload}   (dockerd reads its file again, no containers stop; --reload does it for you)`] : [],
  }
}

interface Findings {
  readonly info: DockerEngineInfo
  readonly cache: string
  readonly inUse: boolean
  readonly readsFolders: boolean
  readonly isStale: boolean
  readonly folderNames: boolean
  readonly daemonJson: string
}

function reasonsFor({ info, cache, inUse, readsFolders, isStale, folderNames, daemonJson }: Findings): Reason[] {
  const log = 'journalctl -u docker -n 50   (dockerd says why in its log only)'
  if (isStale)
    return [{ why: `dockerd has not read ${daemonJson} since it was written`, fix: 'mirror configure docker --reload' }]
  if (!inUse && folderNames)
    return [
      {
        why: `This engine (${nameOf(info)}) does not read hosts.toml`,
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

function sayInfo(info: DockerEngineInfo | undefined, where: string): string {
  if (info === undefined) return `No Docker engine answers at ${where}.`
  const mirrors = info.mirrors.length === 0 ? 'no mirror' : info.mirrors.map((url) => url.replace(/\/$/, '')).join(', ')
  return `docker info (${nameOf(info)}) lists ${info.mirrors.length === 0 ? '' : 'the mirrors '}${mirrors}.`
}

function nameOf({ version, imageStore }: DockerEngineInfo): string {
  return `Docker ${version}, ${imageStore} image store`
}

interface FileFindings {
  readonly there: boolean
  /** Whether it names the mirror; undefined when it cannot be read. */
  readonly names: boolean | undefined
  /** The rest of a sentence that begins with its path. */
  readonly says: string
}

/** `read`: the rest of the sentence for its text, and whether that names the mirror. */
async function look(
  files: FilePort,
  path: string,
  read: (text: string) => readonly [names: boolean, says: string],
): Promise<FileFindings> {
  try {
    const state = await files.read(path)
    if (state === undefined) return { there: false, names: false, says: 'does not exist' }
    const [names, says] = read(Buffer.from(state.bytes).toString())
    return { there: true, names, says }
  } catch (error) {
    if (error instanceof MirrorError) return { there: true, names: undefined, says: `is broken: ${error.message}` }
    if (errnoOf(error) === undefined) throw error
    return { there: true, names: undefined, says: `cannot be read (${errnoOf(error)})` }
  }
}

function listed(mirrors: readonly string[], cache: string): [boolean, string] {
  const names = mirrors.some((url) => isSameUrl(url, cache))
  if (mirrors.length === 0) return [names, 'names no mirror']
  return [names, `names ${mirrors.join(', ')}`]
}

function inHosts(text: string, cache: string): [boolean, string] {
  const names = namesMirror(text, cache)
  return [names, `${names ? 'names' : 'does not name'} ${cache}`]
}

const lookEveryMs = 100
const takesMs = 5000

interface ReloadedDockerd {
  readonly endpoint: DockerEndpoint
  readonly daemonJson: string
  /** Of Docker; undefined when nobody could tell. */
  readonly version?: string | undefined
  /** As it was found when the place was looked for. */
  readonly dockerd: DockerdProcess | undefined
  readonly isRootless: boolean
}

/** Has dockerd read its daemon.json again, which it does on SIGHUP, and sees that it has. */
export function dockerReload(
  { endpoint, daemonJson, version, dockerd, isRootless }: ReloadedDockerd,
  clock: Clock,
): ClientReload {
  return {
    question: 'Reload dockerd now (SIGHUP, no containers stop)?',
    done: `Sent SIGHUP to dockerd${dockerd === undefined ? '' : ` (pid ${dockerd.pid})`}.`,
    async run() {
      const running = await findDockerd(endpoint)
      if (running === undefined)
        throw new MirrorError('No dockerd was found that could be reloaded.', {
          exit: exitCode.missing,
          hints: [reloadCommand(undefined, isRootless)],
        })
      hangUp(running, isRootless)
      await untilTaken(endpoint, daemonJson, clock)
    },
    interim: (mirror, files) => forgetInDaemonJson(mirror, daemonJson, files, version),
  }
}

/** What a person types to the same end. */
function reloadCommand(dockerd: DockerdProcess | undefined, isRootless: boolean): string {
  const sudo = isRootless || process.getuid?.() === 0 ? '' : 'sudo '
  return dockerd === undefined
    ? `${sudo}systemctl ${isRootless ? '--user ' : ''}reload docker`
    : `${sudo}kill -HUP ${dockerd.pid}`
}

function hangUp(dockerd: DockerdProcess, isRootless: boolean): void {
  try {
    process.kill(dockerd.pid, 'SIGHUP')
  } catch (cause) {
    if (errnoOf(cause) !== 'EPERM' && errnoOf(cause) !== 'ESRCH') throw cause
    throw new MirrorError(`No permission to signal dockerd (pid ${dockerd.pid}).`, {
      exit: exitCode.usage,
      hints: [reloadCommand(dockerd, isRootless)],
      cause,
    })
  }
}

/** dockerd says only in its log why it goes on with what it had. */
async function untilTaken(endpoint: DockerEndpoint, daemonJson: string, clock: Clock): Promise<void> {
  const text = await ifVisible(readFile(daemonJson, 'utf8'))
  const wanted = text === undefined ? undefined : mirrorsIn(daemonJson, text)
  if (wanted === undefined) return
  const engine = createDockerodeEngine(endpoint)
  const end = clock.monotonic() + takesMs
  while (clock.monotonic() < end) {
    const mirrors = (await engine.info())?.mirrors
    if (mirrors?.length === wanted.length && wanted.every((url, at) => isSameUrl(url, mirrors[at]!))) return
    await clock.sleep(lookEveryMs)
  }
  throw new MirrorError(`dockerd was reloaded, and still has other mirrors than ${daemonJson} names.`, {
    hints: ['journalctl -u docker -n 20   (it says there why)', "docker info --format '{{.RegistryConfig.Mirrors}}'"],
  })
}
