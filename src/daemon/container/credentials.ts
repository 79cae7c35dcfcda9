import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { posix } from 'node:path'
import {
  type Endpoints,
  type MirrorState,
  readState,
  removeVolumeMarker,
  writeState,
  writeVolumeMarker,
} from '../../admin/state.ts'
import type { Config } from '../../config/config.ts'
import { loadConfig } from '../../config/load.ts'
import { mirrorPaths, type MirrorPaths } from '../../config/paths.ts'
import { openEngine } from '../../docker/dockerode-engine.ts'
import type { DockerEngine, ContainerState, PublishedPort } from '../../docker/engine.ts'
import { getErrno, exitCode, MirrorError } from '../../lib/errors.ts'
import { runCommand, type CommandEnvironment } from '../../lib/process.ts'
import { getFileFailureReason } from '../../lib/system-errors.ts'
import { toTarFile, createTar, type TarEntry } from '../../lib/tar.ts'
import type { Clock } from '../../lib/time.ts'
import { toCanonicalRegistry, parseRegistryHost } from '../../oci/reference.ts'
import { createCredentials, getCredentialHost, renderExportedCredentials } from '../../upstream/credentials.ts'
import { getDockerConfigPath } from '../../upstream/docker-credentials.ts'
import type { Credential } from '../../upstream/identity.ts'
import { UpstreamError } from '../../upstream/upstream.ts'
import { dataFolder, exportedFileNames, exportFolder, getExportFolder, homeFolder, getInstance } from './spec.ts'
import { findOwnContainer, withCommandLockIfFree, wrapDockerError } from './stop.ts'

/**
 * Renders the file with this user's credentials for these registries only. Throws a MirrorError (exit 2) for a registry without a
 * credential, or whose credential cannot be read.
 */
export async function exportCredentials(
  hosts: readonly string[],
  { upstreams }: Pick<Config, 'upstreams'>,
  env: Readonly<Record<string, string | undefined>>,
  clock: Clock,
): Promise<string> {
  const found = new Map<string, Credential>()
  for (const host of hosts) {
    const settings = upstreams[host]
    const owner = getCredentialHost(host, settings ?? {})
    const source = settings?.credentials ?? { from: 'docker-config' }
    const credentials = createCredentials({
      host: owner,
      source,
      dockerConfig: getDockerConfigPath(env),
      env,
      runCommand,
      clock,
    })
    const credential = await credentials.find().catch((error: unknown) => {
      if (!(error instanceof UpstreamError)) throw error
      throw new MirrorError(error.message, { exit: exitCode.usage, cause: error })
    })
    if (credential === undefined)
      throw new MirrorError(`There is no credential for ${owner} on this machine.`, {
        exit: exitCode.usage,
        hints: [
          `docker login ${owner === 'docker.io' ? '' : owner}`.trim(),
          'mirror up --credentials HOST…   (only those of HOST…; "none" for no credentials)',
        ],
      })
    found.set(owner, credential)
  }
  return renderExportedCredentials(found, clock.wall())
}

/**
 * Selects the registries whose credentials are exported: the named ones, or those of the existing container (`before`) while
 * `cache.shareCredentials` allows it. Throws a MirrorError (exit 2) for an invalid name.
 */
export function selectCredentialHosts(
  requested: readonly string[] | undefined,
  before: readonly string[],
  { cache }: Pick<Config, 'cache'>,
): string[] {
  if (requested === undefined) return cache.shareCredentials ? [...before] : []
  return requested.length === 1 && requested[0]!.trim() === 'none' ? [] : parseCredentialHosts(requested)
}

/** Parses registries as users name them. Throws a MirrorError (exit 2) for an invalid name. */
function parseCredentialHosts(texts: readonly string[]): string[] {
  const hosts = texts.map((text) => {
    const host = parseRegistryHost(text.trim())
    if (host !== undefined) return toCanonicalRegistry(host)
    throw new MirrorError(`${JSON.stringify(text)} is not a registry's host name.`, {
      exit: exitCode.usage,
      hints: ['mirror up --runtime container --credentials registry.corp.example'],
    })
  })
  return [...new Set(hosts)]
}

/**
 * Throws a MirrorError (exit 2) when credentials are requested without `cache.shareCredentials`, because every client that
 * reaches the container uses them.
 */
export function assertCredentialsShared(hosts: readonly string[], { cache }: Pick<Config, 'cache'>): void {
  if (hosts.length === 0 || cache.shareCredentials) return
  throw new MirrorError('Credentials for a container need cache.shareCredentials.', {
    exit: exitCode.usage,
    hints: [
      'mirror.yaml: cache: {shareCredentials: true}   (every client that reaches the container uses them)',
      'Omit --credentials: clients pull private images from their registry themselves',
    ],
  })
}

/** Maps file names to texts and bytes. */
export type ExportedFiles = Readonly<Record<string, string | Uint8Array>>

interface ExportArchive {
  readonly files: ExportedFiles
  /** Names the instance of the container that receives the files. */
  readonly instance: string
  readonly token: string | undefined
  /** Identifies the container's user as `uid:gid`; no other may read the files. */
  readonly user: string
}

/** Creates the tar archive for the data folder: files 0600, folders 0700, owned by the container's user. */
export function createExportArchive({ files, instance, token, user }: ExportArchive): Promise<Buffer> {
  const [uid = 0, gid = 0] = user.split(':').map(Number)
  const owner = { uid, gid }
  const home = posix.relative(dataFolder, homeFolder)
  const all = posix.relative(dataFolder, exportFolder)
  const exported = posix.relative(dataFolder, getExportFolder(instance))
  const folders = [home, all, exported, `${exported}/docker`, ...(token === undefined ? [] : [`${home}/state`])]
  const toFolderEntry = (path: string): TarEntry => ({ path, mode: 0o700, ...owner, content: { kind: 'folder' } })
  const toFileEntry = (path: string, content: string | Uint8Array): TarEntry => ({
    path,
    mode: 0o600,
    ...owner,
    content: toTarFile(content),
  })
  return createTar([
    ...folders.map(toFolderEntry),
    ...Object.entries(files).map(([name, content]) => toFileEntry(`${exported}/${name}`, content)),
    ...(token === undefined ? [] : [toFileEntry(`${home}/state/token`, `${token}\n`)]),
  ])
}

/** Reads files of this machine. Throws a MirrorError (exit 2) for a file that cannot be read. */
export async function readExportedFiles(paths: Readonly<Record<string, string>>): Promise<ExportedFiles> {
  const entries = Object.entries(paths).map(async ([name, path]) => [name, await readExportedFile(path)] as const)
  return Object.fromEntries(await Promise.all(entries))
}

/** Hashes names and contents. */
export function hashFiles(files: ExportedFiles): string {
  const hash = createHash('sha256')
  for (const [name, content] of Object.entries(files)) hash.update(`${name}\0${content.length}\0`).update(content)
  return hash.digest('hex').slice(0, 16)
}

async function readExportedFile(path: string): Promise<Buffer> {
  try {
    return await readFile(path)
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    throw new MirrorError(
      `The file ${path}, which the configuration names, cannot be read: ${getFileFailureReason(error)}.`,
      {
        exit: exitCode.usage,
        cause: error,
      },
    )
  }
}

/** Sends the mirror in a container its addresses, after which it is not rolled back. */
export async function sendEndpoints(
  { containers }: DockerEngine,
  container: ContainerState,
  endpoints: Endpoints,
): Promise<void> {
  const files = { [exportedFileNames.endpoints]: JSON.stringify(endpoints) }
  const { id, user } = container
  const archive = await createExportArchive({ files, instance: getInstance(container) ?? '', token: undefined, user })
  await wrapDockerError('The container cannot receive its addresses', containers.unpack(id, dataFolder, archive))
}

/**
 * Exports again the credentials that were exported at the start. Returns their registries; undefined when no mirror runs in a
 * container. Throws a MirrorError when a credential cannot be read; the container keeps the old ones then.
 */
export async function refreshCredentials(
  surroundings: CommandEnvironment,
  clock: Clock,
): Promise<string[] | undefined> {
  const paths = mirrorPaths(surroundings)
  const state = await readState(paths.stateFile)
  if (state?.container === undefined) return undefined
  const { credentials } = state.container
  if (credentials.length === 0) return []
  const engine = await openEngine(surroundings, state.container.engine)
  const found = await findOwnContainer(engine, paths.stateDir)
  if (found === undefined) return undefined
  const config = await loadConfig({ ...surroundings, paths })
  const text = await exportCredentials(credentials, config, surroundings.env, clock)
  const archive = await createExportArchive({
    files: { [exportedFileNames.credentials]: text },
    instance: getInstance(found) ?? '',
    token: undefined,
    user: found.user,
  })
  await wrapDockerError(
    'The container cannot receive the credentials',
    engine.containers.unpack(found.id, dataFolder, archive),
  )
  const handedOverAt = new Date(clock.wall()).toISOString()
  // Checks the state again, because credential helpers take a while: another command may have stopped or replaced the mirror
  // since, and exports credentials itself.
  await withCommandLockIfFree({ stateDir: paths.stateDir, clock }, async () => {
    const current = await readState(paths.stateFile)
    if (current?.container?.id === state.container?.id && current?.container)
      await writeState(paths.stateFile, { ...current, container: { ...current.container, handedOverAt } })
  })
  return credentials
}

/** Limits how often commands refresh credentials, which costs a second. */
const refreshAfterMs = 10 * 60_000

/** Returns whether the exported credentials of a mirror in a container are due for a refresh. `now`: wall clock, ms. */
export async function isCredentialRefreshDue(surroundings: CommandEnvironment, now: number): Promise<boolean> {
  const { container } = (await readState(mirrorPaths(surroundings).stateFile)) ?? {}
  if (container === undefined || container.credentials.length === 0) return false
  const age = now - Date.parse(container.handedOverAt)
  // Counts a clock that was set back as due.
  return !(age >= 0 && age < refreshAfterMs)
}

/** Pairs a restored container with its record. */
interface RestoredContainer {
  readonly container: ContainerState
  readonly before: MirrorState
  /** Holds the ports that it was published on before. */
  readonly ports: readonly PublishedPort[]
}

/** Records that the container is the mirror again, and its addresses, whose free ports may have changed. */
export async function recordRestored(
  engine: DockerEngine,
  paths: MirrorPaths,
  restored: RestoredContainer,
): Promise<void> {
  const { container, before, ports } = restored
  const endpoints = movePorts(before.endpoints, ports, container.ports)
  await sendEndpoints(engine, container, endpoints)
  await writeState(paths.stateFile, { ...before, endpoints })
  const volume = before.container?.volume
  if (volume === undefined) await removeVolumeMarker(paths.stateDir)
  else await writeVolumeMarker(paths.stateDir, volume, engine.endpoint)
}

/** Replaces the ports in addresses of a container that was started again. */
function movePorts(
  { cache, registry, admin, networks }: Endpoints,
  before: readonly PublishedPort[],
  now: readonly PublishedPort[],
): Endpoints {
  const move = (text: string) => {
    const url = new URL(text)
    const inside = before.find(({ outside }) => String(outside) === url.port)?.inside
    const published = now.find((port) => port.inside === inside)
    return published === undefined ? text : text.replace(/:\d+$/, `:${published.outside}`)
  }
  return { cache: cache.map(move), registry: registry.map(move), admin: admin.map(move), networks }
}
