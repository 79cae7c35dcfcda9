import { stringify } from 'yaml'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import type { CommandResult } from '../../lib/process.ts'
import { getLocalRegistryName } from '../containerd/hosts-toml.ts'
import { renderConfigMap } from '../files/remote.ts'
import type { Machine } from '../types.ts'

const queryTimeoutMs = 10_000
const execTimeoutMs = 60_000

const clusterLabel = 'io.x-k8s.kind.cluster'
const roleLabel = 'io.x-k8s.kind.role'

const ownLabels = { 'app.kubernetes.io/managed-by': 'mirror' }

/** Describes a node of a kind cluster: a container. */
export interface FoundNode {
  readonly name: string
  readonly cluster: string
  readonly isControlPlane: boolean
  readonly isRunning: boolean
  readonly mounts: readonly { readonly source: string; readonly destination: string }[]
}

/** Describes a node of a running cluster at the time of detection. */
export interface KindNode {
  readonly name: string
  /** Holds the effective config_path of its containerd, which may be the built-in default; empty: it reads no hosts.toml. */
  readonly configPaths: readonly string[]
  /** Holds the mount points of folders of this machine. */
  readonly mounts: readonly string[]
  /** Holds the version of its containerd; undefined when unknown. */
  readonly version?: string | undefined
}

/** Returns the program that kind uses for its containers. https://kind.sigs.k8s.io/docs/user/rootless/ */
export function getKindProgram(env: Machine['env']): 'docker' | 'podman' | 'nerdctl' {
  const provider = env['KIND_EXPERIMENTAL_PROVIDER']
  return provider === 'podman' || provider === 'nerdctl' ? provider : 'docker'
}

export type KindNodes = ReturnType<typeof openKindNodes>

/** Opens the containers of kind's clusters, through the program that created them; `program`: see getKindProgram. */
export function openKindNodes({ runCommand }: Pick<Machine, 'runCommand'>, program: string) {
  return {
    program,

    /**
     * Lists the nodes of a cluster, or of all clusters, without load balancers. Throws MirrorError (missing) when the program does
     * not answer.
     */
    async list(cluster?: string): Promise<FoundNode[]> {
      const label = cluster === undefined ? clusterLabel : `${clusterLabel}=${cluster}`
      const ids = await query(['ps', '--all', '--quiet', '--filter', `label=${label}`])
      const found = ids.split('\n').filter(Boolean)
      if (found.length === 0) return []
      return (JSON.parse(await query(['inspect', ...found])) as Inspected[]).flatMap(parseNode)
    },

    /** Runs a program in a node; undefined when it could not be started. */
    exec(
      node: string,
      args: readonly string[],
      input?: string,
      timeoutMs = execTimeoutMs,
    ): Promise<CommandResult | undefined> {
      const stdin = input === undefined ? [] : ['--interactive']
      return runCommand(program, ['exec', ...stdin, node, ...args], {
        timeoutMs,
        ...(input !== undefined && { input }),
      })
    },
  }

  async function query(args: readonly string[]): Promise<string> {
    const result = await runCommand(program, args, { timeoutMs: queryTimeoutMs })
    if (result?.exitCode === 0) return result.stdout
    const why = result?.stderr.trim().split('\n').at(-1)
    const message =
      result === undefined
        ? `${program}, which runs kind's clusters, is not installed.`
        : `${program} does not answer${why ? `: ${why}` : '.'}`
    throw new MirrorError(message, { exit: exitCode.missing, hints: [`${program} info`] })
  }
}

interface Inspected {
  readonly Name: string
  readonly Config?: { readonly Labels?: Readonly<Record<string, string>> }
  readonly State?: { readonly Running?: boolean }
  readonly Mounts?: readonly { readonly Source?: string; readonly Destination?: string }[]
}

function parseNode({ Name, Config, State, Mounts }: Inspected): FoundNode[] {
  const role = Config?.Labels?.[roleLabel]
  if (role === 'external-load-balancer') return []
  return [
    {
      name: Name.replace(/^\//, ''),
      cluster: Config?.Labels?.[clusterLabel] ?? '',
      isControlPlane: role === 'control-plane',
      isRunning: State?.Running === true,
      mounts: (Mounts ?? []).map(({ Source, Destination }) => ({
        source: Source ?? '',
        destination: Destination ?? '',
      })),
    },
  ]
}

/** Lists the nodes whose config.toml has changed since containerd created its socket, that is since it started and read the file. */
export async function findStaleNodes(nodes: KindNodes, names: readonly string[]): Promise<string[]> {
  const socket = '/run/containerd/containerd.sock'
  const script = `test -S ${socket} && test /etc/containerd/config.toml -nt ${socket}`
  const results = await Promise.all(names.map((name) => nodes.exec(name, ['sh', '-c', script])))
  return names.filter((_, at) => results[at]?.exitCode === 0)
}

/**
 * Renders the ConfigMap that announces the registry for pushed images to the tools of a cluster: its name on this machine for
 * pushes and image names, its address in the cluster's network for pods.
 * https://github.com/kubernetes/enhancements/tree/master/keps/sig-cluster-lifecycle/generic/1755-communicating-a-local-registry
 */
export function renderHostingConfigMap(registry: string): string {
  const host = getLocalRegistryName(registry)
  const hosting = { host, hostFromContainerRuntime: host, hostFromClusterNetwork: new URL(registry).host }
  return renderConfigMap({ metadata: { labels: ownLabels }, data: { 'localRegistryHosting.v1': stringify(hosting) } })
}

/** Reports whether mirror wrote a ConfigMap, not another tool for its registry. */
export function isOwnHostingConfigMap(text: string): boolean {
  return text.includes('app.kubernetes.io/managed-by: mirror')
}
