import { isAsWritten } from '../../clients/as-written.ts'
import { openConfiguredClients, type ConfiguredClient, type ConfiguredFile } from '../../clients/configured.ts'
import type { FilePort } from '../../clients/file-port.ts'
import { MirrorError, errnoOf } from '../../lib/errors.ts'
import { adapterOf } from './client-adapters.ts'
import type { Machine } from './client-adapter.ts'
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

/** `unreachable`: it lies in a cluster or a VM that does not answer, or may not be read. */
export type FileState = 'as written' | 'changed since' | 'gone' | 'unreachable'

/** What is configured, where, since when, and whether it still is as it was written. Throws MirrorError for an unknown client. */
export async function listConfigured(machine: Machine, client: string | undefined): Promise<ListedClient[]> {
  if (client !== undefined) await adapterOf(client)
  const all = await openConfiguredClients(machine.stateDir).list()
  const records = all.filter((record) => client === undefined || record.client === client)
  return Promise.all(records.map((record) => listOne(machine, record)))
}

async function listOne(machine: Machine, record: ConfiguredClient): Promise<ListedClient> {
  const { client, title, since, cache } = record
  const place = await placeOf(machine, record)
  const files = []
  for (const file of record.files) files.push({ path: file.path, state: await stateOf(file, place.files) })
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
