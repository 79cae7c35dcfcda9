import { configPaths, nodeContainerd, pullInNode } from '../../app/configure/pull-in-node.ts'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import type { ClientHome } from '../address.ts'
import { configMapFile, joinedFiles, nodeFiles } from '../files/remote.ts'
import { containerdConfig, type KindNode, nodePath, planKindCluster, stripKindCluster } from '../kind-cluster.ts'
import { hostingConfigMap } from '../local-registry-hosting.ts'
import type { ClientPlace, Machine, PlaceDetails } from '../types.ts'
import { type KindNodes, kindNodes } from './nodes.ts'

/** What is known of a cluster; all but how its nodes were found. */
export interface KindCluster {
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
export function kindClusterPlace(
  nodes: KindNodes,
  { name, nodes: found, speaker }: KindCluster,
  home: ClientHome,
): ClientPlace {
  const target = { cluster: name, nodes: found, hosting: speaker && hosting }
  const names = found.map((node) => node.name)
  const ofNodes = names.map((node) => [node, nodeFiles(node, (args, input) => nodes.exec(node, args, input))])
  const ofCluster =
    speaker && configMapFile(hostingConfigMap.name, hostingConfigMap.namespace, kubectlIn(nodes, speaker))
  return {
    id: `cluster ${name}`,
    title: `the nodes of the running cluster ${name}`,
    details: { cluster: name, program: nodes.program, nodes: names.join(' '), ...(speaker && { speaker }) },
    home,
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
export function recallKindCluster(machine: Machine, details: PlaceDetails, home: ClientHome): ClientPlace {
  const { cluster = '', program = 'docker', nodes = '', speaker } = details
  const known = nodes.split(' ').map((name) => ({ name, configPaths: [], mounts: [] }))
  return kindClusterPlace(kindNodes(machine, program), { name: cluster, nodes: known, speaker }, home)
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
