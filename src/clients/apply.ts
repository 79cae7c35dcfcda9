import { createHash } from 'node:crypto'
import { basename, join } from 'node:path'
import { MirrorError } from '../lib/errors.ts'
import { makeFolder } from '../lib/fs.ts'
import { isCaFile } from './files/kinds.ts'
import { localFiles } from './files/local.ts'
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
  for (const { path, after } of sortForWriting(changes)) {
    await files.tidy?.(path)
    if (after === undefined) {
      await files.remove(path)
      continue
    }
    const created = await files.write(path, Buffer.from(after), states.get(path))
    const newFolders = created.filter((folder) => !record.folders.includes(folder))
    if (newFolders.length === 0) continue
    record = { ...record, folders: [...record.folders, ...newFolders] }
    await records.put(record)
  }
  return record
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
  await makeFolder(backupFolder)
  await localFiles.write(backup, bytes, { mode, uid, gid })
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
