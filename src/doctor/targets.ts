import { noOptions } from '../clients/adapters.ts'
import { getKindProgram, openKindNodes } from '../clients/kind/nodes.ts'
import type { StoredRecord } from '../clients/records.ts'
import type { ClientAdapter, ClientName, ClientOptions, ConfigTarget, Machine } from '../clients/types.ts'
import { getTarget } from '../clients/undo.ts'
import { exitCode, MirrorError } from '../lib/errors.ts'
import { checks } from './checks.ts'
import type { Outcome, Report } from './context.ts'

/** Maps clients to the faults that `inspect` of their targets may find, by the first part of their names. */
const faultKinds: Partial<Record<ClientName, readonly string[]>> = {
  docker: ['docker', 'hosts'],
  podman: ['podman'],
  containerd: ['containerd', 'hosts'],
  kind: ['kind', 'containerd', 'hosts'],
  k3d: ['k3s'],
  k3s: ['k3s'],
  minikube: ['hosts'],
  buildkit: ['buildkit'],
  kaniko: ['kaniko'],
}

/** Pairs a target with its record. */
export interface CheckedTarget {
  readonly target: ConfigTarget
  /** Is undefined for a target that mirror has not configured. */
  readonly record: StoredRecord | undefined
}

/** Lists the ids of the checks for the faults of a client's files. */
export function listFaultIds(client: ClientName): string[] {
  const kinds = faultKinds[client] ?? []
  return checks.map(({ id }) => id).filter((id) => kinds.some((kind) => id.startsWith(`clients.${kind}.`)))
}

/** Lists the configured targets; for a client without any, the one that `mirror configure` would choose; for kind, each cluster. */
export async function listTargets(
  adapter: ClientAdapter,
  records: readonly StoredRecord[],
  clusters: readonly string[],
  machine: Machine,
  report: Report,
): Promise<CheckedTarget[]> {
  const found = await findTargets(adapter, machine, records, clusters, report)
  const listed = found.map((target) => ({ target, record: records.find(({ place }) => place === target.id) }))
  const isCluster = ({ target }: CheckedTarget) => target.details['cluster'] !== undefined && adapter.client === 'kind'
  const chosen = listed.filter((one) => one.record !== undefined || isCluster(one))
  const others = records.filter(({ place }) => !found.some(({ id }) => id === place))
  const restored = await Promise.all(
    others.map(async (record): Promise<CheckedTarget> => ({ record, target: await getTarget(machine, record) })),
  )
  const configured = [...chosen, ...restored]
  const isConfigured = configured.some(({ record }) => record !== undefined)
  return isConfigured || configured.length > 0 ? configured : listed.slice(0, 1)
}

async function findTargets(
  adapter: ClientAdapter,
  machine: Machine,
  records: readonly StoredRecord[],
  clusters: readonly string[],
  report: Report,
): Promise<ConfigTarget[]> {
  const find = async (options: Partial<ClientOptions>) => {
    try {
      return await adapter.findTargets(machine, { ...noOptions, ...options })
    } catch (error) {
      if (!(error instanceof MirrorError)) throw error
      // A broken file that is configured is a finding of its own target.
      if (records.length === 0) report(toTargetFailure(adapter.client, error))
      return []
    }
  }
  if (adapter.client !== 'kind') return find({})
  const hasFiles = records.some(({ details }) => details['cluster'] === undefined && details['file'] === undefined)
  const targets = await Promise.all(clusters.map((cluster) => find({ cluster })))
  return [...targets.flat(), ...(hasFiles || clusters.length === 0 ? await find({}) : [])]
}

/** Lists the running clusters of kind; none when their engine does not answer. */
export async function listClusters(machine: Machine): Promise<string[]> {
  try {
    const nodes = await openKindNodes(machine, getKindProgram(machine.env)).list()
    return [...new Set(nodes.filter(({ isRunning }) => isRunning).map(({ cluster }) => cluster))]
  } catch (error) {
    if (error instanceof MirrorError) return []
    throw error
  }
}

/** Converts the failure to find the targets of a client: files that mirror refuses, or an engine that cannot be reached. */
function toTargetFailure(client: ClientName, { message, exit, hints: [hint] }: MirrorError): Outcome {
  const syntax = listFaultIds(client).find((id) => id.endsWith('.syntax') && !id.startsWith('clients.hosts'))
  const isFault = exit === exitCode.usage && syntax !== undefined
  return {
    id: isFault ? syntax : 'clients.configured',
    subject: client,
    state: isFault ? 'fail' : 'skipped',
    saw: message,
    ...(hint !== undefined && { advice: hint }),
  }
}
