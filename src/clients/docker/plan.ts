import { BlockList, isIP } from 'node:net'
import { basename, dirname, join } from 'node:path'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { toRegistryUrl } from '../../oci/reference.ts'
import { parseVersion } from '../address.ts'
import { findCertificates, removeFromHostsToml, isMirrorHostsToml, renderHostsToml } from '../containerd/hosts-toml.ts'
import { planCaFile, caFileName, getHostsToTrust } from '../files/kinds.ts'
import type { ConfigPlan, FileChange, FilesSnapshot, MirrorForClient } from '../types.ts'
import {
  getDockerForm,
  type DockerForm,
  type DockerTarget,
  minFoldersMajor,
  getInsecureRegistries,
  isSameUrl,
  getListedMirrors,
  planDaemonJson,
  stripDaemonJson,
} from './daemon-json.ts'

/**
 * Plans the files of an engine that pulls through the mirror. Throws MirrorError (usage) for files and flags that leave no safe
 * way. https://docs.docker.com/engine/daemon/configure-registry/
 */
export function planDocker(mirror: MirrorForClient, target: DockerTarget, files: FilesSnapshot): ConfigPlan {
  const form = getDockerForm(target)
  if (form !== 'folders') assertMirrorsSuffice(mirror, form)
  const forBuilds = buildsNeedFolders(mirror, target)
  const parts = [
    ...(form === 'folders' ? [] : [planDaemonJson(mirror, target, files)]),
    ...(form === 'mirrors' && !forBuilds ? [] : [planHostsFolders(mirror, target, files)]),
  ]
  const { certsFolder } = target
  const ca =
    certsFolder === undefined
      ? []
      : listCaFiles(mirror, certsFolder).flatMap((path) => planCaFile(path, mirror.ca, files))
  return {
    changes: [...parts.flatMap(({ changes }) => changes), ...ca],
    notes: [
      describeForm(form, mirror, target),
      ...(form === 'mirrors' && forBuilds ? ['docker build reads the folders, which make it trust the mirror.'] : []),
      ...parts.flatMap(({ notes }) => notes),
    ],
    todo: [...parts.flatMap(({ todo }) => todo), ...(certsFolder === undefined ? listTrustSteps(mirror) : [])],
  }
}

/**
 * Reports whether `docker build` uses the mirror only with folders. It reads folders with either image store, and applies no CA of
 * the mirror to registry-mirrors.
 */
function buildsNeedFolders({ ca }: MirrorForClient, { certsFolder, version }: DockerTarget): boolean {
  return ca !== undefined && certsFolder !== undefined && (parseVersion(version)?.[0] ?? 0) >= minFoldersMajor
}

/** Lists the manual steps for an engine whose folders are not on this machine. */
export function listTrustSteps({ cache, ca }: Pick<MirrorForClient, 'cache' | 'ca'>): string[] {
  if (ca === undefined) return []
  const file = `~/.docker/certs.d/${new URL(cache).host}/ca.crt`
  return [`Make the engine trust the mirror's CA (Docker Desktop: save it as ${file}, then restart)`]
}

/** Lists the CA files of the mirror's hosts, which dockerd reads at each pull. */
function listCaFiles(mirror: Pick<MirrorForClient, 'cache' | 'registry'>, certsFolder: string): string[] {
  return getHostsToTrust(mirror).map((host) => join(certsFolder, host, caFileName))
}

/** Removes the mirror from files that the user has changed since. */
export function stripDocker(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  target: Pick<DockerTarget, 'daemonJson' | 'certsFolder'>,
  files: FilesSnapshot,
): FileChange[] {
  const { daemonJson, certsFolder } = target
  const lists = stripDaemonJson(mirror, daemonJson, files)
  if (certsFolder === undefined) return lists
  const ca = listCaFiles(mirror, certsFolder).flatMap((path) => planCaFile(path, undefined, files))
  return [...lists, ...stripHostsFolders(mirror, certsFolder, files), ...ca]
}

function assertMirrorsSuffice(mirror: MirrorForClient, form: DockerForm): void {
  const folders = 'mirror configure docker --client-version 28 --image-store containerd   (for such an engine)'
  const refuse = (message: string, hints: string[]): never => {
    throw new MirrorError(message, { exit: exitCode.usage, hints: form === 'both' ? [...hints, folders] : hints })
  }
  // Refuse another default, because dockerd sends its mirrors no registry name and expects images of Docker Hub.
  if (mirror.defaultUpstream !== 'docker.io')
    refuse(
      `Docker would pull from ${mirror.defaultUpstream} instead of Docker Hub: registry-mirrors apply to Docker Hub only, and ` +
        'the mirror sends requests without a registry name to its defaultUpstream.',
      ['Remove "defaultUpstream" from mirror.yaml, then: mirror up'],
    )
  if (new URL(mirror.cache).pathname !== '/')
    refuse(`dockerd accepts no mirror with a path: ${mirror.cache}`, ['Pass --mirror without a path'])
  if (!mirror.fallback)
    refuse('dockerd always falls back to Docker Hub when its mirrors fail; this cannot be disabled.', [
      'Omit --no-fallback',
    ])
}

function describeForm(form: DockerForm, { cache }: MirrorForClient, { version, imageStore }: DockerTarget): string {
  const { host } = new URL(cache)
  const what = `Docker${version === undefined ? '' : ` ${version}`}`
  const others = `Other registries: docker pull ${host}/ghcr.io/OWNER/IMAGE, or Docker 28 with the containerd image store.`
  switch (form) {
    case 'folders':
      return `${what} with the containerd image store: pulls from every registry use the mirror; no restart needed.`
    case 'mirrors': {
      const why = imageStore === 'classic' ? ' with the classic image store' : ''
      return `${what}${why} mirrors Docker Hub only. ${others}`
    }
    case 'both':
      return (
        'It is unknown which form this Docker reads, so both forms are written: registry-mirrors for Docker Hub, and ' +
        'a folder per registry for Docker 28 and later with the containerd image store.'
      )
  }
}

/**
 * Plans a folder with a hosts.toml for each registry. `_default` is never written: the engine drops the insecure mark of a
 * registry with two endpoints, so the user's insecure registries would become unreachable.
 */
function planHostsFolders(mirror: MirrorForClient, target: DockerTarget, files: FilesSnapshot): ConfigPlan {
  const root = target.certsFolder!
  const insecure = [
    ...target.insecure,
    ...(target.flags['insecure-registry'] ?? []),
    ...getInsecureRegistries(target.daemonJson, files.getText(target.daemonJson)),
  ]
  const others = listOtherMirrors(mirror, target, files)
  const changes: FileChange[] = []
  const notes: string[] = []
  for (const registry of mirror.registries) {
    const folder = join(root, registry)
    const path = join(folder, 'hosts.toml')
    const current = files.getText(path)
    if (isInsecure(registry, insecure)) {
      notes.push(`${registry} is one of your insecure registries and is not mirrored.`)
    } else if (current !== undefined && !isMirrorHostsToml(current)) {
      notes.push(`${path} was not written by mirror and stays unchanged: pulls from ${registry} bypass the mirror.`)
    } else {
      const certificates = findCertificates(listNames(folder, files))
      const server = mirror.fallback ? toRegistryUrl(registry) : mirror.cache
      const isHub = registry === 'docker.io'
      const mirrorCa = mirror.ca && `../${new URL(mirror.cache).host}/${caFileName}`
      const { referrers = false } = target
      const hosts = { server, mirror: mirror.cache, mirrorCa, referrers, ...(isHub && { others }), ...certificates }
      changes.push(...files.change(path, renderHostsToml(hosts)))
      if (isHub && others.length > 0)
        notes.push(
          `${others.join(' and ')} are copied to ${path}, because the engine ignores registry-mirrors when this file exists.`,
        )
      if (Object.keys(certificates).length > 0)
        notes.push(
          `The certificates in ${folder} are listed in its hosts.toml, because the engine would ignore them otherwise.`,
        )
    }
  }
  if (files.has(join(root, '_default', 'hosts.toml')))
    notes.push(`${join(root, '_default', 'hosts.toml')} no longer applies to registries that have their own folder.`)
  if (!mirror.fallback) notes.push('With --no-fallback, pushes to these registries fail as well.')
  return { changes, notes, todo: [] }
}

/** Removes the mirror from each hosts.toml that mirror wrote. */
function stripHostsFolders({ cache }: { readonly cache: string }, root: string, files: FilesSnapshot): FileChange[] {
  return files.paths
    .filter((path) => basename(path) === 'hosts.toml' && dirname(dirname(path)) === root)
    .flatMap((path) => {
      const text = files.getText(path)!
      return isMirrorHostsToml(text)
        ? files.change(path, removeFromHostsToml(text, cache, basename(dirname(path))))
        : []
    })
}

/** Lists the mirrors of Docker Hub from daemon.json and flags, which the engine ignores once a hosts.toml exists. */
function listOtherMirrors({ cache }: MirrorForClient, target: DockerTarget, files: FilesSnapshot): string[] {
  const text = files.getText(target.daemonJson)
  const named = [
    ...target.mirrors,
    ...(target.flags['registry-mirror'] ?? []),
    ...((text === undefined ? undefined : getListedMirrors(target.daemonJson, text)) ?? []),
  ]
  return [...new Set(named.map((url) => url.replace(/\/+$/, '')))].filter((url) => !isSameUrl(url, cache))
}

function listNames(folder: string, files: FilesSnapshot): string[] {
  return files.paths.filter((path) => dirname(path) === folder).map((path) => basename(path))
}

/** Reports whether a registry is insecure by its name, by a network in CIDR form, or because it is on loopback. */
function isInsecure(registry: string, entries: readonly string[]): boolean {
  const { hostname } = new URL(`http://${registry}`)
  const address = hostname.replace(/^\[|\]$/g, '')
  if (hostname === 'localhost' || entries.some((entry) => entry.toLowerCase() === registry)) return true
  const family = isIP(address)
  if (family === 0) return false
  const networks = new BlockList()
  for (const entry of [...entries, '127.0.0.0/8', '::1/128']) {
    const [, network, bits] = /^([0-9a-fA-F.:]+)\/(\d{1,3})$/.exec(entry) ?? []
    const version = isIP(network ?? '')
    // Ignore any other entry, which dockerd reads as a name.
    if (version !== 0 && Number(bits) <= (version === 4 ? 32 : 128))
      networks.addSubnet(network!, Number(bits), version === 4 ? 'ipv4' : 'ipv6')
  }
  return networks.check(address, family === 4 ? 'ipv4' : 'ipv6')
}
