import { join } from 'node:path'
import { createDockerEngine } from '../../docker/dockerode-engine.ts'
import { type DockerEndpoint, renderDockerHost } from '../../docker/endpoint.ts'
import type { DockerEngineInfo } from '../../docker/engine.ts'
import { getErrno, MirrorError } from '../../lib/errors.ts'
import { namesMirror } from '../containerd/hosts-toml.ts'
import { localFiles } from '../files/local.ts'
import type { FilePort, Observation, Reason } from '../types.ts'
import { type DockerTarget, getDockerForm, getListedMirrors, isSameUrl } from './daemon-json.ts'
import { type DockerInstallation, findDockerd, listBuildSteps } from './engines.ts'
import { getReloadCommand } from './reload.ts'

interface ObservedDocker {
  readonly installation: DockerInstallation
  readonly target: DockerTarget
  /** Is undefined when no engine answers. */
  readonly endpoint: DockerEndpoint | undefined
}

/** Compares the engine's own list, its daemon.json and its folder for Docker Hub with the mirror's address. */
export async function observeDocker(
  { installation, target, endpoint }: ObservedDocker,
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
  const dockerd = await findDockerd(endpoint)
  const reload = getReloadCommand(dockerd, installation.kind === 'rootless')
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
    todo: isStale
      ? [`${reload}   (dockerd reads its file again, no containers stop; --reload does it for you)`]
      : await listBuildSteps(dockerd, info.version, file.names === true ? daemonJson : undefined),
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
