import { createHash } from 'node:crypto'
import { basename, join } from 'node:path'
import { getErrno, MirrorError } from '../lib/errors.ts'
import { writeFileAtomic } from '../lib/fs.ts'
import { isCaFile } from './files/kinds.ts'
import type { ClientRecord, ClientRecords, RecordedFile } from './records.ts'
import type { FileChange, FilePort, FileState } from './types.ts'

interface ApplyRequest {
  readonly changes: readonly FileChange[]
  readonly files: FilePort
  readonly records: ClientRecords
  /** Holds the folder for the backups of this run. */
  readonly backupFolder: string
  /** Holds the record, without its files. */
  readonly entry: Omit<ClientRecord, 'files' | 'folders'>
  /** Holds the record of an earlier run. */
  readonly previous: ClientRecord | undefined
  /**
   * Returns a file that the user has changed since an earlier run, without mirror's keys: the content that an undo restores.
   * Undefined: an undo removes the file.
   */
  readonly getTextWithoutMirror: (path: string) => string | undefined
}

/**
 * Carries out a plan. No other function does. It writes a backup of each file, then the record for undo, then the files, each
 * atomically, so that an undo is exact after an abort at any moment. Throws MirrorError for a file that has changed since the plan
 * was made.
 */
export async function applyPlan(request: ApplyRequest): Promise<ClientRecord> {
  const { changes, files, records, entry, previous } = request
  const states = new Map<string, FileState | undefined>()
  for (const change of changes) states.set(change.path, await readUnchangedFile(change, files))

  const recorded = new Map((previous?.files ?? []).map((file) => [file.path, file]))
  for (const [number, change] of changes.entries()) {
    const state = states.get(change.path)
    const known = recorded.get(change.path)
    const isOwn = known !== undefined && isAsWritten(known, state?.bytes)
    recorded.set(change.path, {
      path: change.path,
      before: isOwn ? known.before : await backUp(change, state, known, number, request),
      written: change.after === undefined ? undefined : hashHex(Buffer.from(change.after)),
      // Accept the present content, which the file keeps after an abort before its write.
      ...(isOwn && state && { also: [hashHex(state.bytes)] }),
    })
  }
  let record: ClientRecord = { ...entry, files: [...recorded.values()], folders: previous?.folders ?? [] }
  await records.put(record)
  const left = new Set(changes.map(({ path }) => path))
  try {
    for (const { path, after } of sortForWriting(changes)) {
      await files.tidy?.(path)
      const created = after === undefined ? [] : await files.write(path, Buffer.from(after), states.get(path))
      if (after === undefined) await files.remove(path)
      left.delete(path)
      const newFolders = created.filter((folder) => !record.folders.includes(folder))
      if (newFolders.length === 0) continue
      record = { ...record, folders: [...record.folders, ...newFolders] }
      await records.put(record)
    }
  } catch (error) {
    await forgetUnwritten(record, left, states, request)
    throw error
  }
  return record
}

/**
 * Removes from a record the files that a failed run has not written, so that nothing claims that mirror wrote them. An earlier entry
 * of such a file counts again.
 */
async function forgetUnwritten(
  record: ClientRecord,
  left: ReadonlySet<string>,
  states: ReadonlyMap<string, FileState | undefined>,
  { files, records, previous }: ApplyRequest,
): Promise<void> {
  const kept = await Promise.all(
    record.files.map(async (file) => {
      if (!left.has(file.path) || !(await isUnchanged(file.path, states.get(file.path), files))) return file
      return previous?.files.find(({ path }) => path === file.path)
    }),
  )
  const remaining = kept.filter((file) => file !== undefined)
  const isNothingWritten = left.size > 0 && remaining.every((file) => previous?.files.includes(file))
  if (!isNothingWritten) return records.put({ ...record, files: remaining })
  if (previous !== undefined) return records.put({ ...previous, folders: record.folders })
  for (const folder of record.folders.toReversed()) await files.removeFolder(folder)
  await records.remove(record)
}

/** Reports whether a file has the content that it had before; false when it cannot be read. */
async function isUnchanged(path: string, before: FileState | undefined, files: FilePort): Promise<boolean> {
  try {
    const now = await files.read(path)
    return now === undefined
      ? before === undefined
      : before !== undefined && hashHex(now.bytes) === hashHex(before.bytes)
  } catch (error) {
    if (!(error instanceof MirrorError) && getErrno(error) === undefined) throw error
    return false
  }
}

/** Copies the content that an undo restores to the backup folder. */
async function backUp(
  { path }: FileChange,
  state: FileState | undefined,
  known: RecordedFile | undefined,
  number: number,
  { backupFolder, getTextWithoutMirror }: ApplyRequest,
): Promise<RecordedFile['before']> {
  if (state === undefined) return undefined
  const bytes = known === undefined ? state.bytes : encodeText(getTextWithoutMirror(path))
  if (bytes === undefined) return undefined
  const { mode, uid, gid } = state
  const backup = join(backupFolder, `${number}-${basename(path)}`)
  // The record has the owner, who may be one of a node or a virtual machine; this user must be able to read the backup.
  await writeFileAtomic(backup, bytes, (mode & 0o777) | 0o600)
  return { backup, mode, uid, gid }
}

function encodeText(text: string | undefined): Uint8Array | undefined {
  return text === undefined ? undefined : Buffer.from(text)
}

/**
 * Sorts changes so that a CA is written before the files that name it, and removed after them. A client would reject the registry
 * for a missing CA, in between or after an abort.
 */
export function sortForWriting(changes: readonly FileChange[]): FileChange[] {
  return changes.toSorted((one, other) => getWritingOrder(one) - getWritingOrder(other))
}

function getWritingOrder({ path, after }: FileChange): number {
  if (!isCaFile(path)) return 0
  return after === undefined ? 1 : -1
}

/** Reports whether a file has the content of mirror's last write, or the content that an aborted change has left. */
export function isAsWritten({ written, also = [] }: RecordedFile, bytes: Uint8Array | undefined): boolean {
  const now = bytes && hashHex(bytes)
  return now === written || (now !== undefined && also.includes(now))
}

/** Returns the SHA-256 in hex. */
export function hashHex(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

/** Reads a file. Throws MirrorError when it has changed since the plan was made. */
export async function readUnchangedFile(
  { path, before }: Pick<FileChange, 'path' | 'before'>,
  files: FilePort,
): Promise<FileState | undefined> {
  const state = await files.read(path)
  const same =
    before === undefined ? state === undefined : state !== undefined && Buffer.from(before).equals(state.bytes)
  if (same) return state
  throw new MirrorError(`${path} was changed by another program in the meantime; nothing was written.`, {
    hints: ['Run the same command again'],
  })
}
