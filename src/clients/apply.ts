import { basename, join } from 'node:path'
import { makeFolder } from '../lib/fs.ts'
import { isAsWritten, sha256 } from './as-written.ts'
import type { FileChange } from './client-config.ts'
import type { ConfiguredClient, ConfiguredClients, ConfiguredFile } from './configured.ts'
import type { FilePort, FileState } from './file-port.ts'
import { localFiles } from './files/local.ts'
import { readUnchanged } from './read-unchanged.ts'
import { inWritingOrder } from './writing-order.ts'

export interface ApplyRequest {
  readonly changes: readonly FileChange[]
  readonly files: FilePort
  readonly configured: ConfiguredClients
  /** Where backups of this moment go. */
  readonly backupFolder: string
  /** What is to be remembered, without the files. */
  readonly entry: Omit<ConfiguredClient, 'files' | 'folders'>
  /** What was remembered of an earlier time. */
  readonly earlier: ConfiguredClient | undefined
  /**
   * A file that was changed after an earlier time, without our own keys: what an undo shall bring back. Undefined: the file
   * would not be there.
   */
  readonly withoutOurs: (path: string) => string | undefined
}

/**
 * Carries out a plan, the only place that does: a backup of each file, then the record that undo goes by, then the files, one
 * by one, each in place whole or not at all. Ended at any moment, undo finds its way back. Throws MirrorError for a file that
 * is no longer what the plan was made from.
 */
export async function applyPlan(request: ApplyRequest): Promise<ConfiguredClient> {
  const { changes, files, configured, entry, earlier } = request
  const states = new Map<string, FileState | undefined>()
  for (const change of changes) states.set(change.path, await readUnchanged(change, files))

  const recorded = new Map((earlier?.files ?? []).map((file) => [file.path, file]))
  for (const [number, change] of changes.entries()) {
    const state = states.get(change.path)
    const known = recorded.get(change.path)
    const isOurs = known !== undefined && isAsWritten(known, state?.bytes)
    recorded.set(change.path, {
      path: change.path,
      before: isOurs ? known.before : await keepBefore(change, state, known, number, request),
      written: change.after === undefined ? undefined : sha256(Buffer.from(change.after)),
      // What it stays when we are ended before it is written.
      ...(isOurs && state && { also: [sha256(state.bytes)] }),
    })
  }
  let record: ConfiguredClient = { ...entry, files: [...recorded.values()], folders: earlier?.folders ?? [] }
  await configured.put(record)
  for (const { path, after } of inWritingOrder(changes)) {
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
async function keepBefore(
  { path }: FileChange,
  state: FileState | undefined,
  earlier: ConfiguredFile | undefined,
  number: number,
  { backupFolder, withoutOurs }: ApplyRequest,
): Promise<ConfiguredFile['before']> {
  if (state === undefined) return undefined
  const bytes = earlier === undefined ? state.bytes : textBytes(withoutOurs(path))
  if (bytes === undefined) return undefined
  const { mode, uid, gid } = state
  const backup = join(backupFolder, `${number}-${basename(path)}`)
  await makeFolder(backupFolder)
  await localFiles.write(backup, bytes, { mode, uid, gid })
  return { backup, mode, uid, gid }
}

function textBytes(text: string | undefined): Uint8Array | undefined {
  return text === undefined ? undefined : Buffer.from(text)
}
