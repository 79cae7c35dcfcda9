import { createDockerEngine } from '../docker/dockerode-engine.ts'
import { findDockerEndpoint, isRemoteEngine } from '../docker/endpoint.ts'
import { getErrno, MirrorError } from '../lib/errors.ts'
import type { CommandEnvironment } from '../lib/process.ts'
import type { Clock } from '../lib/time.ts'
import { getAdapter, describeMachine } from './adapters.ts'
import { isAsWritten } from './apply.ts'
import { configureClient, prepareClient, type PreparedClient } from './configure.ts'
import { findMirrorAddress, type MirrorAddress, waitUntilServed } from './find-mirror.ts'
import { getConfigureCommand, type ClientRecord, type StoredRecord, openMachineRecords } from './records.ts'
import type { ClientOptions, ConfigTarget, Machine } from './types.ts'
import { getTarget } from './undo.ts'

/** Describes a client with an address that the mirror does not have. */
export interface StaleClient {
  readonly record: StoredRecord
  /** Names the part with another address; `cache` when both have. */
  readonly of: 'cache' | 'registry'
  /** Holds the address in the client's configuration. */
  readonly from: string
  /** Holds the mirror's current address for this client; undefined when the client cannot reach it. */
  readonly to: string | undefined
  /** Explains why the client cannot reach the mirror. */
  readonly why: string | undefined
  /** Holds the command that updates the client. */
  readonly mend: string
}

/** Describes a stale client after `updateStaleClients`. */
export interface UpdatedClient extends StaleClient {
  /** Is true when its files were mirror's own, and now have the new address. */
  readonly rewritten: boolean
}

/**
 * Compares the addresses of this machine's configured clients with those of the running mirror. Empty when no mirror runs. Runs no
 * program, except to check that a cluster with an old address still exists.
 */
export async function findStaleClients(surroundings: CommandEnvironment): Promise<StaleClient[]> {
  const machine = await describeMachine(surroundings, undefined)
  const records = await listOwnRecords(machine)
  const mirror = records.length === 0 ? undefined : await findAddressIfRunning(surroundings)
  return mirror === undefined ? [] : filterStale(records, machine, mirror)
}

/**
 * Finds stale clients after `mirror up`, and waits before for the networks that the mirror will serve. Rewrites the address in files
 * that only mirror has written, and that the client reads at each pull.
 */
export async function updateStaleClients(surroundings: CommandEnvironment, clock: Clock): Promise<UpdatedClient[]> {
  const machine = await describeMachine(surroundings, undefined)
  const records = await listOwnRecords(machine)
  if (records.length === 0) return []
  await waitForNetworks(surroundings, machine, records, clock)
  const mirror = await findAddressIfRunning(surroundings)
  if (mirror === undefined) return []
  const updated: UpdatedClient[] = []
  for (const stale of await filterStale(records, machine, mirror))
    updated.push({ ...stale, rewritten: stale.to !== undefined && (await rewriteAddress(machine, stale, mirror)) })
  return updated
}

async function filterStale(
  records: readonly StoredRecord[],
  machine: Machine,
  mirror: MirrorAddress,
): Promise<StaleClient[]> {
  const stale: StaleClient[] = []
  for (const record of records) {
    const target = await getTarget(machine, record)
    const found = await compareAddress(machine, record, target, mirror)
    // Ignore another registry address unless a file has it, because most clients are configured for the cache only.
    const isStale = found !== undefined && (found.of === 'cache' || (await isNamedInFiles(found.from, record, target)))
    if (isStale && !(await target.isDeleted?.())) stale.push(found)
  }
  return stale
}

/** Lists the records of this machine itself with an address of its own mirror. */
async function listOwnRecords(machine: Machine): Promise<StoredRecord[]> {
  const records = await openMachineRecords(machine).list()
  return records.filter(({ root, isNamed, undone }) => root === undefined && isNamed !== true && undone !== true)
}

async function findAddressIfRunning(surroundings: CommandEnvironment): Promise<MirrorAddress | undefined> {
  try {
    return await findMirrorAddress(surroundings, { url: undefined, caFile: undefined })
  } catch (error) {
    // Compare nothing without an address: no mirror runs, or its certificate is unreadable.
    if (error instanceof MirrorError) return undefined
    throw error
  }
}

async function compareAddress(
  machine: Machine,
  record: StoredRecord,
  { location }: ConfigTarget,
  mirror: MirrorAddress,
): Promise<StaleClient | undefined> {
  const { cache, registry } = record
  try {
    const current = mirror.getAddress(location)
    const common = { record, why: undefined, mend: await getConfigureCommand(machine, record) }
    if (current.cache !== cache || (current.ca !== undefined) !== (record.ca === true))
      return { ...common, of: 'cache', from: cache, to: current.cache }
    if (current.registry !== registry && registry !== undefined)
      return { ...common, of: 'registry', from: registry, to: current.registry }
    return undefined
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    if (location.in === 'isolated') return undefined
    // Ignore a network that does not exist yet: it has no clients, and the mirror process serves it once it exists.
    if (location.in === 'network' && mirror.willServe(location.network)) return undefined
    const mend = location.in === 'network' ? error.hints[0] : undefined
    return {
      record,
      of: 'cache',
      from: cache,
      to: undefined,
      why: error.message,
      mend: mend ?? (await getConfigureCommand(machine, record, '--undo')),
    }
  }
}

/** Reports whether a written file contains the port of this registry, or cannot be read. */
async function isNamedInFiles(registry: string, { files }: ClientRecord, target: ConfigTarget): Promise<boolean> {
  const { port } = new URL(registry)
  try {
    for (const { path } of files) {
      const state = await target.files.read(path)
      if (state && Buffer.from(state.bytes).includes(`:${port}`)) return true
    }
    return false
  } catch (error) {
    if (!(error instanceof MirrorError) && getErrno(error) === undefined) throw error
    return true
  }
}

/** Waits until the mirror serves the networks of the records: after its start it listens on their gateways with a delay. */
async function waitForNetworks(
  surroundings: CommandEnvironment,
  machine: Machine,
  records: readonly ClientRecord[],
  clock: Clock,
): Promise<void> {
  const locations = await Promise.all(records.map(async (record) => (await getTarget(machine, record)).location))
  const networks = new Set(locations.flatMap((location) => (location.in === 'network' ? [location.network] : [])))
  const mirror = networks.size === 0 ? undefined : await findAddressIfRunning(surroundings)
  const expected = [...networks].filter((network) => mirror?.willServe(network))
  if (expected.length === 0) return
  const endpoint = await findDockerEndpoint(surroundings)
  if (endpoint === undefined || isRemoteEngine(endpoint)) return
  const { networks: dockerNetworks } = createDockerEngine(endpoint)
  for (const network of expected) {
    const gateways = await dockerNetworks.findGateways(network)
    if (gateways !== undefined && gateways.length > 0) await waitUntilServed(surroundings, network, clock)
  }
}

/** Writes the new address to files that need no confirmation; false when the user must run the command. */
async function rewriteAddress(machine: Machine, { record }: StaleClient, mirror: MirrorAddress): Promise<boolean> {
  try {
    const adapter = await getAdapter(record.client)
    const { scope, cluster, file } = record.details
    const options: ClientOptions = {
      scope: scope === 'user' || scope === 'system' ? scope : undefined,
      clientVersion: undefined,
      imageStore: undefined,
      file,
      cluster,
    }
    const restored = await getTarget(machine, record)
    if (!restored.readAtEachPull || mirror.isRemote) return false
    const targets = await adapter.findTargets(machine, options)
    const target = targets.find(({ id }) => id === record.place)
    if (target === undefined) return false
    const prepared = await prepareClient({ machine, adapter, target, mirror, fallback: record.fallback })
    if (!(await changesOnlyOwnFiles(prepared, record))) return false
    await configureClient(prepared, new Date())
    return true
  } catch (error) {
    // Leave the reason to the command in `mend`, for example a stopped node or a file of root.
    if (error instanceof MirrorError) return false
    throw error
  }
}

/** Reports whether the plan changes only files that mirror created, and that are unchanged since. */
async function changesOnlyOwnFiles({ target, plan }: PreparedClient, { files }: ClientRecord): Promise<boolean> {
  for (const { path, before } of plan.changes) {
    const recorded = files.find((file) => file.path === path)
    if (recorded === undefined) {
      if (before !== undefined) return false
      continue
    }
    const state = await target.files.read(path)
    if (recorded.before !== undefined || !isAsWritten(recorded, state?.bytes)) return false
  }
  return true
}
