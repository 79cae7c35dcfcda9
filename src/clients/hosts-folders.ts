import { basename, dirname, join } from 'node:path'
import { caFileName } from './ca-file.ts'
import type { FilesNow } from './files-now.ts'
import { isOurHostsToml, type HostsFile } from './containerd/hosts-toml.ts'

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
