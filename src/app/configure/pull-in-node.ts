import { registrySection } from '../../clients/containerd/config-toml.ts'
import { containerdVersionIn } from '../../clients/version.ts'
import { pullTimeoutMs } from './pull-by-crictl.ts'
import type { KindNodes } from '../../clients/kind/nodes.ts'

/**
 * Pulls an image in a node as its kubelet would, and removes it: undefined when it came, else what was said. Nodes without
 * crictl pull by ctr, which has to be told the folder that their containerd looks at.
 */
export async function pullInNode(nodes: KindNodes, node: string, image: string): Promise<string | undefined> {
  const hasCrictl = (await nodes.exec(node, ['sh', '-c', 'command -v crictl']))?.exitCode === 0
  const config = hasCrictl ? [] : (await configPaths(nodes, node)).slice(0, 1)
  const hosts = config.flatMap((path) => ['--hosts-dir', path])
  const ctr = ['ctr', '--namespace', 'k8s.io', 'images']
  const pull = hasCrictl ? ['crictl', 'pull', image] : [...ctr, 'pull', ...hosts, image]
  const result = await nodes.exec(node, pull, undefined, pullTimeoutMs)
  await nodes.exec(node, hasCrictl ? ['crictl', 'rmi', image] : [...ctr, 'rm', image])
  if (result?.exitCode === 0) return undefined
  return `${node}: ${result?.stderr.trim() || result?.stdout.trim() || 'the pull did not end'}`
}

/** Where the containerd of a node looks for hosts.toml. */
export async function configPaths(nodes: KindNodes, node: string): Promise<readonly string[]> {
  const dump = await nodes.exec(node, ['containerd', 'config', 'dump'])
  if (dump?.exitCode !== 0) return []
  const containerd = await nodeContainerd(nodes, node)
  return registrySection(`containerd config dump in ${node}`, dump.stdout, { containerd }).configPaths
}

/** The version of a node's containerd; undefined when it does not say. */
export async function nodeContainerd(nodes: KindNodes, node: string): Promise<string | undefined> {
  const result = await nodes.exec(node, ['containerd', '--version'])
  return result?.exitCode === 0 ? containerdVersionIn(result.stdout) : undefined
}
