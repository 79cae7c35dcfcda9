import { readFile } from 'node:fs/promises'
import { MirrorError, errnoOf } from '../lib/errors.ts'
import { isAsWritten } from './as-written.ts'
import type { FileChange } from './client-config.ts'
import type { ConfiguredClient, ConfiguredFile } from './configured.ts'
import type { FilePort, FileState } from './file-port.ts'
import { inWritingOrder } from './writing-order.ts'

/** What undoing would do. */
export interface UndoPlan {
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
    const was = await bytesBefore(file)
    if (isSame(state?.bytes, was)) continue
    if (isAsWritten(file, state?.bytes)) {
      changes.push({ path: file.path, before: text(state?.bytes), after: text(was) })
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
  for (const { path, after } of inWritingOrder(changes)) {
    if (after === undefined) await files.remove(path)
    else await files.write(path, Buffer.from(after), (await files.read(path)) ?? attributes(recorded.get(path)))
  }
  for (const folder of record.folders.toReversed()) await files.removeFolder(folder)
  await conclude()
}

function attributes(file: ConfiguredFile | undefined): Omit<FileState, 'bytes'> | undefined {
  return file?.before && { mode: file.before.mode, uid: file.before.uid, gid: file.before.gid }
}

async function bytesBefore({ path, before }: ConfiguredFile): Promise<Uint8Array | undefined> {
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

function isSame(one: Uint8Array | undefined, other: Uint8Array | undefined): boolean {
  if (one === undefined || other === undefined) return one === other
  return Buffer.from(one).equals(other)
}

/** What was written was text, and what was there before was read as text. */
function text(bytes: Uint8Array | undefined): string | undefined {
  return bytes && new TextDecoder('utf-8', { ignoreBOM: true }).decode(bytes)
}
