import { getErrno, exitCode, MirrorError } from '../lib/errors.ts'
import { getAdapter } from './adapters.ts'
import { isAsWritten } from './apply.ts'
import { type ClientRecord, type RecordedFile, isSameTarget, type StoredRecord, openMachineRecords } from './records.ts'
import type { StaleClient } from './stale-clients.ts'
import type { ConfigTarget, FilePort, Machine } from './types.ts'
import { getTarget, findRecords } from './undo.ts'

/** Describes a configured target for `mirror configure --list`. */
export interface ListedClient {
  readonly client: string
  readonly place: string
  readonly title: string
  readonly mirror: string
  /** Gives the time in ISO 8601. */
  readonly since: string
  /**
   * Is set when the target has an address that the running mirror does not have. `to`: the current address; null when it has none
   * for this client.
   */
  readonly stale?: Pick<StaleClient, 'of' | 'from' | 'mend'> & { readonly to: string | null }
  readonly files: readonly { readonly path: string; readonly state: ConfiguredFileState }[]
}

/**
 * Distinguishes `stale address`: as written, but with an old address of the mirror; `gone`: deleted since; `unreachable`: in a
 * cluster or VM that does not answer, or without permission to read it; `undone, not reloaded`: restored, but the running client
 * still uses the mirror.
 */
export type ConfiguredFileState =
  | 'as written'
  | 'stale address'
  | 'changed since'
  | 'gone'
  | 'unreachable'
  | 'undone, not reloaded'

/** Lists the configured targets with the state of their files. Throws MirrorError for an unknown client. */
export async function listConfigured(
  machine: Machine,
  client: string | undefined,
  stale: readonly StaleClient[] = [],
): Promise<ListedClient[]> {
  if (client !== undefined) await getAdapter(client)
  const all = await openMachineRecords(machine).list()
  const records = all.filter((record) => client === undefined || record.client === client)
  const listed = await Promise.all(records.map((record) => listRecord(machine, record, stale)))
  return listed.filter((one) => one !== undefined)
}

/** Describes a record; undefined for an undone one that the client no longer uses. */
export async function listRecord(
  machine: Machine,
  record: StoredRecord,
  allStale: readonly StaleClient[] = [],
): Promise<ListedClient | undefined> {
  const { client, title, since, cache } = record
  const stale = allStale.find((one) => isSameTarget(one.record, record))
  const target = await getTarget(machine, record)
  if (record.undone && (await target.observe?.(record))?.inUse !== true) return undefined
  const files = await Promise.all(
    record.files.map(async (file): Promise<{ path: string; state: ConfiguredFileState }> => {
      const state = record.undone ? 'undone, not reloaded' : await getFileState(file, target.files)
      return { path: file.path, state: stale && state === 'as written' ? 'stale address' : state }
    }),
  )
  return {
    client,
    place: record.place,
    title,
    mirror: cache,
    since,
    ...(stale && { stale: { of: stale.of, from: stale.from, to: stale.to ?? null, mend: stale.mend } }),
    files,
  }
}

async function getFileState(file: RecordedFile, files: FilePort): Promise<ConfiguredFileState> {
  try {
    const state = await files.read(file.path)
    if (state === undefined) return file.written === undefined ? 'as written' : 'gone'
    return isAsWritten(file, state.bytes) ? 'as written' : 'changed since'
  } catch (error) {
    if (!(error instanceof MirrorError) && getErrno(error) === undefined) throw error
    return 'unreachable'
  }
}

/** Pairs a record with its target. */
interface RecordedTarget {
  readonly record: ClientRecord
  readonly target: ConfigTarget
}

/** Groups the configured targets by their ability to run a pull. */
interface CheckableTargets {
  readonly checkable: readonly RecordedTarget[]
  /** Holds the records whose clients cannot run a pull from this machine. */
  readonly uncheckable: readonly ClientRecord[]
}

/** Returns the configured targets to check, the earliest first. Throws MirrorError (checkFailed) when none can pull. */
export async function findCheckableTargets(
  machine: Machine,
  criteria: Parameters<typeof findRecords>[1],
): Promise<CheckableTargets> {
  const records = (await findRecords(machine, criteria)).toReversed().filter(({ undone }) => !undone)
  const targets = await Promise.all(
    records.map(async (record): Promise<RecordedTarget> => ({ record, target: await getTarget(machine, record) })),
  )
  const checkable = targets.filter(({ target }) => target.pull !== undefined)
  const uncheckable = targets.filter(({ target }) => target.pull === undefined).map(({ record }) => record)
  if (checkable.length > 0) return { checkable, uncheckable }
  const found = records.length === 0 ? 'No client is configured by mirror' : 'No configured client can pull'
  throw new MirrorError(`${found} on this machine, so there is nothing to check.`, {
    exit: exitCode.checkFailed,
    hints: [
      records.length === 0 ? 'mirror configure' : 'mirror configure --list',
      'mirror configure CLIENT --check   (checks a client that you have configured yourself)',
    ],
  })
}

/**
 * Chooses a target among several: the first, or with `check` the last configured one unless the user names another. Throws
 * MirrorError (missing) without targets.
 */
export async function chooseTarget(
  machine: Machine,
  { client, targets, check, scope, cluster, file }: TargetChoices,
): Promise<ConfigTarget> {
  const [first] = targets
  const isNamed = [scope, cluster, file].some((name) => name !== undefined)
  if (check && !isNamed && !machine.detached) {
    const records = await findRecords(machine, { client, scope, cluster, file })
    const configured = records.filter(({ undone }) => !undone)
    const [last] = configured
    if (last !== undefined && !configured.some(({ place }) => place === first?.id)) {
      const recorded = await getTarget(machine, last)
      if (recorded.pull !== undefined) return recorded
    }
  }
  if (first !== undefined) return first
  throw new MirrorError(`Found nothing to configure for ${client} on this machine.`, { exit: exitCode.missing })
}

interface TargetChoices {
  readonly client: string
  readonly targets: readonly ConfigTarget[]
  readonly check: boolean
  readonly scope?: string | undefined
  readonly cluster?: string | undefined
  readonly file?: string | undefined
}
