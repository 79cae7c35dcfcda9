import { basename, dirname, join } from 'node:path'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { originOf } from '../../oci/reference.ts'
import { isAtLeast } from '../address.ts'
import { readToml, stringsOf } from '../edit/toml.ts'
import { caChange, caFileName, hostsToTrust, refuseOtherKinds } from '../files/kinds.ts'
import type { ConfigPlan, FileChange, FilesNow, MirrorForClient } from '../types.ts'
import { configPathLines, type ContainerdConfig, readContainerdConfig } from './config-toml.ts'
import {
  certificatesIn,
  folderNames,
  type HostsFolder,
  hostsFoldersIn,
  hostsTomlWithout,
  isOurFolder,
  isOurHostsToml,
  localRegistryName,
  renderHostsToml,
} from './hosts-toml.ts'

/** One containerd's files. Where two paths are given, `name` is what containerd calls what lies at `path` for us. */
export interface ContainerdTarget {
  /** The first folder that it looks into for a registry's own folder. */
  readonly hosts: { readonly name: string; readonly path: string }
  /** Other folders that it, or nerdctl, looks into; a folder in the first one hides its namesakes there. */
  readonly elsewhere: readonly string[]
  readonly configFile: { readonly name: string; readonly path: string }
  /** The files that this one imports, in the order in which they are read. */
  readonly imports: readonly { readonly name: string; readonly path: string }[]
  /** What `containerd config dump` printed; undefined: the file itself has to do. */
  readonly dump: string | undefined
  /** Of containerd; undefined when nobody knows. */
  readonly version: string | undefined
  /** Whether containerd, and all else that reads these files, knows the capability `referrers`. */
  readonly referrers: boolean
  readonly nerdctlFile: { readonly name: string; readonly path: string }
  /** A user's own, which no kubelet uses. */
  readonly rootless: boolean
}

/**
 * A hosts.toml for all registries and one for docker.io, or one for each registry where the user has folders that the one for
 * all would hide. Throws a MirrorError (usage) for a configuration that hosts.toml files cannot stand beside.
 * https://github.com/containerd/containerd/blob/main/docs/hosts.md
 */
export function planContainerd(mirror: MirrorForClient, target: ContainerdTarget, files: FilesNow): ConfigPlan {
  const { hosts, configFile, version } = target
  refuseOtherKinds(configFile.name, files.text(configFile.path) ?? '', {
    kinds: ['containerd'],
    expected: "containerd's config.toml",
  })
  const own = ownConfig(target, files)
  const config =
    target.dump === undefined ? own : readContainerdConfig({ name: configFile.name, text: target.dump }, version)
  if (config.oldKey !== undefined) throw oldWay(config.oldKey, target)
  const here = hostsFoldersIn(hosts.path, files)
  const users = target.elsewhere.flatMap((root) =>
    hostsFoldersIn(root, files)
      .filter((folder) => !isOurFolder(folder))
      .map(({ name }) => ({ name, path: join(root, name) })),
  )
  const usersDefault = here.find(
    ({ name, hosts }) => name === '_default' && hosts !== undefined && !isOurHostsToml(hosts),
  )
  const forAll = users.length === 0 && usersDefault === undefined
  const changes: FileChange[] = []
  const notes: string[] = []
  let mirrored = 0
  for (const name of [...(forAll ? ['_default'] : []), ...mirror.registries]) {
    const found = here.find((folder) => folderNames(name).includes(folder.name))
    // What has no folder of its own is the business of the one for all.
    if (forAll && found === undefined && !['_default', 'docker.io'].includes(name)) continue
    const hidden = users.find((folder) => folderNames(name).includes(folder.name))
    if (hidden) {
      notes.push(`${hidden.path} is yours, and stays in use: ${name} does not come through the mirror.`)
    } else if (found?.hosts !== undefined && !isOurHostsToml(found.hosts)) {
      notes.push(`${join(hosts.path, found.name)} is yours, and stays: ${name} does not come through the mirror.`)
    } else {
      changes.push(...hostsChange(mirror, name, found, target, files, notes))
      mirrored++
    }
  }
  if (mirrored === 0)
    throw new MirrorError('Nothing is left that containerd could get from the mirror.', {
      exit: exitCode.usage,
      hints: notes,
    })
  changes.push(...(forAll ? localRegistry(mirror, target, files) : []))
  for (const host of hostsToTrust(mirror)) changes.push(...caChange(caPath(host, hosts.path, files), mirror.ca, files))
  if (usersDefault)
    notes.push(
      `${join(hosts.path, '_default')} is yours. It no longer holds for registries that have a folder of their own.`,
    )
  if (users.length > 0)
    notes.push(`A folder for all registries would hide ${users[0]!.path}, so there is one for each that mirror knows.`)
  if (!mirror.fallback) notes.push('With --no-fallback nothing can be pushed to these registries either.')
  notes.push(`nerdctl reads these files, too; ctr only with --hosts-dir ${hosts.name}.`)
  return {
    changes,
    notes: [...notes, ...ineffective(config, own)],
    todo: [...switchOn(config, own, target, files, users), ...nerdctl(target, files)],
  }
}

/** What the files themselves say. */
function ownConfig({ configFile, imports, version }: ContainerdTarget, files: FilesNow): ContainerdConfig {
  const found = imports.filter(({ path }) => files.has(path))
  return readContainerdConfig(
    { name: configFile.name, text: files.text(configFile.path) ?? '' },
    version,
    found.map(({ name, path }) => ({ name, text: files.text(path)! })),
  )
}

/** What stands where containerd does not look, as long as it does not look there by another way. */
function ineffective({ configPaths }: ContainerdConfig, { notes, meantPaths }: ContainerdConfig): readonly string[] {
  return configPaths.length > 0 && meantPaths.every((path) => configPaths.includes(path)) ? [] : notes
}

/** Takes the mirror out of every hosts.toml of ours. */
export function stripContainerd(
  mirror: { readonly cache: string; readonly registry: string | undefined },
  hostsPath: string,
  files: FilesNow,
): FileChange[] {
  const hosts = files.paths
    .filter((path) => basename(path) === 'hosts.toml' && dirname(dirname(path)) === hostsPath)
    .flatMap((path) => {
      const text = files.text(path)!
      const url = /^localhost_\d+_$/.test(basename(dirname(path))) ? mirror.registry : mirror.cache
      return url !== undefined && isOurHostsToml(text)
        ? files.change(path, hostsTomlWithout(text, url, basename(dirname(path))))
        : []
    })
  return [
    ...hosts,
    ...hostsToTrust(mirror).flatMap((host) => caChange(caPath(host, hostsPath, files), undefined, files)),
  ]
}

/** In the host's own folder, where containerd also looks when it is asked for an image of that host. */
function caPath(host: string, hostsPath: string, files: FilesNow): string {
  const names = folderNames(host)
  const found = names.find((name) => files.paths.some((path) => dirname(path) === join(hostsPath, name)))
  return join(hostsPath, found ?? names.at(-1)!, caFileName)
}

/** What a hosts.toml calls it. */
function caIn({ cache, ca }: MirrorForClient, hostsPath: string, files: FilesNow): string | undefined {
  return ca && `../${basename(dirname(caPath(new URL(cache).host, hostsPath, files)))}/${caFileName}`
}

/** `name`: a registry, or `_default`; `found`: its folder, where it has one. */
function hostsChange(
  mirror: MirrorForClient,
  name: string,
  found: HostsFolder | undefined,
  { hosts, referrers }: ContainerdTarget,
  files: FilesNow,
  notes: string[],
): FileChange[] {
  const { cache, fallback } = mirror
  const folder = join(hosts.path, found?.name ?? folderNames(name)[0]!)
  const certificates = found ? certificatesIn(found.files) : {}
  if (Object.keys(certificates).length > 0)
    notes.push(`The certificates in ${folder} are named in its hosts.toml, or they would no longer be looked at.`)
  // Of all registries at once only containerd knows the address.
  const origin = name === '_default' ? undefined : originOf(name)
  const server = fallback ? origin : cache
  const mirrorCa = caIn(mirror, hosts.path, files)
  const text = renderHostsToml({
    ...(server !== undefined && { server }),
    mirror: cache,
    mirrorCa,
    referrers,
    ...certificates,
  })
  return files.change(join(folder, 'hosts.toml'), text)
}

/** Keeps images of the registry to push to from being looked for in the cache first. */
function localRegistry(mirror: MirrorForClient, { hosts, referrers }: ContainerdTarget, files: FilesNow): FileChange[] {
  const { registry } = mirror
  if (registry === undefined) return []
  const [name] = folderNames(localRegistryName(registry))
  const path = join(hosts.path, name!, 'hosts.toml')
  const text = files.text(path)
  if (text !== undefined && !isOurHostsToml(text)) return []
  return files.change(
    path,
    renderHostsToml({ server: registry, mirror: registry, referrers, mirrorCa: caIn(mirror, hosts.path, files) }),
  )
}

/** What makes containerd look at the files at all, unless it does. */
function switchOn(
  config: ContainerdConfig,
  own: ContainerdConfig,
  target: ContainerdTarget,
  files: FilesNow,
  users: readonly { readonly path: string }[],
): string[] {
  const { hosts, configFile, version, dump } = target
  const text = files.text(configFile.path)
  const format = text === undefined ? (isAtLeast(version, 2, 0) ? 3 : 2) : own.fileVersion
  const lines = [
    ...(text === undefined ? [`version = ${format}`] : []),
    ...configPathLines(format, hosts.name, version),
  ]
  const set = `${lines.map((line) => `\n  ${line}`).join('')}\nand restart it: sudo systemctl restart containerd`
  if (config.criOff || target.rootless) return []
  if (config.configPaths.length === 0) {
    const may = dump === undefined && text === undefined ? 'unless it does so by itself, ' : ''
    return [`For containerd to look into ${hosts.name}, ${may}put into ${own.file}:${set}`]
  }
  // Since 2.1 a list of folders may be taken for one folder, which does not exist.
  if (config.configPaths.length === 1) return []
  const move = users.length > 0 ? `Move ${users.map(({ path }) => path).join(', ')} to ${hosts.name}, and in` : 'In'
  return [
    `config_path names more than one folder, and versions since 2.1 may then read none. ${move} ${own.file} say:${set}`,
  ]
}

function nerdctl({ hosts, nerdctlFile }: ContainerdTarget, files: FilesNow): string[] {
  const text = files.text(nerdctlFile.path)
  const folders = text === undefined ? [] : stringsOf(readToml(nerdctlFile.name, text)['hosts_dir'])
  return folders.length === 0 || folders.includes(hosts.name)
    ? []
    : [`For nerdctl, add ${JSON.stringify(hosts.name)} to hosts_dir in ${nerdctlFile.name}.`]
}

function oldWay(key: string, { configFile, hosts }: ContainerdTarget): MirrorError {
  return new MirrorError(
    `${configFile.name} has ${key}, the old way: containerd refuses it beside hosts.toml files, and reads none without config_path.`,
    {
      exit: exitCode.usage,
      hints: [
        `write what is there as ${hosts.name}/<registry>/hosts.toml, or drop it`,
        `take ${key} out of ${configFile.name}, set config_path = ${JSON.stringify(hosts.name)} instead, restart containerd, and try again`,
      ],
    },
  )
}
