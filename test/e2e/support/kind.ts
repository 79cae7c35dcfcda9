import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { parse, stringify } from 'yaml'
import { criClient } from './cri.ts'
import { type Dockerd, dockerSocket, startDockerd } from './dockerd.ts'
import { importKindNodeImage } from './kind-node-image.ts'
import { privilegedRuntime } from './privileged-runtime.ts'
import { run } from './run.ts'
import type { Scene } from './scene.ts'
import { searchPath } from './search-path.ts'

export interface KindHostOptions {
  /** The root folder of dockerd and the docker CLI; the system's own when empty. */
  docker: string
  /** The root folder of the containerd in the nodes. */
  containerd: string
  /** The root folder of kind, which Debian 12 does not have. */
  kind: string
  /** Further settings of dockerd. */
  settings?: object
}

/** KindHost is an engine on which kind creates clusters. */
export interface KindHost extends Dockerd {
  /** Runs the real kind; returns its stdout. */
  kind(...args: string[]): Promise<string>
  /** Runs the real kind with a text as its stdin. */
  kindFrom(input: string, ...args: string[]): Promise<string>
  /** The environment in which docker and kind find the engine. */
  readonly env: NodeJS.ProcessEnv
  readonly folder: string
}

/** nodeImage names the substitute for kindest/node. */
export const nodeImage = 'local/kind-node:e2e'

/** Starts a dockerd in the scene that has the substitute node image. It ends with the test. */
export async function startKindHost(
  scene: Pick<Scene, 'folder' | 'namespace'>,
  options: KindHostOptions,
): Promise<KindHost> {
  const { folder } = scene
  const settings = { ...(await privilegedRuntime(folder)), ...options.settings }
  const dockerd = await startDockerd(scene, options.docker, settings)
  await importKindNodeImage(dockerd, options.containerd, nodeImage)
  const env = {
    PATH: `${join(options.kind, 'usr/bin')}:${searchPath(options.docker)}`,
    HOME: folder,
    KUBECONFIG: join(folder, 'kubeconfig'),
    DOCKER_HOST: `unix://${dockerSocket(folder)}`,
  }
  return {
    ...dockerd,
    folder,
    env,
    kind: (...args) => run('kind', args, { env, timeoutMs: 120_000 }),
    kindFrom: (input, ...args) => run('kind', args, { env, timeoutMs: 120_000, input: Buffer.from(input) }),
  }
}

/** Creates a cluster from the text of a cluster file, without a network plugin; returns the names of its nodes. */
export async function createCluster(host: KindHost, name: string, clusterFile: string): Promise<string[]> {
  const cluster = (parse(clusterFile) ?? {}) as Record<string, unknown>
  const header = { kind: 'Cluster', apiVersion: 'kind.x-k8s.io/v1alpha4' }
  const file = join(host.folder, `${name}.yaml`)
  await writeFile(file, stringify({ ...header, ...cluster, networking: { disableDefaultCNI: true } }))
  await host.kind('create', 'cluster', '--name', name, '--config', file, '--image', nodeImage)
  return (await host.kind('get', 'nodes', '--name', name)).trim().split('\n').toSorted()
}

export async function deleteCluster(host: KindHost, name: string): Promise<void> {
  await host.kind('delete', 'cluster', '--name', name)
}

/** Pulls an image as the kubelet of the node would; returns its id. */
export async function pullInNode({ docker }: KindHost, node: string, image: string): Promise<string> {
  const pid = (await docker('inspect', '--format', '{{.State.Pid}}', node)).trim()
  return criClient(`/proc/${pid}/root/run/containerd/containerd.sock`).pullImage(image)
}
