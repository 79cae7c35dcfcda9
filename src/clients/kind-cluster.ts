import { posix } from 'node:path'
import { MirrorError, exitCode } from '../lib/errors.ts'
import { caChange, caFileName, isCaFile } from './ca-file.ts'
import type { ConfigPlan, FileChange, MirrorForClient } from './client-config.ts'
import { registrySection, withConfigPath } from './containerd/config-toml.ts'
import type { FilesNow } from './files-now.ts'
import { isOurHostsToml } from './containerd/hosts-toml.ts'
import { hostsChanges, hostsFolders, localRegistryName, usualConfigPath, withoutHosts } from './node-hosts.ts'
import { isAtLeast } from './version.ts'
import { isOurHosting, renderHosting } from './local-registry-hosting.ts'

/** A node of a running cluster, as it was found. */
export interface KindNode {
  readonly name: string
  /** What its containerd really goes by, which may be its built-in default; none: it looks for no hosts.toml. */
  readonly configPaths: readonly string[]
  /** Where folders of this machine are mounted in it. */
  readonly mounts: readonly string[]
  /** Of its containerd; undefined when it does not say. */
  readonly version?: string | undefined
}

export interface KindClusterTarget {
  readonly cluster: string
  readonly nodes: readonly KindNode[]
  /** Where `files` has the ConfigMap about the registry; undefined: the cluster does not answer to kubectl. */
  readonly hosting: string | undefined
}

/** The file of a node, as a path among the files of all nodes. */
export function nodePath(node: string, path: string): string {
  return posix.join('/', node, path)
}

export const containerdConfig = '/etc/containerd/config.toml'

/**
 * A running cluster: in each node only what is missing. Throws a MirrorError (usage) for a node that has registries of its own in
 * the old way, or a mirror for everything of its own.
 */
export function planKindCluster(mirror: MirrorForClient, target: KindClusterTarget, files: FilesNow): ConfigPlan {
  const changes: FileChange[] = []
  const notes: string[] = []
  for (const node of target.nodes) {
    const plan = planNode(mirror, node, files)
    changes.push(...plan.changes)
    notes.push(...plan.notes)
  }
  const { registry } = mirror
  if (registry === undefined) return { changes, notes, todo: [] }
  const hosting = renderHosting(registry)
  const there = target.hosting === undefined ? undefined : files.text(target.hosting)
  if (target.hosting === undefined)
    return {
      changes,
      notes,
      todo: [`tell the cluster's tools about the registry: kubectl apply -f - <<'END'\n${hosting}END`],
    }
  if (there !== undefined && !isOurHosting(there))
    notes.push(`The cluster ${target.cluster} names a registry of its own to Tilt and skaffold, and keeps it.`)
  else changes.push(...files.change(target.hosting, hosting))
  return { changes, notes, todo: [] }
}

/** See ClientPlace.strip. */
export function stripKindCluster(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  target: KindClusterTarget,
  files: FilesNow,
): FileChange[] {
  const hosting = target.hosting !== undefined && isOurHosting(files.text(target.hosting) ?? '') ? [target.hosting] : []
  return [
    ...target.nodes.flatMap(({ name }) => withoutHosts(nodePath(name, '/'), mirror, files)),
    ...hosting.flatMap((path) => files.change(path, undefined)),
  ]
}

function planNode(mirror: MirrorForClient, node: KindNode, files: FilesNow): Pick<ConfigPlan, 'changes' | 'notes'> {
  const { name, configPaths, mounts } = node
  const configFile = nodePath(name, containerdConfig)
  const config = files.text(configFile) ?? ''
  const configPath = configPaths[0] ?? usualConfigPath
  const { oldKey } = registrySection(configFile, config)
  if (oldKey !== undefined)
    throw new MirrorError(`${configFile} sets ${oldKey}; with config_path beside it, containerd would pull nothing.`, {
      exit: exitCode.usage,
      hints: ['make the cluster again without that patch: mirror configure kind | kind create cluster --config -'],
    })
  const at = nodePath(name, configPath)
  const { missing, notes } = missingFolders(mirror, node, at, files)
  const changes = hostsChanges(missing, at, files, (...parts) => posix.join(...parts))
  if (configPaths.length > 0 || mounts.some((mount) => mount === containerdConfig)) return { changes, notes }
  return {
    changes: [...changes, ...files.change(configFile, withConfigPath(configFile, config, configPath, node.version))],
    notes: [...notes, `containerd in ${name} is told where to look (config_path), and restarted.`],
  }
}

function missingFolders(mirror: MirrorForClient, { name, mounts, version }: KindNode, at: string, files: FilesNow) {
  const notes: string[] = []
  const missing = hostsFolders(mirror, { referrers: isAtLeast(version, 2, 2) }).filter((folder) => {
    const file = posix.join(at, folder.name, 'hosts.toml')
    const there = files.text(file)
    const caFile = posix.join(posix.dirname(file), caFileName)
    if (there === folder.text && caChange(caFile, folder.ca, files).length === 0) return false
    if (mounts.some((mount) => nodePath(name, mount) === posix.dirname(file))) {
      notes.push(`${name} mounts ${folder.name} from this machine; mirror configure kind writes it there.`)
      return false
    }
    return true
  })
  const alias = mirror.registry === undefined ? undefined : localRegistryName(mirror.registry)
  // Certificates need not be text.
  const isOurs = (path: string) => isCaFile(path) || (path.endsWith('.toml') && isOurHostsToml(files.text(path) ?? ''))
  const own = files.paths.filter((path) => path.startsWith(`${at}/`) && !isOurs(path))
  const hosts = [...new Set(own.map((path) => path.slice(at.length + 1).split('/')[0]!))].filter(
    (host) => host !== alias,
  )
  if (hosts.length > 0)
    notes.push(`${name} keeps what it has been told about ${hosts.join(', ')}; the mirror is not asked for these.`)
  const isTaken = alias !== undefined && files.has(posix.join(at, alias, 'hosts.toml'))
  if (isTaken) notes.push(`${name} has a registry of its own as ${alias}, and keeps it.`)
  return { missing: isTaken ? missing.filter((folder) => folder.name === '_default') : missing, notes }
}
