import { stringify } from 'yaml'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import type { CommandResult } from '../../lib/process.ts'
import { localRegistryName } from '../containerd/hosts-toml.ts'
import { renderConfigMap } from '../files/remote.ts'
import type { Machine } from '../types.ts'

/** A node of a kind cluster, which is a container. */
export interface FoundNode {
  readonly name: string
  readonly cluster: string
  readonly isControlPlane: boolean
  readonly isRunning: boolean
  readonly mounts: readonly { readonly source: string; readonly destination: string }[]
}

/** The containers of kind's clusters, through the program that made them. */
export interface KindNodes {
  readonly program: string
  /** The nodes of a cluster, or of all; load balancers are none. Throws MirrorError (missing) when nobody answers. */
  list(cluster?: string): Promise<FoundNode[]>
  /** Runs a program in a node; undefined when there is no way to. */
  exec(node: string, args: readonly string[], input?: string, timeoutMs?: number): Promise<CommandResult | undefined>
}

const quick = 10_000
const patient = 60_000

/** The program that kind uses for its containers. https://kind.sigs.k8s.io/docs/user/rootless/ */
export function kindProgram(env: Machine['env']): 'docker' | 'podman' | 'nerdctl' {
  const asked = env['KIND_EXPERIMENTAL_PROVIDER']
  return asked === 'podman' || asked === 'nerdctl' ? asked : 'docker'
}

export function kindNodes({ runCommand }: Pick<Machine, 'runCommand'>, program: string): KindNodes {
  return {
    program,

    async list(cluster) {
      const label = cluster === undefined ? clusterLabel : `${clusterLabel}=${cluster}`
      const ids = await ask(['ps', '--all', '--quiet', '--filter', `label=${label}`])
      const found = ids.split('\n').filter(Boolean)
      if (found.length === 0) return []
      return (JSON.parse(await ask(['inspect', ...found])) as Inspected[]).flatMap(nodeOf)
    },

    exec(node, args, input, timeoutMs = patient) {
      const stdin = input === undefined ? [] : ['--interactive']
      return runCommand(program, ['exec', ...stdin, node, ...args], {
        timeoutMs,
        ...(input !== undefined && { input }),
      })
    },
  }

  async function ask(args: readonly string[]): Promise<string> {
    const result = await runCommand(program, args, { timeoutMs: quick })
    if (result?.exitCode === 0) return result.stdout
    const why = result?.stderr.trim().split('\n').at(-1)
    const message =
      result === undefined
        ? `kind's clusters are reached by ${program}, which is not here.`
        : `${program} does not answer${why ? `: ${why}` : '.'}`
    throw new MirrorError(message, { exit: exitCode.missing, hints: [`${program} info`] })
  }
}

const clusterLabel = 'io.x-k8s.kind.cluster'
const roleLabel = 'io.x-k8s.kind.role'

interface Inspected {
  readonly Name: string
  readonly Config?: { readonly Labels?: Readonly<Record<string, string>> }
  readonly State?: { readonly Running?: boolean }
  readonly Mounts?: readonly { readonly Source?: string; readonly Destination?: string }[]
}

function nodeOf({ Name, Config, State, Mounts }: Inspected): FoundNode[] {
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

const ours = { 'app.kubernetes.io/managed-by': 'mirror' }

/**
 * The ConfigMap that tells a cluster's tools about the registry for pushed images: under its name on this machine for pushes and
 * for image names, under its address in the cluster's network for pods.
 * https://github.com/kubernetes/enhancements/tree/master/keps/sig-cluster-lifecycle/generic/1755-communicating-a-local-registry
 */
export function renderHosting(registry: string): string {
  const host = localRegistryName(registry)
  const hosting = { host, hostFromContainerRuntime: host, hostFromClusterNetwork: new URL(registry).host }
  return renderConfigMap({ metadata: { labels: ours }, data: { 'localRegistryHosting.v1': stringify(hosting) } })
}

/** Whether the ConfigMap is one of ours, and not of another tool's registry. */
export function isOurHosting(text: string): boolean {
  return text.includes('app.kubernetes.io/managed-by: mirror')
}
