import { readFile } from 'node:fs/promises'
import { resolve } from 'node:path'
import { rootCommand } from '../admin/sudo.ts'
import { errnoOf, exitCode, MirrorError } from '../lib/errors.ts'
import { adapterOf } from './adapters.ts'
import { sortForWriting, isAsWritten, readUnchangedFile, hashHex } from './apply.ts'
import { resolveTargetBelowRoot, readFiles, getRecordRoot } from './configure.ts'
import { type ConfiguredClient, type RecordedFile, type KnownRecord, openMachineRecords } from './records.ts'
import type { ConfigTarget, FileChange, FilePort, FileState, Machine } from './types.ts'

/** The way back for one client in one place, with nothing done yet. */
interface PreparedUndo {
  readonly record: KnownRecord
  readonly place: ConfigTarget
  readonly plan: UndoPlan
}

/**
 * What was configured on this machine, or below its `--root`, as far as it was asked for; the last comes first, so that where two
 * have changed one file each finds what it left. Throws MirrorError for an unknown client.
 */
export async function recordsOf(
  machine: Machine,
  wanted: Readonly<Record<'client' | 'scope' | 'cluster' | 'file', string | undefined>>,
): Promise<KnownRecord[]> {
  if (wanted.client !== undefined) await adapterOf(wanted.client)
  const named = wanted.file === undefined ? undefined : resolve(machine.cwd, wanted.file)
  const records = await openMachineRecords(machine).list()
  return records
    .toReversed()
    .filter(
      ({ client, root, details, files }) =>
        root === getRecordRoot(machine) &&
        (wanted.client === undefined || client === wanted.client) &&
        (wanted.scope === undefined || details['scope'] === wanted.scope) &&
        (wanted.cluster === undefined || details['cluster'] === wanted.cluster) &&
        (named === undefined || Object.values(details).includes(named) || files.some(({ path }) => path === named)),
    )
}

/**
 * Throws MirrorError for a backup that is gone, or a place that cannot be reached, and for what root has configured and only root
 * can undo. `args`: the arguments by which root would do the same.
 */
export async function prepareUndo(
  machine: Machine,
  record: KnownRecord,
  args: readonly string[] = ['configure', record.client, '--undo'],
): Promise<PreparedUndo> {
  if (record.lockedByRoot)
    throw new MirrorError(`${record.client} was configured by root, so only root can undo that: ${record.title}.`, {
      exit: exitCode.usage,
      hints: [await rootCommand(machine, args)],
    })
  const place = await getTarget(machine, record)
  const plan = await planUndo(record, place.files, async () => {
    return record.undone ? [] : place.strip(record, await readFiles(place.files, place.wants))
  })
  return { record, place, plan: record.undone ? { ...plan, notes: [] } : plan }
}

/**
 * Goes the way back. `reload`: the client takes notice at once; for those that ignore a key that is merely missing, by an
 * interim state of the files. Resolves to whether the running client goes on with the mirror; then the record stays until a
 * reload, or until the client has forgotten by itself.
 */
export async function undoClient(
  machine: Machine,
  { record, place, plan }: PreparedUndo,
  reload: boolean,
): Promise<{ readonly stillInUse: boolean }> {
  const configured = openMachineRecords(machine)
  // There may have been a question since, and an editor beside it.
  for (const change of plan.changes) await readUnchangedFile(change, place.files)
  const how = reload ? place.reload : undefined
  let { changes } = plan
  if (how?.interim) {
    const interim = how
      .interim(record, await readFiles(place.files, place.wants))
      .filter(({ path }) => record.files.some((file) => file.path === path))
    // Ended here, or with nobody to reload, the files are still known for ours, and the next undo is as exact.
    await configured.put({
      ...record,
      files: record.files.map((file) => withInterimHash(file, interim, record.undone)),
    })
    await writeChanges(place, interim)
    await how.run()
    const back = interim.filter(({ path }) => !changes.some((change) => change.path === path))
    changes = [...changes, ...back.map(({ path, before, after }) => ({ path, before: after, after: before }))]
  }
  let stillInUse = false
  await applyUndo(record, { ...plan, changes }, place.files, async () => {
    // What is a matter of files is over with them; a daemon may have them in its memory.
    stillInUse = how === undefined && place.reload?.interim !== undefined && (await isInUse(place, record))
    await (stillInUse ? configured.put({ ...record, undone: true }) : configured.remove(record))
  })
  await place.settle?.(changes.map(({ path }) => path))
  if (how && !how.interim) await how.run()
  return { stillInUse }
}

async function isInUse(place: ConfigTarget, record: KnownRecord): Promise<boolean> {
  return (await place.observe?.(record))?.inUse === true
}

/** The place of a record, found again without the client's help. */
export async function getTarget(machine: Machine, record: ConfiguredClient): Promise<ConfigTarget> {
  const { root } = record
  const there = root === undefined ? machine : { ...machine, root, home: root, detached: true }
  return resolveTargetBelowRoot(there, (await adapterOf(record.client)).recall(there, record.details))
}

function withInterimHash(file: RecordedFile, interim: readonly FileChange[], undone = false): RecordedFile {
  const change = interim.find(({ path }) => path === file.path)
  const isOurs = undone || (change?.before !== undefined && isAsWritten(file, Buffer.from(change.before)))
  if (!isOurs || change?.after === undefined) return file
  return { ...file, also: [...(file.also ?? []), hashHex(Buffer.from(change.after))] }
}

async function writeChanges(place: ConfigTarget, changes: readonly FileChange[]): Promise<void> {
  for (const { path, after } of changes) {
    if (after === undefined) await place.files.remove(path)
    else await place.files.write(path, Buffer.from(after), await place.files.read(path))
  }
}

/** What undoing would do. */
interface UndoPlan {
  readonly changes: readonly FileChange[]
  readonly notes: readonly string[]
}

/**
 * Plans the way back: a file that is still as we left it becomes what it was, byte for byte; from one that was changed since,
 * only our keys go (`strip` says what that leaves). Throws MirrorError for a backup that is gone.
 */
export async function planUndo(
  record: ConfiguredClient,
  files: FilePort,
  strip: () => Promise<readonly FileChange[]>,
): Promise<UndoPlan> {
  const changes: FileChange[] = []
  const notes: string[] = []
  let stripped: readonly FileChange[] | undefined
  for (const file of record.files) {
    const state = await files.read(file.path)
    const was = await readBackup(file)
    if (areSameBytes(state?.bytes, was)) continue
    if (isAsWritten(file, state?.bytes)) {
      changes.push({ path: file.path, before: decodeText(state?.bytes), after: decodeText(was) })
    } else if (state === undefined) {
      notes.push(`${file.path} is gone already.`)
    } else {
      stripped ??= await strip()
      const change = stripped.find(({ path }) => path === file.path)
      const isThere = change !== undefined && change.before !== change.after
      const what = isThere ? "only mirror's own keys go" : "nothing of mirror's was found in it, and it stays as it is"
      notes.push(`${file.path} was changed after mirror wrote it: ${what}.`)
      if (isThere) changes.push(change)
    }
  }
  return { changes, notes }
}

/** Carries out the way back; then `conclude` forgets the record, or keeps what is left to do. */
export async function applyUndo(
  record: ConfiguredClient,
  { changes }: UndoPlan,
  files: FilePort,
  conclude: () => Promise<void>,
): Promise<void> {
  const recorded = new Map(record.files.map((file) => [file.path, file]))
  for (const path of recorded.keys()) await files.tidy?.(path)
  for (const { path, after } of sortForWriting(changes)) {
    if (after === undefined) await files.remove(path)
    else await files.write(path, Buffer.from(after), (await files.read(path)) ?? getAttributes(recorded.get(path)))
  }
  for (const folder of record.folders.toReversed()) await files.removeFolder(folder)
  await conclude()
}

function getAttributes(file: RecordedFile | undefined): Omit<FileState, 'bytes'> | undefined {
  return file?.before && { mode: file.before.mode, uid: file.before.uid, gid: file.before.gid }
}

async function readBackup({ path, before }: RecordedFile): Promise<Uint8Array | undefined> {
  if (before === undefined) return undefined
  try {
    return await readFile(before.backup)
  } catch (cause) {
    if (errnoOf(cause) === undefined) throw cause
    throw new MirrorError(`The backup of ${path} cannot be read: ${before.backup}`, {
      hints: [`take out what points at the mirror by hand, in ${path}`],
      cause,
    })
  }
}

function areSameBytes(one: Uint8Array | undefined, other: Uint8Array | undefined): boolean {
  if (one === undefined || other === undefined) return one === other
  return Buffer.from(one).equals(other)
}

/** What was written was text, and what was there before was read as text. */
function decodeText(bytes: Uint8Array | undefined): string | undefined {
  return bytes && new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes)
}
