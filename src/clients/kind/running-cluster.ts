import { posix } from 'node:path'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { isAtLeast } from '../address.ts'
import { readRegistrySection, setConfigPath } from '../containerd/config-toml.ts'
import { getNodeConfigPaths, getNodeContainerdVersion, pullInNode } from '../containerd/cri.ts'
import {
  planNodeHostsFolders,
  getNodeHostsFolders,
  isMirrorHostsToml,
  getLocalRegistryName,
  defaultConfigPath,
  planHostsRemoval,
} from '../containerd/hosts-toml.ts'
import { planCaFile, caFileName, isCaFile } from '../files/kinds.ts'
import { createConfigMapFile, registryConfigMap, joinFilePorts, createNodeFiles } from '../files/remote.ts'
import type {
  ClientLocation,
  ConfigPlan,
  ConfigTarget,
  ConfigTargetDetails,
  FileChange,
  FilesSnapshot,
  Machine,
  MirrorForClient,
} from '../types.ts'
import { inspectKindNodes } from './inspect.ts'
import {
  type FoundNode,
  isOwnHostingConfigMap,
  type KindNode,
  type KindNodes,
  openKindNodes,
  renderHostingConfigMap,
} from './nodes.ts'

const containerdConfig = '/etc/containerd/config.toml'

/** Names the folder of Kubernetes objects among the folders of the nodes; no node has this name. */
const objectsFolder = 'kubernetes'
const hostingPath = `/${objectsFolder}/${registryConfigMap.namespace}/${registryConfigMap.name}.yaml`

interface KindClusterTarget {
  readonly cluster: string
  readonly nodes: readonly KindNode[]
  /** Holds the path of the hosting ConfigMap among the target's files; undefined when the cluster does not answer kubectl. */
  readonly hosting: string | undefined
}

/** Returns the path of a node's file among the files of all nodes. */
function getNodePath(node: string, path: string): string {
  return posix.join('/', node, path)
}

/**
 * Plans the nodes of a running cluster: only the missing files of each. Throws MirrorError (usage) for a node with registries in
 * the deprecated config.toml form, or with its own mirror for all registries.
 */
export function planKindCluster(mirror: MirrorForClient, target: KindClusterTarget, files: FilesSnapshot): ConfigPlan {
  const changes: FileChange[] = []
  const notes: string[] = []
  for (const node of target.nodes) {
    const plan = planNode(mirror, node, files)
    changes.push(...plan.changes)
    notes.push(...plan.notes)
  }
  const { registry } = mirror
  if (registry === undefined) return { changes, notes, todo: [] }
  const hosting = renderHostingConfigMap(registry)
  const current = target.hosting === undefined ? undefined : files.getText(target.hosting)
  if (target.hosting === undefined)
    return {
      changes,
      notes,
      todo: [`announce the registry to the cluster's tools: kubectl apply -f - <<'END'\n${hosting}END`],
    }
  if (current !== undefined && !isOwnHostingConfigMap(current))
    notes.push(`The cluster ${target.cluster} already announces another registry to Tilt and skaffold; it stays.`)
  else changes.push(...files.change(target.hosting, hosting))
  return { changes, notes, todo: [] }
}

/** Implements ConfigTarget.strip. */
export function stripKindCluster(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  target: KindClusterTarget,
  files: FilesSnapshot,
): FileChange[] {
  const hosting =
    target.hosting !== undefined && isOwnHostingConfigMap(files.getText(target.hosting) ?? '') ? [target.hosting] : []
  return [
    ...target.nodes.flatMap(({ name }) => planHostsRemoval(getNodePath(name, '/'), mirror, files)),
    ...hosting.flatMap((path) => files.change(path, undefined)),
  ]
}

function planNode(
  mirror: MirrorForClient,
  node: KindNode,
  files: FilesSnapshot,
): Pick<ConfigPlan, 'changes' | 'notes'> {
  const { name, configPaths, mounts } = node
  const configFile = getNodePath(name, containerdConfig)
  const config = files.getText(configFile) ?? ''
  const configPath = configPaths[0] ?? defaultConfigPath
  const { oldKey } = readRegistrySection(configFile, config)
  if (oldKey !== undefined)
    throw new MirrorError(
      `${configFile} sets ${oldKey}; with config_path as well, containerd would reject all pulls.`,
      {
        exit: exitCode.usage,
        hints: ['recreate the cluster without that patch: mirror configure kind | kind create cluster --config -'],
      },
    )
  const at = getNodePath(name, configPath)
  const { missing, notes } = findMissingFolders(mirror, node, at, files)
  const changes = planNodeHostsFolders(missing, at, files, (...parts) => posix.join(...parts))
  if (configPaths.length > 0 || mounts.some((mount) => mount === containerdConfig)) return { changes, notes }
  return {
    changes: [...changes, ...files.change(configFile, setConfigPath(configFile, config, configPath, node.version))],
    notes: [...notes, `containerd in ${name} gets a config_path, and is restarted.`],
  }
}

function findMissingFolders(
  mirror: MirrorForClient,
  { name, mounts, version }: KindNode,
  at: string,
  files: FilesSnapshot,
) {
  const notes: string[] = []
  const missing = getNodeHostsFolders(mirror, { referrers: isAtLeast(version, 2, 2) }).filter((folder) => {
    const file = posix.join(at, folder.name, 'hosts.toml')
    const current = files.getText(file)
    const caFile = posix.join(posix.dirname(file), caFileName)
    if (current === folder.text && planCaFile(caFile, folder.ca, files).length === 0) return false
    if (mounts.some((mount) => getNodePath(name, mount) === posix.dirname(file))) {
      notes.push(`${name} mounts ${folder.name} from this machine; mirror configure kind writes it there.`)
      return false
    }
    return true
  })
  const alias = mirror.registry === undefined ? undefined : getLocalRegistryName(mirror.registry)
  // Recognize certificates by name, because they may be binary.
  const isOwn = (path: string) =>
    isCaFile(path) || (path.endsWith('.toml') && isMirrorHostsToml(files.getText(path) ?? ''))
  const foreign = files.paths.filter((path) => path.startsWith(`${at}/`) && !isOwn(path))
  const hosts = [...new Set(foreign.map((path) => path.slice(at.length + 1).split('/')[0]!))].filter(
    (host) => host !== alias,
  )
  if (hosts.length > 0)
    notes.push(`${name} keeps its own hosts.toml of ${hosts.join(', ')}; pulls from there bypass the mirror.`)
  const isForeign = alias !== undefined && files.has(posix.join(at, alias, 'hosts.toml'))
  if (isForeign) notes.push(`${name} keeps its own registry ${alias}.`)
  return { missing: isForeign ? missing.filter((folder) => folder.name === '_default') : missing, notes }
}

/** Describes a running cluster. */
interface KindCluster {
  readonly name: string
  readonly nodes: readonly KindNode[]
  /** Holds the control-plane node to run kubectl in; undefined when kubectl does not answer. */
  readonly kubectlNode: string | undefined
}

/** Inspects a running cluster. Throws MirrorError (missing) when none of this name runs. */
export async function findKindCluster(nodes: KindNodes, name: string): Promise<KindCluster> {
  const found = (await nodes.list(name)).filter(({ isRunning }) => isRunning)
  if (found.length === 0)
    throw new MirrorError(`No kind cluster ${JSON.stringify(name)} is running.`, {
      exit: exitCode.missing,
      hints: ['kind get clusters', 'mirror configure kind | kind create cluster --config -'],
    })
  const controlPlane = found.find(({ isControlPlane }) => isControlPlane)?.name
  const [clusterNodes, answers] = await Promise.all([
    Promise.all(found.map((node) => inspectRunningNode(nodes, node))),
    controlPlane !== undefined && answersKubectl(nodes, controlPlane),
  ])
  return { name, nodes: clusterNodes, kubectlNode: answers ? controlPlane : undefined }
}

async function inspectRunningNode(nodes: KindNodes, { name, mounts }: FoundNode): Promise<KindNode> {
  const [configPaths, version] = await Promise.all([
    getNodeConfigPaths(nodes, name),
    getNodeContainerdVersion(nodes, name),
  ])
  return { name, configPaths, version, mounts: mounts.map(({ destination }) => destination) }
}

/** Creates the target of a running cluster: its files are those of all nodes, and the hosting ConfigMap. */
export function createKindClusterTarget(
  nodes: KindNodes,
  { name, nodes: clusterNodes, kubectlNode }: KindCluster,
  location: ClientLocation,
): ConfigTarget {
  const target = { cluster: name, nodes: clusterNodes, hosting: kubectlNode && hostingPath }
  const names = clusterNodes.map((node) => node.name)
  const nodeFiles = names.map((node) => [node, createNodeFiles(node, (args, input) => nodes.exec(node, args, input))])
  const configMap =
    kubectlNode &&
    createConfigMapFile(registryConfigMap.name, registryConfigMap.namespace, createKubectl(nodes, kubectlNode))
  return {
    id: `cluster ${name}`,
    title: `the nodes of the running cluster ${name}`,
    details: {
      cluster: name,
      program: nodes.program,
      nodes: names.join(' '),
      ...(kubectlNode && { speaker: kubectlNode }),
    },
    location,
    files: joinFilePorts(Object.fromEntries([...nodeFiles, ...(configMap ? [[objectsFolder, configMap]] : [])])),
    readAtEachPull: true,
    async isDeleted() {
      try {
        return (await nodes.list(name)).length === 0
      } catch (error) {
        if (error instanceof MirrorError) return false
        throw error
      }
    },
    inputs: {
      files: [...names.map((node) => getNodePath(node, containerdConfig)), ...(kubectlNode ? [hostingPath] : [])],
      trees: clusterNodes.map((node) => getNodePath(node.name, node.configPaths[0] ?? '/etc/containerd/certs.d')),
    },
    plan: (mirror, files) => planKindCluster(mirror, target, files),
    strip: (mirror, files) => stripKindCluster(mirror, target, files),
    inspect: (cache, files) => inspectKindNodes(cache, target, files),
    async completeWrite(paths) {
      for (const node of names) {
        if (!paths.includes(getNodePath(node, containerdConfig))) continue
        const result = await nodes.exec(node, ['systemctl', 'restart', 'containerd'])
        if (result?.exitCode !== 0)
          throw new MirrorError(`Could not restart containerd in ${node}: ${result?.stderr.trim() ?? ''}`, {
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
        why: 'its containerd has not read the new configuration',
        fix: `${nodes.program} exec ${names[0]} systemctl restart containerd`,
      },
      {
        why: 'the mirror has moved to another address',
        fix: `mirror configure kind --cluster ${name}`,
        isUnconfigured: true,
      },
      {
        why: 'the nodes use their proxy for the mirror: kind exempts only mirror.svc and the addresses of their network',
        fix: `${nodes.program} exec ${names[0]} env | grep -i proxy`,
      },
      {
        why: 'containerd rejects hosts.toml, which it reports in its log only',
        fix: `${nodes.program} exec ${names[0]} journalctl --unit containerd --no-pager --lines 50`,
      },
    ],
  }
}

/** Restores the target of a cluster from its record, without contacting the cluster. */
export function restoreKindClusterTarget(
  machine: Machine,
  details: ConfigTargetDetails,
  location: ClientLocation,
): ConfigTarget {
  const { cluster = '', program = 'docker', nodes = '', speaker } = details
  const knownNodes = nodes.split(' ').map((name) => ({ name, configPaths: [], mounts: [] }))
  return createKindClusterTarget(
    openKindNodes(machine, program),
    { name: cluster, nodes: knownNodes, kubectlNode: speaker },
    location,
  )
}

/** Returns a function that runs the node's own kubectl, which has the cluster's version and all permissions. */
function createKubectl(nodes: KindNodes, node: string) {
  const kubectl = ['kubectl', '--kubeconfig', '/etc/kubernetes/admin.conf']
  return (args: readonly string[], input?: string) => nodes.exec(node, [...kubectl, ...args], input)
}

async function answersKubectl(nodes: KindNodes, node: string): Promise<boolean> {
  const result = await createKubectl(nodes, node)(['get', 'namespace', registryConfigMap.namespace, '--output', 'name'])
  return result?.exitCode === 0 && result.stdout.trim() !== ''
}
