import { readFile } from 'node:fs/promises'
import { resolve } from 'node:path'
import { renderRootCommand } from '../admin/sudo.ts'
import { getErrno, exitCode, MirrorError } from '../lib/errors.ts'
import { getAdapter } from './adapters.ts'
import { sortForWriting, isAsWritten, readUnchangedFile, hashHex } from './apply.ts'
import { resolveTargetBelowRoot, readFiles, getRecordRoot } from './configure.ts'
import {
  type ClientRecord,
  getConfigureCommand,
  openMachineRecords,
  type RecordedFile,
  type StoredRecord,
} from './records.ts'
import type { ConfigTarget, FileChange, FilePort, FileState, Machine } from './types.ts'

/** Holds the planned undo of one target; nothing is written yet. */
interface PreparedUndo {
  readonly record: StoredRecord
  readonly target: ConfigTarget
  readonly plan: UndoPlan
}

/**
 * Returns the records of this machine, or of its `--root`, that match the given options. The last one comes first, so that of two
 * records of one file each undo finds the content that its own run left. Throws MirrorError for an unknown client.
 */
export async function findRecords(
  machine: Machine,
  criteria: Readonly<Record<'client' | 'scope' | 'cluster' | 'file', string | undefined>>,
): Promise<StoredRecord[]> {
  if (criteria.client !== undefined) await getAdapter(criteria.client)
  const namedFile = criteria.file === undefined ? undefined : resolve(machine.cwd, criteria.file)
  const records = await openMachineRecords(machine).list()
  return records
    .toReversed()
    .filter(
      ({ client, root, details, files }) =>
        root === getRecordRoot(machine) &&
        (criteria.client === undefined || client === criteria.client) &&
        (criteria.scope === undefined || details['scope'] === criteria.scope) &&
        (criteria.cluster === undefined || details['cluster'] === criteria.cluster) &&
        (namedFile === undefined ||
          Object.values(details).includes(namedFile) ||
          files.some(({ path }) => path === namedFile)),
    )
}

/** Returns the commands that undo what was configured with another `--root`. */
export async function findUndoCommandsBelowRoots(machine: Machine, client: string | undefined): Promise<string[]> {
  const records = (await openMachineRecords(machine).list()).filter(
    (record) =>
      record.root !== undefined &&
      record.root !== getRecordRoot(machine) &&
      (client ?? record.client) === record.client,
  )
  const commands = await Promise.all(records.map((record) => getConfigureCommand(machine, record, '--undo')))
  return [...new Set(commands)]
}

/**
 * Plans the undo of a record. Throws MirrorError for a missing backup, an unreachable target, and a record that only root can undo.
 * `args`: the arguments of the current command, for a hint to run it as root.
 */
export async function prepareUndo(
  machine: Machine,
  record: StoredRecord,
  args: readonly string[] = ['configure', record.client, '--undo'],
): Promise<PreparedUndo> {
  if (record.lockedByRoot)
    throw new MirrorError(`${record.client} was configured by root, so only root can undo that: ${record.title}.`, {
      exit: exitCode.usage,
      hints: [await renderRootCommand(machine, args)],
    })
  const target = await getTarget(machine, record)
  const plan = await planUndo(record, target.files, async () => {
    return record.undone ? [] : target.strip(record, await readFiles(target.files, target.inputs))
  })
  return { record, target, plan: record.undone ? { ...plan, notes: [] } : plan }
}

/**
 * Carries out an undo. `reload`: also reload the client; a client that ignores missing keys is reloaded with an interim state of
 * its files. Returns if the running client still uses the mirror. Then the record stays until a reload, or until the client no
 * longer uses the mirror. Throws MirrorError for files that have changed since the plan was made.
 */
export async function undoClient(
  machine: Machine,
  { record, target, plan }: PreparedUndo,
  reload: boolean,
): Promise<{ readonly stillInUse: boolean }> {
  const records = openMachineRecords(machine)
  // Read again: the user may have edited the files before answering a prompt.
  for (const change of plan.changes) await readUnchangedFile(change, target.files)
  const clientReload = reload ? target.reload : undefined
  let { changes } = plan
  if (clientReload?.planInterim) {
    const interim = clientReload
      .planInterim(record, await readFiles(target.files, target.inputs))
      .filter(({ path }) => record.files.some((file) => file.path === path))
    // Record the interim hashes first, so that the next undo is exact after an abort or a failed reload.
    await records.put({
      ...record,
      files: record.files.map((file) => withInterimHash(file, interim, record.undone)),
    })
    await writeChanges(target, interim)
    await clientReload.run()
    const restored = interim.filter(({ path }) => !changes.some((change) => change.path === path))
    changes = [...changes, ...restored.map(({ path, before, after }) => ({ path, before: after, after: before }))]
  }
  let stillInUse = false
  await applyUndo(record, { ...plan, changes }, target.files, async () => {
    // Ask the client, because a daemon may keep the old files in memory.
    stillInUse =
      clientReload === undefined && target.reload?.planInterim !== undefined && (await isInUse(target, record))
    await (stillInUse ? records.put({ ...record, undone: true }) : records.remove(record))
  })
  await target.completeWrite?.(changes.map(({ path }) => path))
  if (clientReload && !clientReload.planInterim) await clientReload.run()
  return { stillInUse }
}

async function isInUse(target: ConfigTarget, record: StoredRecord): Promise<boolean> {
  return (await target.observe?.(record))?.inUse === true
}

/** Restores the target of a record without contacting the client. */
export async function getTarget(machine: Machine, record: ClientRecord): Promise<ConfigTarget> {
  const { root } = record
  const recordMachine = root === undefined ? machine : { ...machine, root, home: root, detached: true }
  return resolveTargetBelowRoot(
    recordMachine,
    (await getAdapter(record.client)).restoreTarget(recordMachine, record.details),
  )
}

function withInterimHash(file: RecordedFile, interim: readonly FileChange[], undone = false): RecordedFile {
  const change = interim.find(({ path }) => path === file.path)
  const isOwn = undone || (change?.before !== undefined && isAsWritten(file, Buffer.from(change.before)))
  if (!isOwn || change?.after === undefined) return file
  return { ...file, also: [...(file.also ?? []), hashHex(Buffer.from(change.after))] }
}

async function writeChanges(target: ConfigTarget, changes: readonly FileChange[]): Promise<void> {
  for (const { path, after } of changes) {
    if (after === undefined) await target.files.remove(path)
    else await target.files.write(path, Buffer.from(after), await target.files.read(path))
  }
}

/** Holds the changes of an undo, and the notes for the user. */
interface UndoPlan {
  readonly changes: readonly FileChange[]
  readonly notes: readonly string[]
}

/**
 * Plans the changes of an undo: a file with the content of mirror's last write is restored byte for byte; from a file that was
 * changed since, only mirror's keys are removed, as `strip` returns it. Throws MirrorError for a missing backup.
 */
export async function planUndo(
  record: ClientRecord,
  files: FilePort,
  strip: () => Promise<readonly FileChange[]>,
): Promise<UndoPlan> {
  const changes: FileChange[] = []
  const notes: string[] = []
  let stripped: readonly FileChange[] | undefined
  for (const file of record.files) {
    const state = await files.read(file.path)
    const original = await readBackup(file)
    if (areSameBytes(state?.bytes, original)) continue
    if (isAsWritten(file, state?.bytes)) {
      changes.push({ path: file.path, before: decodeText(state?.bytes), after: decodeText(original) })
    } else if (state === undefined) {
      notes.push(`${file.path} no longer exists.`)
    } else {
      stripped ??= await strip()
      const change = stripped.find(({ path }) => path === file.path)
      const hasKeys = change !== undefined && change.before !== change.after
      const what = hasKeys ? "only mirror's own keys are removed" : 'it has no keys of mirror, so it stays unchanged'
      notes.push(`${file.path} was changed after mirror wrote it: ${what}.`)
      if (hasKeys) changes.push(change)
    }
  }
  return { changes, notes }
}

/** Carries out the changes of an undo, removes the folders that mirror created, then calls `conclude` to update the record. */
export async function applyUndo(
  record: ClientRecord,
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
    if (getErrno(cause) === undefined) throw cause
    throw new MirrorError(`The backup of ${path} cannot be read: ${before.backup}`, {
      hints: [`Remove the mirror's address from ${path} by hand`],
      cause,
    })
  }
}

function areSameBytes(one: Uint8Array | undefined, other: Uint8Array | undefined): boolean {
  if (one === undefined || other === undefined) return one === other
  return Buffer.from(one).equals(other)
}

/** Decodes UTF-8: mirror wrote the files as text, and read the earlier content as text. */
function decodeText(bytes: Uint8Array | undefined): string | undefined {
  return bytes && new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes)
}
