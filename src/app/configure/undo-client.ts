import { resolve } from 'node:path'
import { isAsWritten, sha256 } from '../../clients/as-written.ts'
import type { FileChange } from '../../clients/client-config.ts'
import { openConfiguredClients, type ConfiguredClient, type ConfiguredFile } from '../../clients/configured.ts'
import { readUnchanged } from '../../clients/read-unchanged.ts'
import { applyUndo, planUndo, type UndoPlan } from '../../clients/undo.ts'
import { adapterOf } from './client-adapters.ts'
import type { ClientPlace, Machine } from './client-adapter.ts'
import { rootOf } from './configure-client.ts'
import { placeBelowRoot } from './place-below-root.ts'
import { readFiles } from './read-files.ts'

/** The way back for one client in one place, with nothing done yet. */
export interface PreparedUndo {
  readonly record: ConfiguredClient
  readonly place: ClientPlace
  readonly plan: UndoPlan
}

/**
 * What was configured on this machine, or below its `--root`, as far as it was asked for; the last comes first, so that where two
 * have changed one file each finds what it left. Throws MirrorError for an unknown client.
 */
export async function recordsOf(
  machine: Machine,
  wanted: Readonly<Record<'client' | 'scope' | 'cluster' | 'file', string | undefined>>,
): Promise<ConfiguredClient[]> {
  if (wanted.client !== undefined) await adapterOf(wanted.client)
  const named = wanted.file === undefined ? undefined : resolve(machine.cwd, wanted.file)
  const records = await openConfiguredClients(machine.stateDir).list()
  return records
    .toReversed()
    .filter(
      ({ client, root, details, files }) =>
        root === rootOf(machine) &&
        (wanted.client === undefined || client === wanted.client) &&
        (wanted.scope === undefined || details['scope'] === wanted.scope) &&
        (wanted.cluster === undefined || details['cluster'] === wanted.cluster) &&
        (named === undefined || Object.values(details).includes(named) || files.some(({ path }) => path === named)),
    )
}

/** Throws MirrorError for a backup that is gone, or a place that cannot be reached. */
export async function prepareUndo(machine: Machine, record: ConfiguredClient): Promise<PreparedUndo> {
  const place = await placeOf(machine, record)
  const plan = await planUndo(record, place.files, async () => {
    return place.strip(record, await readFiles(place.files, place.wants))
  })
  return { record, place, plan }
}

/**
 * Goes the way back. `reload`: the client takes notice at once; for those that ignore a key that is merely missing, by an
 * interim state of the files.
 */
export async function undoClient(
  machine: Machine,
  { record, place, plan }: PreparedUndo,
  reload: boolean,
): Promise<void> {
  const configured = openConfiguredClients(machine.stateDir)
  // There may have been a question since, and an editor beside it.
  for (const change of plan.changes) await readUnchanged(change, place.files)
  const how = reload ? place.reload : undefined
  if (how?.interim) {
    const interim = how.interim(record, await readFiles(place.files, place.wants))
    // Ended here, or with nobody to reload, the files are still known for ours, and the next undo is as exact.
    await configured.put({ ...record, files: record.files.map((file) => knownAs(file, interim)) })
    await put(place, interim)
    await how.run()
  }
  await applyUndo(record, plan, place.files, configured)
  await place.settle?.(plan.changes.map(({ path }) => path))
  if (how && !how.interim) await how.run()
}

/** The place of a record, found again without the client's help. */
export async function placeOf(machine: Machine, record: ConfiguredClient): Promise<ClientPlace> {
  const { root } = record
  const there = root === undefined ? machine : { ...machine, root, home: root, detached: true }
  return placeBelowRoot(there, (await adapterOf(record.client)).recall(there, record.details))
}

function knownAs(file: ConfiguredFile, interim: readonly FileChange[]): ConfiguredFile {
  const change = interim.find(({ path }) => path === file.path)
  const isOurs = change?.before !== undefined && isAsWritten(file, Buffer.from(change.before))
  if (!isOurs || change.after === undefined) return file
  return { ...file, also: [...(file.also ?? []), sha256(Buffer.from(change.after))] }
}

async function put(place: ClientPlace, changes: readonly FileChange[]): Promise<void> {
  for (const { path, after } of changes) {
    if (after === undefined) await place.files.remove(path)
    else await place.files.write(path, Buffer.from(after), await place.files.read(path))
  }
}
