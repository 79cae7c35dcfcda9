import { basename, dirname, join } from 'node:path'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { toRegistryUrl } from '../../oci/reference.ts'
import { isLoopbackUrl } from '../address.ts'
import { removeFromToml, renderToml, asTable, type TomlPath, type TomlTable, tryReadToml } from '../edit/toml.ts'
import { planCaFile, caFileName, isCaFile, removeMirrorHeader, mirrorHeader } from '../files/kinds.ts'
import type { FileChange, FilesSnapshot, MirrorForClient } from '../types.ts'

/** Holds the contents of a registry's hosts.toml. */
interface HostsFile {
  /** Holds the registry's own URL, which the client asks last; undefined leaves it to the client. */
  readonly server?: string
  readonly mirror: string
  /**
   * Is true if all readers of the file know the capability `referrers`, as containerd 2.2 and Docker 29.1 do. Others ignore the
   * whole file.
   */
  readonly referrers?: boolean
  /** Holds the path of the mirror's CA, relative to the folder of this file; undefined for a mirror that needs none. */
  readonly mirrorCa?: string | undefined
  /** Holds the URLs of other mirrors of this registry; the client asks them after `mirror`. */
  readonly others?: readonly string[]
  /** Holds the paths of CA certificates that are in use for this registry. */
  readonly ca?: readonly string[]
  /** Holds the pairs of a client certificate and its key for this registry. */
  readonly client?: readonly (readonly [string, string])[]
}

/**
 * Renders a registry's hosts.toml. The mirror comes first and has no capability `push`, so that pushes go to the registry.
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
  // Repeat the mirror's CA for the server if the mirror is the server, too: keys before the hosts apply to the server.
  const serverCa = [...(server === mirror && mirrorCa !== undefined ? [mirrorCa] : []), ...ca]
  return (
    mirrorHeader +
    renderToml({
      ...(server !== undefined && { server }),
      ...(serverCa.length > 0 && { ca: serverCa }),
      ...(client !== undefined && { client: client.map((pair) => [...pair]) }),
      host: Object.fromEntries(hosts),
    })
  )
}

/** Returns whether renderHostsToml wrote the file, also if it was changed since. */
export function isMirrorHostsToml(text: string): boolean {
  return text.startsWith(mirrorHeader.slice(0, mirrorHeader.indexOf('.')))
}

/** Returns whether a hosts.toml names this mirror as a host. */
export function namesMirror(text: string, mirror: string): boolean {
  return mirror in (parseHostsToml(text)?.host ?? {})
}

/**
 * Removes the mirror from a hosts.toml that the user changed; undefined if nothing else is in it. Returns the text unchanged if
 * it is not valid, does not name the mirror, or cannot be changed safely. `folder`: the name of the file's folder.
 */
export function removeFromHostsToml(text: string, mirror: string, folder: string): string | undefined {
  const found = parseHostsToml(text)
  if (found === undefined || !(mirror in found.host)) return text
  const { server } = found.root
  const isWrittenServer = server === undefined || server === mirror || server === toRegistryUrl(toRegistryName(folder))
  const isAllWritten =
    Object.keys(found.host).length === 1 && Object.keys(found.root).every((key) => writtenKeys.has(key))
  if (isAllWritten && isWrittenServer) return undefined
  const removed: TomlPath[] = server === mirror ? [['server'], ...findCaPaths(found.root)] : []
  const rest = removeFromToml(removeMirrorHeader(text), ['host', mirror], { blankLinesAbove: 'drop' })
  return (
    removed.reduce<string | undefined>((remaining, path) => remaining && removeFromToml(remaining, path), rest) ?? text
  )
}

/** Returns the paths at which the root of a hosts.toml names the mirror's CA, the last one first. */
function findCaPaths({ ca }: TomlTable): TomlPath[] {
  if (!Array.isArray(ca)) return isCaName(ca) ? [['ca']] : []
  return ca.flatMap((file, at) => (isCaName(file) ? [['ca', at]] : [])).toReversed()
}

function isCaName(file: unknown): boolean {
  return typeof file === 'string' && file.endsWith(caFileName)
}

/** Returns the registry of a folder: `reg:5000` for `reg_5000_`. */
function toRegistryName(folder: string): string {
  return folder.replace(/_(\d+)_$/, ':$1')
}

const writtenKeys: ReadonlySet<string> = new Set(['server', 'ca', 'client', 'host'])

function parseHostsToml(text: string): { root: TomlTable; host: TomlTable } | undefined {
  const root = tryReadToml(text)
  const host = asTable(root?.['host'] ?? {})
  return root && host && { root, host }
}

/** Holds a folder that containerd reads for one registry, or for all registries: `_default`. */
export interface HostsFolder {
  readonly name: string
  /** Holds the text of its hosts.toml; undefined if it has none. */
  readonly hosts: string | undefined
  /** Holds the names of its files. */
  readonly files: readonly string[]
}

/** Finds the folders below `root` that have files in them. */
export function findHostsFolders(root: string, files: FilesSnapshot): HostsFolder[] {
  const below = files.paths.filter((path) => dirname(dirname(path)) === root)
  return [...new Set(below.map((path) => basename(dirname(path))))].map((name) => ({
    name,
    hosts: files.getText(join(root, name, 'hosts.toml')),
    files: below.filter((path) => basename(dirname(path)) === name).map((path) => basename(path)),
  }))
}

/** Returns whether a folder has no files but a hosts.toml that mirror wrote, and the mirror's CA. */
export function isMirrorFolder({ hosts, files }: HostsFolder): boolean {
  const others = files.filter((name) => name !== caFileName && name !== 'hosts.toml')
  return others.length === 0 && (hosts === undefined || isMirrorHostsToml(hosts))
}

/** Returns the possible names of a registry's folder, in the order of containerd's search: `reg_5000_`, `reg:5000`. */
export function toFolderNames(registry: string): string[] {
  const underscored = registry.replace(/:(\d+)$/, '_$1_')
  return underscored === registry ? [registry] : [underscored, registry]
}

/**
 * Finds the certificates that containerd and dockerd read from a folder without a hosts.toml: CAs as .crt, client certificates as
 * .cert with .key. `names`: the names of the folder's files.
 */
export function findCertificates(names: readonly string[]): Pick<HostsFile, 'ca' | 'client'> {
  const ca = names.filter((name) => name.endsWith('.crt') && name !== caFileName)
  const client = names
    .filter((name) => name.endsWith('.cert'))
    .map((name) => [name, name.replace(/\.cert$/, '.key')] as const)
    .filter(([, key]) => names.includes(key))
  return { ...(ca.length > 0 && { ca }), ...(client.length > 0 && { client }) }
}

/** Holds a folder below containerd's `config_path`, with the text of its hosts.toml and the CA (PEM) that it names. */
interface NodeHostsFolder {
  readonly name: string
  readonly text: string
  readonly ca: string | undefined
}

/** Holds the `config_path` of nodes of kind, minikube and most others. */
export const defaultConfigPath = '/etc/containerd/certs.d'

/**
 * Returns the folders that make containerd use the mirror for every registry, and find the registry for pushed images by its name
 * on this machine. Their names have no colon, because a colon ends the path in `docker run --volume`. `referrers`: see HostsFile.
 */
export function getNodeHostsFolders(
  { cache, registry, ca, fallback }: MirrorForClient,
  { referrers }: { readonly referrers: boolean },
): NodeHostsFolder[] {
  // Put the CA into each folder: nodes may mount the folders one by one.
  const mirrorCa = ca && caFileName
  const defaultText = renderHostsToml({ ...(!fallback && { server: cache }), mirror: cache, mirrorCa, referrers })
  const folders = [{ name: '_default', text: defaultText, ca }]
  if (registry !== undefined)
    folders.push({
      name: `localhost_${getPort(registry)}_`,
      // Name the server: else containerd also asks the node's own port, and reports only that failure.
      text: renderHostsToml({ server: registry, mirror: registry, mirrorCa, referrers }),
      ca,
    })
  return folders
}

/**
 * Plans the folders below `configPath`. `join` joins paths in the style of that machine. Throws a MirrorError (usage) for a
 * hosts.toml that mirror did not write.
 */
export function planNodeHostsFolders(
  folders: readonly NodeHostsFolder[],
  configPath: string,
  files: FilesSnapshot,
  join: (...parts: string[]) => string,
): FileChange[] {
  return folders.flatMap(({ name, text, ca }) => {
    const path = join(configPath, name, 'hosts.toml')
    const existing = files.getText(path)
    if (existing === undefined || existing === text || isMirrorHostsToml(existing))
      return [...files.change(path, text), ...planCaFile(join(configPath, name, caFileName), ca, files)]
    throw new MirrorError(`${path} was not written by mirror, so it is left alone.`, {
      exit: exitCode.usage,
      hints: [`remove ${path} if it is no longer needed, then run the command again`],
    })
  })
}

/** Plans the removal of the mirror from the files below a folder. The URLs are those that were written. */
export function planHostsRemoval(
  configPath: string,
  { cache, registry }: { readonly cache: string; readonly registry: string | undefined },
  files: FilesSnapshot,
): FileChange[] {
  return files.paths.flatMap((path) => {
    if (path.startsWith(configPath) && isCaFile(path)) return planCaFile(path, undefined, files)
    const text = path.startsWith(configPath) && /[\\/]hosts\.toml$/.test(path) ? files.getText(path) : undefined
    if (text === undefined || !isMirrorHostsToml(text)) return []
    const folder = path.split(/[\\/]/).at(-2)!
    const url = folder === '_default' ? cache : registry
    return url === undefined ? [] : files.change(path, removeFromHostsToml(text, url, folder))
  })
}

/** Returns the name of the registry for pushed images on this machine: `localhost:5001`. */
export function getLocalRegistryName(registry: string): string {
  return `localhost:${getPort(registry)}`
}

function getPort(url: string): string {
  const { port, protocol } = new URL(url)
  return port !== '' ? port : protocol === 'https:' ? '443' : '80'
}

/** Matches names of the host in virtual machines. Other names in `.internal` belong to companies. */
const vmHostNames = /^host\.(docker|containers|minikube|lima|k3d|orb|rancher-desktop)\.internal$/

/**
 * Returns the name of the registry for pushed images where no hosts folders give it another one: `localhost` with its port on its
 * own machine and in a virtual machine there, else its address.
 */
export function getRegistryName(registry: string): string {
  const isSameMachine = isLoopbackUrl(registry) || vmHostNames.test(new URL(registry).hostname)
  return isSameMachine ? getLocalRegistryName(registry) : toImageHost(registry)
}

/** Returns the host of a URL as an image name has it: with a port where only that tells it from a repository. */
export function toImageHost(address: string): string {
  const { host, protocol } = new URL(address)
  const needsPort = !/[.:]/.test(host) && host !== 'localhost'
  return needsPort ? `${host}:${protocol === 'http:' ? 80 : 443}` : host
}
