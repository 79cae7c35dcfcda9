import { basename, dirname, join } from 'node:path'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { originOf } from '../../oci/reference.ts'
import { isLoopback } from '../address.ts'
import { removeFromToml, renderToml, tableOf, type TomlPath, type TomlTable, tryToml } from '../edit/toml.ts'
import { caChange, caFileName, isCaFile, withoutOwnHeader, writtenByMirror } from '../files/kinds.ts'
import type { FileChange, FilesNow, MirrorForClient } from '../types.ts'

interface HostsFile {
  /** The registry's own address, which is asked last; undefined leaves it to the client. */
  readonly server?: string
  readonly mirror: string
  /**
   * Whether all who read the file know the capability `referrers`, as containerd 2.2 and Docker 29.1 do: others would pass over
   * the whole file.
   */
  readonly referrers?: boolean
  /** The file that says what to trust at the mirror, relative to the folder of this one; undefined: nothing in particular. */
  readonly mirrorCa?: string | undefined
  /** Other mirrors of this registry, to be asked after ours. */
  readonly others?: readonly string[]
  /** Paths of certificates that were in use for this registry. */
  readonly ca?: readonly string[]
  /** Pairs of a certificate and its key that this registry was shown. */
  readonly client?: readonly (readonly [string, string])[]
}

/**
 * A registry's hosts.toml: the mirror first, for reading only, or pushes would go to it as well.
 * https://github.com/containerd/containerd/blob/main/docs/hosts.md
 */
export function renderHostsToml({
  server,
  mirror,
  referrers = false,
  mirrorCa,
  others = [],
  ca = [],
  client,
}: HostsFile): string {
  const capabilities = ['pull', 'resolve', ...(referrers ? ['referrers'] : [])]
  const hosts = [mirror, ...others].map((url): [string, TomlTable] => [
    url,
    { capabilities, ...(url === mirror && mirrorCa !== undefined && { ca: mirrorCa }) },
  ])
  // What stands before the hosts is for the server, which may be the mirror as well.
  const serverCa = [...(server === mirror && mirrorCa !== undefined ? [mirrorCa] : []), ...ca]
  return (
    writtenByMirror +
    renderToml({
      ...(server !== undefined && { server }),
      ...(serverCa.length > 0 && { ca: serverCa }),
      ...(client !== undefined && { client: client.map((pair) => [...pair]) }),
      host: Object.fromEntries(hosts),
    })
  )
}

/** Whether the file was written by renderHostsToml, whatever became of it since. */
export function isOurHostsToml(text: string): boolean {
  return text.startsWith(writtenByMirror.slice(0, writtenByMirror.indexOf('.')))
}

/** Whether a hosts.toml, whoever wrote it, sends its clients to this mirror. */
export function namesMirror(text: string, mirror: string): boolean {
  return mirror in (read(text)?.host ?? {})
}

/**
 * A file of ours that somebody has changed, without our mirror; undefined when nothing of theirs is in it. As it is when it
 * cannot be read any more, or has no such mirror. `folder`: the name of the folder it lies in.
 */
export function hostsTomlWithout(text: string, mirror: string, folder: string): string | undefined {
  const found = read(text)
  if (found === undefined || !(mirror in found.host)) return text
  const { server } = found.all
  const isOurServer = server === undefined || server === mirror || server === originOf(registryOf(folder))
  const isAllOurs = Object.keys(found.host).length === 1 && Object.keys(found.all).every((key) => ourKeys.has(key))
  if (isAllOurs && isOurServer) return undefined
  const removed: TomlPath[] = server === mirror ? [['server'], ...caPathsIn(found.all)] : []
  const rest = removeFromToml(withoutOwnHeader(text), ['host', mirror], { blankLinesAbove: 'drop' })
  // Keep a file whole that is written in a way that was not foreseen.
  return removed.reduce<string | undefined>((left, path) => left && removeFromToml(left, path), rest) ?? text
}

/** The paths at which the root of a hosts.toml names our CA, the last one first. */
function caPathsIn({ ca }: TomlTable): TomlPath[] {
  const isOurs = (file: unknown) => typeof file === 'string' && file.endsWith(caFileName)
  if (!Array.isArray(ca)) return isOurs(ca) ? [['ca']] : []
  return ca.flatMap((file, at) => (isOurs(file) ? [['ca', at]] : [])).toReversed()
}

/** containerd spells `reg:5000` as `reg_5000_` as well. */
function registryOf(folder: string): string {
  return folder.replace(/_(\d+)_$/, ':$1')
}

const ourKeys: ReadonlySet<string> = new Set(['server', 'ca', 'client', 'host'])

function read(text: string): { all: TomlTable; host: TomlTable } | undefined {
  const all = tryToml(text)
  const host = tableOf(all?.['host'] ?? {})
  return all && host && { all, host }
}

/** A folder that containerd looks into for one registry, or for all: `_default`. */
export interface HostsFolder {
  readonly name: string
  /** Of its own hosts.toml, if it has one. */
  readonly hosts: string | undefined
  /** The names of all its files. */
  readonly files: readonly string[]
}

/** The folders below a root of hosts folders, as far as there is anything in them. */
export function hostsFoldersIn(root: string, files: FilesNow): HostsFolder[] {
  const below = files.paths.filter((path) => dirname(dirname(path)) === root)
  return [...new Set(below.map((path) => basename(dirname(path))))].map((name) => ({
    name,
    hosts: files.text(join(root, name, 'hosts.toml')),
    files: below.filter((path) => basename(dirname(path)) === name).map((path) => basename(path)),
  }))
}

/** Whether there is nothing in it but a hosts.toml of ours, or the mirror's CA. */
export function isOurFolder({ hosts, files }: HostsFolder): boolean {
  const others = files.filter((name) => name !== caFileName && name !== 'hosts.toml')
  return others.length === 0 && (hosts === undefined || isOurHostsToml(hosts))
}

/** The names of a registry's folder, in the order of containerd's search: `reg_5000_`, `reg:5000`. */
export function folderNames(registry: string): string[] {
  const underscored = registry.replace(/:(\d+)$/, '_$1_')
  return underscored === registry ? [registry] : [underscored, registry]
}

/**
 * What containerd and dockerd find by themselves in a folder as long as there is no hosts.toml: authorities as .crt, a client's
 * own as .cert with .key.
 */
export function certificatesIn(names: readonly string[]): Pick<HostsFile, 'ca' | 'client'> {
  const ca = names.filter((name) => name.endsWith('.crt') && name !== caFileName)
  const client = names
    .filter((name) => name.endsWith('.cert'))
    .map((name) => [name, name.replace(/\.cert$/, '.key')] as const)
    .filter(([, key]) => names.includes(key))
  return { ...(ca.length > 0 && { ca }), ...(client.length > 0 && { client }) }
}

/** A folder below a containerd's `config_path`, with the hosts.toml in it and the CA that this names. */
interface NodeHostsFolder {
  readonly name: string
  readonly text: string
  readonly ca: string | undefined
}

/** Where nodes of kind and minikube, and most others, keep these folders. */
export const usualConfigPath = '/etc/containerd/certs.d'

/**
 * The folders that make a containerd use the mirror for every registry, and find the registry for pushed images under the name
 * that it has on this machine. A colon in a folder's name would end the path in `docker run --volume`, so the port is written in
 * containerd's other way. `referrers`: see HostsFile.
 */
export function hostsFolders(
  { cache, registry, ca, fallback }: MirrorForClient,
  { referrers }: { readonly referrers: boolean },
): NodeHostsFolder[] {
  // In each folder: nodes may mount them one by one.
  const mirrorCa = ca && caFileName
  const everything = renderHostsToml({ ...(!fallback && { server: cache }), mirror: cache, mirrorCa, referrers })
  const folders = [{ name: '_default', text: everything, ca }]
  if (registry !== undefined)
    folders.push({
      name: `localhost_${portOf(registry)}_`,
      // Without it the node's own port would be asked as well, and its refusal be all that the user gets to see.
      text: renderHostsToml({ server: registry, mirror: registry, mirrorCa, referrers }),
      ca,
    })
  return folders
}

/**
 * The changes that put the folders below `configPath`; `join` knows the separator there. Throws a MirrorError (usage) for a
 * hosts.toml that somebody else has put in the same place.
 */
export function hostsChanges(
  folders: readonly NodeHostsFolder[],
  configPath: string,
  files: FilesNow,
  join: (...parts: string[]) => string,
): FileChange[] {
  return folders.flatMap(({ name, text, ca }) => {
    const path = join(configPath, name, 'hosts.toml')
    const there = files.text(path)
    if (there === undefined || there === text || isOurHostsToml(there))
      return [...files.change(path, text), ...caChange(join(configPath, name, caFileName), ca, files)]
    throw new MirrorError(`${path} is not the mirror's, so it is left alone.`, {
      exit: exitCode.usage,
      hints: [`remove ${path}, if it is no longer needed, and try again`],
    })
  })
}

/** The changes that take what is ours out of the files below a folder; `mirror` is what was written then. */
export function withoutHosts(
  configPath: string,
  { cache, registry }: { readonly cache: string; readonly registry: string | undefined },
  files: FilesNow,
): FileChange[] {
  return files.paths.flatMap((path) => {
    if (path.startsWith(configPath) && isCaFile(path)) return caChange(path, undefined, files)
    const text = path.startsWith(configPath) && /[\\/]hosts\.toml$/.test(path) ? files.text(path) : undefined
    if (text === undefined || !isOurHostsToml(text)) return []
    const folder = path.split(/[\\/]/).at(-2)!
    const url = folder === '_default' ? cache : registry
    return url === undefined ? [] : files.change(path, hostsTomlWithout(text, url, folder))
  })
}

/** `localhost:5001`: how this machine calls the registry for pushed images. */
export function localRegistryName(registry: string): string {
  return `localhost:${portOf(registry)}`
}

function portOf(url: string): string {
  const { port, protocol } = new URL(url)
  return port !== '' ? port : protocol === 'https:' ? '443' : '80'
}

/** How virtual machines call the one they run on. Other names in `.internal` are a company's own. */
const hostInVm = /^host\.(docker|containers|minikube|lima|k3d|orb|rancher-desktop)\.internal$/

/**
 * How images of the registry for pushes are called where there are no folders to say otherwise: on its own machine, and in a
 * virtual machine on it, by `localhost` and its port, elsewhere by its address.
 */
export function registryName(registry: string): string {
  const isNear = isLoopback(registry) || hostInVm.test(new URL(registry).hostname)
  return isNear ? localRegistryName(registry) : hostInNames(registry)
}

/** The host of an address as it stands in the name of an image: with a port where only that tells it from a repository. */
export function hostInNames(address: string): string {
  const { host, protocol } = new URL(address)
  const bare = !/[.:]/.test(host) && host !== 'localhost'
  return bare ? `${host}:${protocol === 'http:' ? 80 : 443}` : host
}
