import { basename, dirname, join } from 'node:path'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { toRegistryUrl } from '../../oci/reference.ts'
import { isAtLeast } from '../address.ts'
import { readToml, asStrings } from '../edit/toml.ts'
import { planCaFile, caFileName, getHostsToTrust, assertFileKind } from '../files/kinds.ts'
import type { ConfigPlan, FileChange, FilesSnapshot, Finding, MirrorForClient } from '../types.ts'
import { renderConfigPathLines, type ContainerdConfig, readContainerdConfig } from './config-toml.ts'
import {
  findCertificates,
  toFolderNames,
  type HostsFolder,
  findHostsFolders,
  removeFromHostsToml,
  isMirrorFolder,
  isMirrorHostsToml,
  getLocalRegistryName,
  renderHostsToml,
} from './hosts-toml.ts'
import { inspectContainerdConfig, inspectHiddenFolders } from './inspect-config.ts'
import { inspectHostsFolders, toContainerdReader } from './inspect-hosts.ts'

/** Locates the files of one containerd. `name`: the path for containerd; `path`: the path on this machine. */
export interface ContainerdTarget {
  /** Holds the first root of hosts folders that containerd reads. */
  readonly hosts: { readonly name: string; readonly path: string }
  /** Holds other roots that containerd or nerdctl reads. A folder in the first root hides folders of the same name there. */
  readonly otherFolders: readonly string[]
  readonly configFile: { readonly name: string; readonly path: string }
  /** Holds the files that `configFile` imports, in the order in which containerd reads them. */
  readonly imports: readonly { readonly name: string; readonly path: string }[]
  /** Holds the output of `containerd config dump`; undefined if only the files are known. */
  readonly dump: string | undefined
  /** Holds the version of containerd; undefined if unknown. */
  readonly version: string | undefined
  /** Is true if all readers of these files know the capability `referrers`. */
  readonly referrers: boolean
  readonly nerdctlFile: { readonly name: string; readonly path: string }
  /** Is true if it is a user's rootless containerd, which no kubelet uses. */
  readonly rootless: boolean
}

/**
 * Plans a hosts.toml for all registries and one for docker.io. Where the user has folders that the one for all would hide, plans
 * one for each registry instead. Throws a MirrorError (usage) for a configuration that does not allow hosts.toml files.
 * https://github.com/containerd/containerd/blob/main/docs/hosts.md
 */
export function planContainerd(mirror: MirrorForClient, target: ContainerdTarget, files: FilesSnapshot): ConfigPlan {
  const { hosts, configFile, version } = target
  assertFileKind(configFile.name, files.getText(configFile.path) ?? '', {
    kinds: ['containerd'],
    expected: "containerd's config.toml",
  })
  const own = readFiles(target, files)
  const config =
    target.dump === undefined ? own : readContainerdConfig({ name: configFile.name, text: target.dump }, version)
  if (config.oldKey !== undefined) throw createOldConfigError(config.oldKey, target)
  const existing = findHostsFolders(hosts.path, files)
  const userFolders = target.otherFolders.flatMap((root) =>
    findHostsFolders(root, files)
      .filter((folder) => !isMirrorFolder(folder))
      .map(({ name }) => ({ name, path: join(root, name) })),
  )
  const userDefault = existing.find(
    ({ name, hosts }) => name === '_default' && hosts !== undefined && !isMirrorHostsToml(hosts),
  )
  const usesDefaultFolder = userFolders.length === 0 && userDefault === undefined
  const changes: FileChange[] = []
  const notes: string[] = []
  let mirrored = 0
  for (const name of [...(usesDefaultFolder ? ['_default'] : []), ...mirror.registries]) {
    const found = existing.find((folder) => toFolderNames(name).includes(folder.name))
    // Leave a registry without a folder to the folder for all.
    if (usesDefaultFolder && found === undefined && !['_default', 'docker.io'].includes(name)) continue
    const userFolder = userFolders.find((folder) => toFolderNames(name).includes(folder.name))
    if (userFolder) {
      notes.push(`${userFolder.path} is yours, and stays in use: pulls from ${name} bypass the mirror.`)
    } else if (found?.hosts !== undefined && !isMirrorHostsToml(found.hosts)) {
      notes.push(`${join(hosts.path, found.name)} is yours, and stays: pulls from ${name} bypass the mirror.`)
    } else {
      changes.push(...planHostsToml(mirror, name, found, target, files, notes))
      mirrored++
    }
  }
  if (mirrored === 0)
    throw new MirrorError('No registry is left that containerd could use the mirror for.', {
      exit: exitCode.usage,
      hints: notes,
    })
  changes.push(...(usesDefaultFolder ? planLocalRegistry(mirror, target, files) : []))
  for (const host of getHostsToTrust(mirror))
    changes.push(...planCaFile(getCaPath(host, hosts.path, files), mirror.ca, files))
  if (userDefault)
    notes.push(
      `${join(hosts.path, '_default')} is yours. It no longer holds for registries that have a folder of their own.`,
    )
  if (userFolders.length > 0)
    notes.push(
      `A folder for all registries would hide ${userFolders[0]!.path}, so there is one for each that mirror knows.`,
    )
  if (!mirror.fallback) notes.push('With --no-fallback nothing can be pushed to these registries either.')
  notes.push(`nerdctl reads these files, too; ctr only with --hosts-dir ${hosts.name}.`)
  return {
    changes,
    notes: [...notes, ...listIneffectiveNotes(config, own)],
    todo: [...listConfigPathSteps(config, own, target, files, userFolders), ...listNerdctlSteps(target, files)],
  }
}

/** Finds the known faults of a containerd's files. */
export function inspectContainerd(
  target: ContainerdTarget,
  files: FilesSnapshot,
  cache: string | undefined,
): readonly Finding[] {
  const { hosts, otherFolders, configFile, imports, version, dump } = target
  const isInUse = findHostsFolders(hosts.path, files).some((folder) => isMirrorHostsToml(folder.hosts ?? ''))
  const config = {
    main: { name: configFile.name, text: files.getText(configFile.path) ?? '' },
    imports: imports.flatMap(({ name, path }) => (files.has(path) ? [{ name, text: files.getText(path)! }] : [])),
    dump,
    version,
    hosts: isInUse ? hosts.name : undefined,
    restart: 'sudo systemctl restart containerd',
    isWritten: false,
  }
  return [
    ...inspectContainerdConfig(config),
    ...inspectHostsFolders([hosts.path], toContainerdReader(version), files, cache),
    ...inspectHiddenFolders([hosts.path, ...otherFolders], files),
  ]
}

/** Reads the configuration from the files. */
function readFiles({ configFile, imports, version }: ContainerdTarget, files: FilesSnapshot): ContainerdConfig {
  const found = imports.filter(({ path }) => files.has(path))
  return readContainerdConfig(
    { name: configFile.name, text: files.getText(configFile.path) ?? '' },
    version,
    found.map(({ name, path }) => ({ name, text: files.getText(path)! })),
  )
}

/** Returns the notes on sections without effect, unless containerd has their folders from another section. */
function listIneffectiveNotes(
  { configPaths }: ContainerdConfig,
  { notes, ineffectivePaths }: ContainerdConfig,
): readonly string[] {
  return configPaths.length > 0 && ineffectivePaths.every((path) => configPaths.includes(path)) ? [] : notes
}

/** Plans the removal of the mirror from every hosts.toml that mirror wrote. The URLs are those that were written. */
export function stripContainerd(
  mirror: { readonly cache: string; readonly registry: string | undefined },
  hostsPath: string,
  files: FilesSnapshot,
): FileChange[] {
  const hosts = files.paths
    .filter((path) => basename(path) === 'hosts.toml' && dirname(dirname(path)) === hostsPath)
    .flatMap((path) => {
      const text = files.getText(path)!
      const url = /^localhost_\d+_$/.test(basename(dirname(path))) ? mirror.registry : mirror.cache
      return url !== undefined && isMirrorHostsToml(text)
        ? files.change(path, removeFromHostsToml(text, url, basename(dirname(path))))
        : []
    })
  return [
    ...hosts,
    ...getHostsToTrust(mirror).flatMap((host) => planCaFile(getCaPath(host, hostsPath, files), undefined, files)),
  ]
}

/** Returns the path of the mirror's CA: in the folder of its host, which containerd reads for images of that host, too. */
function getCaPath(host: string, hostsPath: string, files: FilesSnapshot): string {
  const names = toFolderNames(host)
  const found = names.find((name) => files.paths.some((path) => dirname(path) === join(hostsPath, name)))
  return join(hostsPath, found ?? names.at(-1)!, caFileName)
}

/** Returns the path of the mirror's CA as a hosts.toml names it; undefined without a CA. */
function getRelativeCaPath(
  { cache, ca }: MirrorForClient,
  hostsPath: string,
  files: FilesSnapshot,
): string | undefined {
  return ca && `../${basename(dirname(getCaPath(new URL(cache).host, hostsPath, files)))}/${caFileName}`
}

/** Plans one hosts.toml. `name`: a registry, or `_default`; `found`: its existing folder. Adds to `notes`. */
function planHostsToml(
  mirror: MirrorForClient,
  name: string,
  found: HostsFolder | undefined,
  { hosts, referrers }: ContainerdTarget,
  files: FilesSnapshot,
  notes: string[],
): FileChange[] {
  const { cache, fallback } = mirror
  const folder = join(hosts.path, found?.name ?? toFolderNames(name)[0]!)
  const certificates = found ? findCertificates(found.files) : {}
  if (Object.keys(certificates).length > 0)
    notes.push(`The certificates in ${folder} are named in its hosts.toml: containerd ignores others beside it.`)
  // Omit the server for all registries: only containerd knows each address.
  const origin = name === '_default' ? undefined : toRegistryUrl(name)
  const server = fallback ? origin : cache
  const mirrorCa = getRelativeCaPath(mirror, hosts.path, files)
  const text = renderHostsToml({
    ...(server !== undefined && { server }),
    mirror: cache,
    mirrorCa,
    referrers,
    ...certificates,
  })
  return files.change(join(folder, 'hosts.toml'), text)
}

/** Plans the hosts.toml of the registry for pushed images: without it containerd asks the cache first. */
function planLocalRegistry(
  mirror: MirrorForClient,
  { hosts, referrers }: ContainerdTarget,
  files: FilesSnapshot,
): FileChange[] {
  const { registry } = mirror
  if (registry === undefined) return []
  const [name] = toFolderNames(getLocalRegistryName(registry))
  const path = join(hosts.path, name!, 'hosts.toml')
  const text = files.getText(path)
  if (text !== undefined && !isMirrorHostsToml(text)) return []
  return files.change(
    path,
    renderHostsToml({
      server: registry,
      mirror: registry,
      referrers,
      mirrorCa: getRelativeCaPath(mirror, hosts.path, files),
    }),
  )
}

/** Returns the instructions to make containerd read hosts.toml files; none if it reads them. */
function listConfigPathSteps(
  config: ContainerdConfig,
  own: ContainerdConfig,
  target: ContainerdTarget,
  files: FilesSnapshot,
  userFolders: readonly { readonly path: string }[],
): string[] {
  const { hosts, configFile, version, dump } = target
  const text = files.getText(configFile.path)
  const format = text === undefined ? (isAtLeast(version, 2, 0) ? 3 : 2) : own.fileVersion
  const lines = [
    ...(text === undefined ? [`version = ${format}`] : []),
    ...renderConfigPathLines(format, hosts.name, version),
  ]
  const instructions = `${lines.map((line) => `\n  ${line}`).join('')}\nand restart it: sudo systemctl restart containerd`
  if (config.criOff || target.rootless) return []
  if (config.configPaths.length === 0) {
    const condition = dump === undefined && text === undefined ? 'unless it does so by itself, ' : ''
    return [`To make containerd read ${hosts.name}, ${condition}put into ${own.file}:${instructions}`]
  }
  // Warn about a list of folders: containerd 2.1 and later may take it for one folder that does not exist.
  if (config.configPaths.length === 1) return []
  const move =
    userFolders.length > 0 ? `Move ${userFolders.map(({ path }) => path).join(', ')} to ${hosts.name}, and in` : 'In'
  return [
    `config_path names more than one folder, and versions since 2.1 may then read none. ${move} ${own.file} say:${instructions}`,
  ]
}

function listNerdctlSteps({ hosts, nerdctlFile }: ContainerdTarget, files: FilesSnapshot): string[] {
  const text = files.getText(nerdctlFile.path)
  const folders = text === undefined ? [] : asStrings(readToml(nerdctlFile.name, text)['hosts_dir'])
  return folders.length === 0 || folders.includes(hosts.name)
    ? []
    : [`For nerdctl, add ${JSON.stringify(hosts.name)} to hosts_dir in ${nerdctlFile.name}.`]
}

function createOldConfigError(key: string, { configFile, hosts }: ContainerdTarget): MirrorError {
  return new MirrorError(
    `${configFile.name} has ${key}, the old way: containerd refuses it beside hosts.toml files, and reads none without config_path.`,
    {
      exit: exitCode.usage,
      hints: [
        `move these settings to ${hosts.name}/<registry>/hosts.toml, or drop them`,
        `remove ${key} from ${configFile.name}, set config_path = ${JSON.stringify(hosts.name)} instead, restart containerd, then run the command again`,
      ],
    },
  )
}
