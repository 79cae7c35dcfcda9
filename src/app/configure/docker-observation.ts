import { join } from 'node:path'
import type { FilePort } from '../../clients/file-port.ts'
import { isSameUrl, mirrorsIn } from '../../clients/docker/daemon-json.ts'
import { dockerForm } from '../../clients/docker-target.ts'
import { namesMirror } from '../../clients/containerd/hosts-toml.ts'
import { localFiles } from '../../clients/files/local.ts'
import { MirrorError, errnoOf } from '../../lib/errors.ts'
import type { DockerEngineInfo } from '../../docker/engine.ts'
import { findDockerd } from '../../runtime/dockerd-process.ts'
import { createDockerodeEngine } from '../../docker/dockerode.ts'
import { hostOf } from '../../docker/endpoint.ts'
import type { Observation, Reason } from '../../clients/types.ts'
import type { DockerPlaceOptions } from '../../clients/docker/place.ts'
import { reloadCommand } from './docker-reload.ts'

/** What the engine, its daemon.json and its folder for Docker Hub say of a mirror. */
export async function observeDocker(
  { site, target, endpoint }: DockerPlaceOptions,
  cache: string,
): Promise<Observation> {
  const { daemonJson, certsFolder } = target
  const hostsToml = certsFolder === undefined ? undefined : join(certsFolder, 'docker.io', 'hosts.toml')
  const info = endpoint && (await createDockerodeEngine(endpoint).info())
  const file = await look(localFiles, daemonJson, (text) => listed(mirrorsIn(daemonJson, text) ?? [], cache))
  const folder = hostsToml === undefined ? undefined : await look(localFiles, hostsToml, (text) => inHosts(text, cache))
  const saw = [
    ...(endpoint === undefined ? [] : [sayInfo(info, hostOf(endpoint))]),
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
