import { tellMirror } from '../admin/access.ts'
import type { ConfiguredClient } from '../admin/activity.ts'
import type { CommandEnvironment } from '../lib/process.ts'
import { findRecordFolders, openClientRecords } from './records.ts'

/** Lists the clients of this machine that mirror configured, the earliest first. Throws MirrorError for records that cannot be read. */
export async function listConfiguredClients(surroundings: CommandEnvironment): Promise<ConfiguredClient[]> {
  const records = await openClientRecords(await findRecordFolders(surroundings)).list()
  return records
    .filter(({ root, undone }) => root === undefined && undone !== true)
    .map(({ client, title, since }) => ({ client, title, since }))
}

/** Tells the running mirror which clients are configured: its dashboard shows them. */
export async function tellConfiguredClients(surroundings: CommandEnvironment): Promise<void> {
  await tellMirror(surroundings, async (client, { running, user }) => {
    // Root does not read the records of the user whose mirror it is, and a mirror in a container would take root's for all.
    if (user !== undefined && running.container !== undefined) return
    await client.clients.storeConfigured(await listConfiguredClients(surroundings))
  })
}
