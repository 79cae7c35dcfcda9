import { join, posix, resolve } from 'node:path'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { isAtLeast } from '../address.ts'
import { registrySection, withConfigPath } from '../containerd/config-toml.ts'
import { configPaths, nodeContainerd, pullInNode } from '../containerd/cri.ts'
import {
  hostsChanges,
  hostsFolders,
  isOurHostsToml,
  localRegistryName,
  usualConfigPath,
  withoutHosts,
} from '../containerd/hosts-toml.ts'
import { caChange, caFileName, isCaFile } from '../files/kinds.ts'
import { localFiles } from '../files/local.ts'
import { configMapFile, hostingConfigMap, joinedFiles, nodeFiles } from '../files/remote.ts'
import type {
  ClientLocation,
  ConfigPlan,
  ConfigTarget,
  ConfigTargetDetails,
  FileChange,
  FilePort,
  FilesNow,
  Machine,
  MirrorForClient,
} from '../types.ts'
import { planKind, stripKind } from './cluster-file.ts'
import { type FoundNode, isOurHosting, type KindNodes, kindNodes, renderHosting } from './nodes.ts'

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

interface KindClusterTarget {
  readonly cluster: string
  readonly nodes: readonly KindNode[]
  /** Where `files` has the ConfigMap about the registry; undefined: the cluster does not answer to kubectl. */
  readonly hosting: string | undefined
}

/** The file of a node, as a path among the files of all nodes. */
function nodePath(node: string, path: string): string {
  return posix.join('/', node, path)
}

const containerdConfig = '/etc/containerd/config.toml'

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

/** See ConfigTarget.strip. */
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

/** What is known of a cluster; all but how its nodes were found. */
interface KindCluster {
  readonly name: string
  readonly nodes: readonly KindNode[]
  /** The node whose kubectl speaks for the cluster; undefined when it does not answer. */
  readonly speaker: string | undefined
}

// Where the ConfigMap is, among the folders of the nodes; no node has such a name.
const objects = 'kubernetes'
const hosting = `/${objects}/${hostingConfigMap.namespace}/${hostingConfigMap.name}.yaml`

/** Looks at a running cluster. Throws MirrorError (missing) when there is none of this name. */
export async function findKindCluster(nodes: KindNodes, name: string): Promise<KindCluster> {
  const found = (await nodes.list(name)).filter(({ isRunning }) => isRunning)
  if (found.length === 0)
    throw new MirrorError(`No kind cluster ${JSON.stringify(name)} is running.`, {
      exit: exitCode.missing,
      hints: ['kind get clusters', 'mirror configure kind | kind create cluster --config -'],
    })
  const speaker = found.find(({ isControlPlane }) => isControlPlane)?.name
  return {
    name,
    nodes: await Promise.all(
      found.map(async (node) => ({
        name: node.name,
        configPaths: await configPaths(nodes, node.name),
        version: await nodeContainerd(nodes, node.name),
        mounts: node.mounts.map(({ destination }) => destination),
      })),
    ),
    speaker: speaker !== undefined && (await answersKubectl(nodes, speaker)) ? speaker : undefined,
  }
}

/** A running cluster, whose nodes are configured one by one. */
export function kindClusterTarget(
  nodes: KindNodes,
  { name, nodes: found, speaker }: KindCluster,
  home: ClientLocation,
): ConfigTarget {
  const target = { cluster: name, nodes: found, hosting: speaker && hosting }
  const names = found.map((node) => node.name)
  const ofNodes = names.map((node) => [node, nodeFiles(node, (args, input) => nodes.exec(node, args, input))])
  const ofCluster =
    speaker && configMapFile(hostingConfigMap.name, hostingConfigMap.namespace, kubectlIn(nodes, speaker))
  return {
    id: `cluster ${name}`,
    title: `the nodes of the running cluster ${name}`,
    details: { cluster: name, program: nodes.program, nodes: names.join(' '), ...(speaker && { speaker }) },
    location: home,
    files: joinedFiles(Object.fromEntries([...ofNodes, ...(ofCluster ? [[objects, ofCluster]] : [])])),
    readAtEachPull: true,
    async isGone() {
      try {
        return (await nodes.list(name)).length === 0
      } catch (error) {
        if (error instanceof MirrorError) return false
        throw error
      }
    },
    wants: {
      files: [...names.map((node) => nodePath(node, containerdConfig)), ...(speaker ? [hosting] : [])],
      trees: found.map((node) => nodePath(node.name, node.configPaths[0] ?? '/etc/containerd/certs.d')),
    },
    plan: (mirror, files) => planKindCluster(mirror, target, files),
    strip: (mirror, files) => stripKindCluster(mirror, target, files),
    async settle(paths) {
      for (const node of names) {
        if (!paths.includes(nodePath(node, containerdConfig))) continue
        const result = await nodes.exec(node, ['systemctl', 'restart', 'containerd'])
        if (result?.exitCode !== 0)
          throw new MirrorError(`containerd in ${node} was not restarted: ${result?.stderr.trim() ?? ''}`, {
            exit: exitCode.missing,
            hints: [`${nodes.program} exec ${node} systemctl restart containerd`],
          })
      }
    },
    async pull(image) {
      const failures = []
      for (const node of names) failures.push(await pullInNode(nodes, node, image))
      return { failed: failures.filter((failure) => failure !== undefined).join('\n') || undefined }
    },
    reasons: [
      {
        why: `the cluster ${name} is not configured`,
        fix: `mirror configure kind --cluster ${name}`,
        isUnconfigured: true,
      },
      {
        why: 'its containerd runs with an older configuration',
        fix: `${nodes.program} exec ${names[0]} systemctl restart containerd`,
      },
      {
        why: 'the mirror has moved to another address',
        fix: `mirror configure kind --cluster ${name}`,
        isUnconfigured: true,
      },
      {
        why: 'the nodes ask their proxy for the mirror: kind exempts only mirror.svc and the addresses of their network',
        fix: `${nodes.program} exec ${names[0]} env | grep -i proxy`,
      },
      {
        why: 'containerd refuses hosts.toml, which only its log says',
        fix: `${nodes.program} exec ${names[0]} journalctl --unit containerd --no-pager --lines 50`,
      },
    ],
  }
}

/** The place that was configured, without asking anybody. */
export function recallKindCluster(machine: Machine, details: ConfigTargetDetails, home: ClientLocation): ConfigTarget {
  const { cluster = '', program = 'docker', nodes = '', speaker } = details
  const known = nodes.split(' ').map((name) => ({ name, configPaths: [], mounts: [] }))
  return kindClusterTarget(kindNodes(machine, program), { name: cluster, nodes: known, speaker }, home)
}

// A node has a kubectl of its own, of the right version and with every right.
function kubectlIn(nodes: KindNodes, node: string) {
  const kubectl = ['kubectl', '--kubeconfig', '/etc/kubernetes/admin.conf']
  return (args: readonly string[], input?: string) => nodes.exec(node, [...kubectl, ...args], input)
}

async function answersKubectl(nodes: KindNodes, node: string): Promise<boolean> {
  const result = await kubectlIn(nodes, node)(['get', 'namespace', hostingConfigMap.namespace, '--output', 'name'])
  return result?.exitCode === 0 && result.stdout.trim() !== ''
}

/** Clusters to be made: the folders that they mount, and the user's cluster file where there is one. */
export function kindFilesTarget(
  machine: Machine,
  nodes: KindNodes,
  file: string | undefined,
  home: ClientLocation,
): ConfigTarget {
  const folder = hostsFolder(machine)
  const target = { folder, file, join: (...parts: string[]) => join(...parts) }
  return {
    id: file === undefined ? 'new clusters' : `file ${file}`,
    title: file === undefined ? 'new clusters (a cluster file on stdout)' : `the cluster file ${file}`,
    details: file === undefined ? {} : { file },
    location: home,
    files: machine.detached ? localFiles : keepingMounted(nodes),
    ...(file === undefined && { ours: true as const }),
    readAtEachPull: true,
    wants: { files: file === undefined ? [] : [file], trees: [folder] },
    plan(mirror, files) {
      if (/[:\n]/.test(folder.replace(/^[A-Za-z]:(?=\\)/, '')))
        throw new MirrorError(`kind cannot mount ${folder}: a colon ends a path there.`, {
          exit: exitCode.usage,
          hints: [
            'MIRROR_HOME=… mirror configure kind   (a folder without a colon)',
            'mirror configure kind --cluster NAME',
          ],
        })
      return planKind(mirror, target, files)
    },
    strip: (mirror, files) => stripKind(mirror, target, files),
    async pull(image) {
      const mounting = (await nodes.list()).filter((node) => node.isRunning && mounts(node, folder))
      if (mounting.length === 0) return { failed: `No running node of kind mounts ${folder}.` }
      const failures = []
      for (const { name } of mounting) failures.push(await pullInNode(nodes, name, image))
      return { failed: failures.filter((failure) => failure !== undefined).join('\n') || undefined }
    },
    reasons: [
      {
        why: 'no cluster was made with this configuration',
        fix: `mirror configure kind | kind create cluster --config -`,
      },
      { why: 'the cluster was made without it', fix: 'mirror configure kind --cluster NAME' },
      {
        why: 'the mirror has moved to another address',
        fix: 'mirror configure kind > /dev/null',
        isUnconfigured: true,
      },
      { why: 'the mirror does not serve the network of the nodes', fix: 'mirror status' },
      {
        why: 'the nodes ask their proxy for the mirror: kind exempts only mirror.svc and the addresses of their network',
        fix: 'mirror up   (gives the nodes such an address)',
      },
    ],
  }
}

/** The path of the user's file, which may be given relative to where they are. */
export function clusterFile({ cwd }: Machine, file: string | undefined): string | undefined {
  return file === undefined ? undefined : resolve(cwd, file)
}

/** Where the folders lie that nodes mount: below our state, which with `--root` is below that. */
function hostsFolder({ detached, home, stateDir }: Machine): string {
  return join(detached ? join(home, '.local', 'state', 'mirror') : stateDir, 'kind', 'certs.d')
}

/**
 * Files of this machine, except that a folder which some cluster mounts stays, empty: without it the cluster would not start
 * again after a reboot.
 */
function keepingMounted(nodes: KindNodes): FilePort {
  return {
    ...localFiles,
    async removeFolder(path) {
      if (!(await isMounted(path))) await localFiles.removeFolder(path)
    },
  }

  async function isMounted(path: string): Promise<boolean> {
    try {
      return (await nodes.list()).some((node) => mounts(node, path))
    } catch (error) {
      if (!(error instanceof MirrorError)) throw error
      // Nobody can say: an empty folder that stays harms less than one that is missed.
      return true
    }
  }
}

function mounts({ mounts }: FoundNode, path: string): boolean {
  return mounts.some(({ source }) => source === path || source.startsWith(join(path, '/')))
}
