import { BlockList, isIP } from 'node:net'
import { basename, dirname, join } from 'node:path'
import { caFileName } from './ca-file.ts'
import type { ConfigPlan, FileChange, MirrorForClient } from './client-config.ts'
import { insecureIn, isSameUrl, mirrorsIn } from './docker/daemon-json.ts'
import type { DockerTarget } from './docker-target.ts'
import type { FilesNow } from './files-now.ts'
import { certificatesIn } from './hosts-folders.ts'
import { hostsTomlWithout, isOurHostsToml, renderHostsToml } from './containerd/hosts-toml.ts'
import { originOf } from '../oci/reference.ts'

/**
 * A hosts.toml in a folder for each registry. Never `_default`: of a registry with two endpoints the engine forgets that it is
 * insecure, and the user's insecure registries would no longer be reached.
 */
export function planHostsFolders(mirror: MirrorForClient, target: DockerTarget, files: FilesNow): ConfigPlan {
  const root = target.certsFolder!
  const insecure = [
    ...target.insecure,
    ...(target.flags['insecure-registry'] ?? []),
    ...insecureIn(target.daemonJson, files.text(target.daemonJson)),
  ]
  const others = otherMirrors(mirror, target, files)
  const changes: FileChange[] = []
  const notes: string[] = []
  for (const registry of mirror.registries) {
    const folder = join(root, registry)
    const path = join(folder, 'hosts.toml')
    const current = files.text(path)
    if (isInsecure(registry, insecure)) {
      notes.push(`${registry} is one of your insecure registries, and stays as it is.`)
    } else if (current !== undefined && !isOurHostsToml(current)) {
      notes.push(`${path} is not ours, and stays as it is: ${registry} does not come through the mirror.`)
    } else {
      const certificates = certificatesIn(namesIn(folder, files))
      const server = mirror.fallback ? originOf(registry) : mirror.cache
      const isHub = registry === 'docker.io'
      const mirrorCa = mirror.ca && `../${new URL(mirror.cache).host}/${caFileName}`
      const { referrers = false } = target
      const hosts = { server, mirror: mirror.cache, mirrorCa, referrers, ...(isHub && { others }), ...certificates }
      changes.push(...files.change(path, renderHostsToml(hosts)))
      if (isHub && others.length > 0)
        notes.push(`${others.join(' and ')} are named in ${path} as well: registry-mirrors are not asked beside it.`)
      if (Object.keys(certificates).length > 0)
        notes.push(`The certificates in ${folder} are named in its hosts.toml, or they would no longer be looked at.`)
    }
  }
  if (files.has(join(root, '_default', 'hosts.toml')))
    notes.push(
      `${join(root, '_default', 'hosts.toml')} no longer holds for registries that have a folder of their own.`,
    )
  if (!mirror.fallback) notes.push('With --no-fallback nothing can be pushed to these registries either.')
  return { changes, notes, todo: [] }
}

/** Takes the mirror out of every hosts.toml of ours. */
export function stripHostsFolders({ cache }: { readonly cache: string }, root: string, files: FilesNow): FileChange[] {
  return files.paths
    .filter((path) => basename(path) === 'hosts.toml' && dirname(dirname(path)) === root)
    .flatMap((path) => {
      const text = files.text(path)!
      return isOurHostsToml(text) ? files.change(path, hostsTomlWithout(text, cache, basename(dirname(path)))) : []
    })
}

/** The mirrors of Docker Hub that it has by daemon.json or by a flag, and would no longer be asked. */
function otherMirrors({ cache }: MirrorForClient, target: DockerTarget, files: FilesNow): string[] {
  const text = files.text(target.daemonJson)
  const named = [
    ...target.mirrors,
    ...(target.flags['registry-mirror'] ?? []),
    ...((text === undefined ? undefined : mirrorsIn(target.daemonJson, text)) ?? []),
  ]
  return [...new Set(named.map((url) => url.replace(/\/+$/, '')))].filter((url) => !isSameUrl(url, cache))
}

function namesIn(folder: string, files: FilesNow): string[] {
  return files.paths.filter((path) => dirname(path) === folder).map((path) => basename(path))
}

/** By name, by a network in CIDR form, or because it is on this machine. */
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
    // dockerd takes what is no network for a name.
    if (version !== 0 && Number(bits) <= (version === 4 ? 32 : 128))
      networks.addSubnet(network!, Number(bits), version === 4 ? 'ipv4' : 'ipv6')
  }
  return networks.check(address, family === 4 ? 'ipv4' : 'ipv6')
}
