import { isAsWritten } from '../../clients/as-written.ts'
import { isSamePlace, type ConfiguredFile, type KnownRecord } from '../../clients/configured.ts'
import type { FilePort } from '../../clients/file-port.ts'
import { MirrorError, errnoOf } from '../../lib/errors.ts'
import { adapterOf } from './client-adapters.ts'
import type { Machine } from '../../clients/types.ts'
import { recordsOn } from './record-folders.ts'
import type { StaleClient } from '../../clients/stray-records.ts'
import { placeOf } from './undo-client.ts'

export interface ListedClient {
  readonly client: string
  readonly place: string
  readonly title: string
  readonly mirror: string
  /** ISO 8601. */
  readonly since: string
  /** It points at an address that the running mirror does not have. `to`: where the mirror is for it, null where it cannot be. */
  readonly stale?: Pick<StaleClient, 'of' | 'from' | 'mend'> & { readonly to: string | null }
  readonly files: readonly { readonly path: string; readonly state: FileState }[]
}

/**
 * `stale address`: as written, but the mirror is not where it says. `unreachable`: it lies in a cluster or a VM that does not
 * answer, or may not be read. `undone, not reloaded`: it is as it was before, and the running client still uses the mirror.
 */
export type FileState =
  | 'as written'
  | 'stale address'
  | 'changed since'
  | 'gone'
  | 'unreachable'
  | 'undone, not reloaded'

/** What is configured, where, since when, and whether it still is as it was written. Throws MirrorError for an unknown client. */
export async function listConfigured(
  machine: Machine,
  client: string | undefined,
  stale: readonly StaleClient[] = [],
): Promise<ListedClient[]> {
  if (client !== undefined) await adapterOf(client)
  const all = await recordsOn(machine).list()
  const records = all.filter((record) => client === undefined || record.client === client)
  const listed = await Promise.all(records.map((record) => listOne(machine, record, stale)))
  return listed.filter((one) => one !== undefined)
}

/** Undefined for what was undone and is in use no more. */
export async function listOne(
  machine: Machine,
  record: KnownRecord,
  allStale: readonly StaleClient[] = [],
): Promise<ListedClient | undefined> {
  const { client, title, since, cache } = record
  const stale = allStale.find((one) => isSamePlace(one.record, record))
  const place = await placeOf(machine, record)
  if (record.undone && (await place.observe?.(record))?.inUse !== true) return undefined
  const files: { path: string; state: FileState }[] = []
  for (const file of record.files) {
    const state = record.undone ? 'undone, not reloaded' : await stateOf(file, place.files)
    files.push({ path: file.path, state: stale && state === 'as written' ? 'stale address' : state })
  }
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

async function stateOf(file: ConfiguredFile, files: FilePort): Promise<FileState> {
  try {
    const state = await files.read(file.path)
    if (state === undefined) return file.written === undefined ? 'as written' : 'gone'
    return isAsWritten(file, state.bytes) ? 'as written' : 'changed since'
  } catch (error) {
    if (!(error instanceof MirrorError) && errnoOf(error) === undefined) throw error
    return 'unreachable'
  }
}
