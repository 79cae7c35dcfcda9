import { isAsWritten } from '../../clients/as-written.ts'
import type { ConfiguredFile, KnownRecord } from '../../clients/configured.ts'
import type { FilePort } from '../../clients/file-port.ts'
import { MirrorError, errnoOf } from '../../lib/errors.ts'
import { adapterOf } from './client-adapters.ts'
import type { Machine } from './client-adapter.ts'
import { recordsOn } from './record-folders.ts'
import { placeOf } from './undo-client.ts'

export interface ListedClient {
  readonly client: string
  readonly place: string
  readonly title: string
  readonly mirror: string
  /** ISO 8601. */
  readonly since: string
  readonly files: readonly { readonly path: string; readonly state: FileState }[]
}

/**
 * `unreachable`: it lies in a cluster or a VM that does not answer, or may not be read. `undone, not reloaded`: it is as it was
 * before, and the running client still uses the mirror.
 */
export type FileState = 'as written' | 'changed since' | 'gone' | 'unreachable' | 'undone, not reloaded'

/** What is configured, where, since when, and whether it still is as it was written. Throws MirrorError for an unknown client. */
export async function listConfigured(machine: Machine, client: string | undefined): Promise<ListedClient[]> {
  if (client !== undefined) await adapterOf(client)
  const all = await recordsOn(machine).list()
  const records = all.filter((record) => client === undefined || record.client === client)
  const listed = await Promise.all(records.map((record) => listOne(machine, record)))
  return listed.filter((one) => one !== undefined)
}

/** Undefined for what was undone and is in use no more. */
export async function listOne(machine: Machine, record: KnownRecord): Promise<ListedClient | undefined> {
  const { client, title, since, cache } = record
  const place = await placeOf(machine, record)
  if (record.undone && (await place.observe?.(record))?.inUse !== true) return undefined
  const files: { path: string; state: FileState }[] = []
  for (const file of record.files)
    files.push({ path: file.path, state: record.undone ? 'undone, not reloaded' : await stateOf(file, place.files) })
  return { client, place: record.place, title, mirror: cache, since, files }
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
