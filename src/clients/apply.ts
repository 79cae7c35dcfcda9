import { createHash } from 'node:crypto'
import { basename, join } from 'node:path'
import { MirrorError } from '../lib/errors.ts'
import { makeFolder } from '../lib/fs.ts'
import { isCaFile } from './files/kinds.ts'
import { localFiles } from './files/local.ts'
import type { ConfiguredClient, ConfiguredClients, RecordedFile } from './records.ts'
import type { FileChange, FilePort, FileState } from './types.ts'

interface ApplyRequest {
  readonly changes: readonly FileChange[]
  readonly files: FilePort
  readonly configured: ConfiguredClients
  /** Where backups of this moment go. */
  readonly backupFolder: string
  /** What is to be remembered, without the files. */
  readonly entry: Omit<ConfiguredClient, 'files' | 'folders'>
  /** What was remembered of an earlier time. */
  readonly previous: ConfiguredClient | undefined
  /**
   * A file that was changed after an earlier time, without our own keys: what an undo shall bring back. Undefined: the file
   * would not be there.
   */
  readonly getTextWithoutMirror: (path: string) => string | undefined
}

/**
 * Carries out a plan, the only place that does: a backup of each file, then the record that undo goes by, then the files, one
 * by one, each in place whole or not at all. Ended at any moment, undo finds its way back. Throws MirrorError for a file that
 * is no longer what the plan was made from.
 */
export async function applyPlan(request: ApplyRequest): Promise<ConfiguredClient> {
  const { changes, files, configured, entry, previous: earlier } = request
  const states = new Map<string, FileState | undefined>()
  for (const change of changes) states.set(change.path, await readUnchangedFile(change, files))

  const recorded = new Map((earlier?.files ?? []).map((file) => [file.path, file]))
  for (const [number, change] of changes.entries()) {
    const state = states.get(change.path)
    const known = recorded.get(change.path)
    const isOurs = known !== undefined && isAsWritten(known, state?.bytes)
    recorded.set(change.path, {
      path: change.path,
      before: isOurs ? known.before : await backUp(change, state, known, number, request),
      written: change.after === undefined ? undefined : hashHex(Buffer.from(change.after)),
      // What it stays when we are ended before it is written.
      ...(isOurs && state && { also: [hashHex(state.bytes)] }),
    })
  }
  let record: ConfiguredClient = { ...entry, files: [...recorded.values()], folders: earlier?.folders ?? [] }
  await configured.put(record)
  for (const { path, after } of sortForWriting(changes)) {
    await files.tidy?.(path)
    if (after === undefined) {
      await files.remove(path)
      continue
    }
    const made = await files.write(path, Buffer.from(after), states.get(path))
    const fresh = made.filter((folder) => !record.folders.includes(folder))
    if (fresh.length === 0) continue
    record = { ...record, folders: [...record.folders, ...fresh] }
    await configured.put(record)
  }
  return record
}

/** What undo will bring back, as a copy in the backup folder. */
async function backUp(
  { path }: FileChange,
  state: FileState | undefined,
  earlier: RecordedFile | undefined,
  number: number,
  { backupFolder, getTextWithoutMirror: withoutOurs }: ApplyRequest,
): Promise<RecordedFile['before']> {
  if (state === undefined) return undefined
  const bytes = earlier === undefined ? state.bytes : encodeText(withoutOurs(path))
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
 * The order in which files are written: a CA is there before what names it, and goes after it. In between, or ended there, a
 * client would refuse the registry for the missing file.
 */
export function sortForWriting(changes: readonly FileChange[]): FileChange[] {
  return changes.toSorted((one, other) => getWritingOrder(one) - getWritingOrder(other))
}

function getWritingOrder({ path, after }: FileChange): number {
  if (!isCaFile(path)) return 0
  return after === undefined ? 1 : -1
}

/** Whether a file is as we left it: as it was written last, or as a change that was cut short has left it. */
export function isAsWritten({ written, also = [] }: RecordedFile, bytes: Uint8Array | undefined): boolean {
  const now = bytes && hashHex(bytes)
  return now === written || (now !== undefined && also.includes(now))
}

/** In hex. */
export function hashHex(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

/** The file as it is. Throws MirrorError when that is not what the change was made from. */
export async function readUnchangedFile(
  { path, before }: Pick<FileChange, 'path' | 'before'>,
  files: FilePort,
): Promise<FileState | undefined> {
  const state = await files.read(path)
  const same =
    before === undefined ? state === undefined : state !== undefined && Buffer.from(before).equals(state.bytes)
  if (same) return state
  throw new MirrorError(`${path} was changed by somebody else just now; nothing was written.`, {
    hints: ['run the same command again'],
  })
}
