import { lstat, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { findInvokingUser } from '../admin/find-mirror.ts'
import { looksAtOwners, mirrorPaths } from '../config/paths.ts'
import { createDockerEngine } from '../docker/dockerode-engine.ts'
import { findDockerEndpoint, isRemoteEngine } from '../docker/endpoint.ts'
import { errnoOf, MirrorError } from '../lib/errors.ts'
import { orAbsent } from '../lib/fs.ts'
import { isOnlyRoots } from '../lib/ownership.ts'
import { shellWord, type Surroundings } from '../lib/process.ts'
import type { Clock } from '../lib/time.ts'
import { adapterOf, machineAt } from './adapters.ts'
import { isAsWritten } from './apply.ts'
import { configureClient, prepareClient, type PreparedClient } from './configure.ts'
import { findMirror, type MirrorAddress, waitUntilServed } from './find-mirror.ts'
import { configureCommand, type ConfiguredClient, type KnownRecord, openMachineRecords } from './records.ts'
import type { ClientOptions, ConfigTarget, Machine } from './types.ts'
import { getTarget } from './undo.ts'

/**
 * As root: which records root has left where another user can change them, as older versions did under `sudo -E`, and how to undo
 * what they say. Undefined where there are none. Nothing of them is obeyed.
 */
export async function describeStrayRecords(surroundings: Surroundings): Promise<string | undefined> {
  if (!looksAtOwners(surroundings)) return undefined
  const user = await findInvokingUser(surroundings)
  const callers = surroundings.callers ?? surroundings
  const candidates = [
    mirrorPaths(callers),
    mirrorPaths({ ...callers, env: { ...callers.env, MIRROR_HOME: undefined } }),
    ...(user === undefined ? [] : [mirrorPaths({ ...surroundings, env: {}, homedir: user.home })]),
  ]
  for (const { stateDir } of candidates) {
    const folder = join(stateDir, 'configured')
    if (isOnlyRoots(folder)) continue
    const names = await listRootsRecords(folder)
    if (names.length === 0) continue
    const [records, backups] = [shellWord(folder), shellWord(join(stateDir, 'backups'))]
    return [
      `Root has recorded in ${folder} what it configured, and others can change that, so it is not used: ${names.join(', ')}.`,
      'To undo it, look at what was changed and where its backup lies, put the backup back, then remove the records:',
      `  sudo cat ${records}/*.json`,
      `  sudo ls -lR ${backups}`,
      `  sudo rm -r ${records} ${backups}`,
    ].join('\n')
  }
  return undefined
}

/** The clients of records that are root's own files. */
async function listRootsRecords(folder: string): Promise<string[]> {
  const names = (await orAbsent(() => readdir(folder))) ?? []
  const found: string[] = []
  for (const name of names) {
    const client = /^([a-z0-9]+)-[0-9a-f]+\.json$/.exec(name)?.[1]
    const what = client === undefined ? undefined : await orAbsent(() => lstat(join(folder, name)))
    if (what?.isFile() && what.uid === 0) found.push(client!)
  }
  return [...new Set(found)].toSorted()
}

/** A client that was told an address which the mirror does not have. */
export interface StaleClient {
  readonly record: KnownRecord
  /** What has moved; the cache where both have. */
  readonly of: 'cache' | 'registry'
  /** Where it is told to go. */
  readonly from: string
  /** Where the mirror is for it now; undefined when it cannot reach the mirror. */
  readonly to: string | undefined
  /** Why it cannot reach the mirror. */
  readonly why: string | undefined
  /** The command that mends it. */
  readonly mend: string
}

export interface MendedClient extends StaleClient {
  /** Its files were the mirror's own, and have the new address now. */
  readonly rewritten: boolean
}

/**
 * Compares what clients of this machine were told with where the running mirror answers, however it came to move. Empty when no
 * mirror runs. Asks no program, except for a cluster that is to be called stale, whether it is still there.
 */
export async function findStaleClients(surroundings: Surroundings): Promise<StaleClient[]> {
  const machine = await machineAt(surroundings, undefined)
  const records = await listOwnRecords(machine)
  const mirror = records.length === 0 ? undefined : await findRunningMirror(surroundings)
  return mirror === undefined ? [] : filterStale(records, machine, mirror)
}

/**
 * The same after `mirror up`, with the networks waited for that the mirror is about to serve. Files that are the mirror's own
 * alone, and are read at each pull, get the new address at once.
 */
export async function mendStaleClients(surroundings: Surroundings, clock: Clock): Promise<MendedClient[]> {
  const machine = await machineAt(surroundings, undefined)
  const records = await listOwnRecords(machine)
  if (records.length === 0) return []
  await waitForNetworks(surroundings, machine, records, clock)
  const mirror = await findRunningMirror(surroundings)
  if (mirror === undefined) return []
  const mended: MendedClient[] = []
  for (const stale of await filterStale(records, machine, mirror))
    mended.push({ ...stale, rewritten: stale.to !== undefined && (await rewriteAddress(machine, stale, mirror)) })
  return mended
}

async function filterStale(
  records: readonly KnownRecord[],
  machine: Machine,
  mirror: MirrorAddress,
): Promise<StaleClient[]> {
  const stale: StaleClient[] = []
  for (const record of records) {
    const place = await getTarget(machine, record)
    const found = await compareAddress(machine, record, place, mirror)
    // Most clients are told of the cache alone.
    const isTold = found !== undefined && (found.of === 'cache' || (await isNamedInFiles(found.from, record, place)))
    if (isTold && !(await place.isGone?.())) stale.push(found)
  }
  return stale
}

/** Of this machine itself, and told the address of its own mirror. */
async function listOwnRecords(machine: Machine): Promise<KnownRecord[]> {
  const records = await openMachineRecords(machine).list()
  return records.filter(({ root, isNamed, undone }) => root === undefined && isNamed !== true && undone !== true)
}

async function findRunningMirror(surroundings: Surroundings): Promise<MirrorAddress | undefined> {
  try {
    return await findMirror(surroundings, { url: undefined, caFile: undefined })
  } catch (error) {
    // None runs, or its certificate cannot be read: then there is nothing to compare with.
    if (error instanceof MirrorError) return undefined
    throw error
  }
}

async function compareAddress(
  machine: Machine,
  record: KnownRecord,
  { location: home }: ConfigTarget,
  mirror: MirrorAddress,
): Promise<StaleClient | undefined> {
  const { cache, registry } = record
  try {
    const now = mirror.addressFor(home)
    const common = { record, why: undefined, mend: await configureCommand(machine, record) }
    if (now.cache !== cache || (now.ca !== undefined) !== (record.ca === true))
      return { ...common, of: 'cache', from: cache, to: now.cache }
    if (now.registry !== registry && registry !== undefined)
      return { ...common, of: 'registry', from: registry, to: now.registry }
    return undefined
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    if (home.in === 'apart') return undefined
    // A plain process serves a network as soon as that exists; until then nobody is there to be led astray.
    if (home.in === 'network' && mirror.willServe(home.network)) return undefined
    const mend = home.in === 'network' ? error.hints[0] : undefined
    return {
      record,
      of: 'cache',
      from: cache,
      to: undefined,
      why: error.message,
      mend: mend ?? (await configureCommand(machine, record, '--undo')),
    }
  }
}

/** Whether a file that was written says this registry's port; true where the files cannot be read. */
async function isNamedInFiles(registry: string, { files }: ConfiguredClient, place: ConfigTarget): Promise<boolean> {
  const { port } = new URL(registry)
  try {
    for (const { path } of files) {
      const state = await place.files.read(path)
      if (state && Buffer.from(state.bytes).includes(`:${port}`)) return true
    }
    return false
  } catch (error) {
    if (!(error instanceof MirrorError) && errnoOf(error) === undefined) throw error
    return true
  }
}

/** A mirror that has just started listens on a network's gateway a moment later. */
async function waitForNetworks(
  surroundings: Surroundings,
  machine: Machine,
  records: readonly ConfiguredClient[],
  clock: Clock,
): Promise<void> {
  const homes = await Promise.all(records.map(async (record) => (await getTarget(machine, record)).location))
  const networks = new Set(homes.flatMap((home) => (home.in === 'network' ? [home.network] : [])))
  const mirror = networks.size === 0 ? undefined : await findRunningMirror(surroundings)
  const awaited = [...networks].filter((network) => mirror?.willServe(network))
  if (awaited.length === 0) return
  const endpoint = await findDockerEndpoint(surroundings)
  if (endpoint === undefined || isRemoteEngine(endpoint)) return
  const { networks: dockerNetworks } = createDockerEngine(endpoint)
  for (const network of awaited) {
    const gateways = await dockerNetworks.gateways(network)
    if (gateways !== undefined && gateways.length > 0) await waitUntilServed(surroundings, network, clock)
  }
}

/** Writes the new address where nobody has to be asked; false where somebody has. */
async function rewriteAddress(machine: Machine, { record }: StaleClient, mirror: MirrorAddress): Promise<boolean> {
  try {
    const adapter = await adapterOf(record.client)
    const { scope, cluster, file } = record.details
    const options: ClientOptions = {
      scope: scope === 'user' || scope === 'system' ? scope : undefined,
      clientVersion: undefined,
      imageStore: undefined,
      file,
      cluster,
    }
    const recalled = await getTarget(machine, record)
    if (!recalled.readAtEachPull || mirror.isRemote) return false
    const places = await adapter.targets(machine, options)
    const place = places.find(({ id }) => id === record.place)
    if (place === undefined) return false
    const prepared = await prepareClient({ machine, adapter, place, mirror, fallback: record.fallback })
    if (!(await changesOnlyOwnFiles(prepared, record))) return false
    await configureClient(prepared, new Date())
    return true
  } catch (error) {
    // A node that stands still, a file that is root's: the command that mends it says more.
    if (error instanceof MirrorError) return false
    throw error
  }
}

/** Whether only files change that the mirror has made itself and nobody has touched since. */
async function changesOnlyOwnFiles({ place, plan }: PreparedClient, { files }: ConfiguredClient): Promise<boolean> {
  for (const { path, before } of plan.changes) {
    const recorded = files.find((file) => file.path === path)
    if (recorded === undefined) {
      if (before !== undefined) return false
      continue
    }
    const state = await place.files.read(path)
    if (recorded.before !== undefined || !isAsWritten(recorded, state?.bytes)) return false
  }
  return true
}
