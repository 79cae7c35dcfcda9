import { MirrorError, exitCode } from '../lib/errors.ts'
import { caChange, caFileName, isCaFile } from './ca-file.ts'
import type { FileChange, MirrorForClient } from './client-config.ts'
import type { FilesNow } from './files-now.ts'
import { hostsTomlWithout, isOurHostsToml, renderHostsToml } from './containerd/hosts-toml.ts'

/** A folder below a containerd's `config_path`, with the hosts.toml in it and the CA that this names. */
export interface NodeHostsFolder {
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
