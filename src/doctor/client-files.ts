import { readFile } from 'node:fs/promises'
import { readFiles } from '../clients/configure.ts'
import { type ConfiguredFileState, listRecord } from '../clients/configured.ts'
import { isWrittenByMirror } from '../clients/files/kinds.ts'
import type { StoredRecord } from '../clients/records.ts'
import type { findStaleClients } from '../clients/stale-clients.ts'
import type { ConfigTarget, Finding, Machine } from '../clients/types.ts'
import { getErrno, MirrorError } from '../lib/errors.ts'
import { ifVisible } from '../lib/fs.ts'
import { describeFileFailure, getFileFailureReason } from '../lib/system-errors.ts'
import { type Report, toOk, toSkipped } from './context.ts'

/** Holds the known faults of the files of a target, or why they cannot be read. */
export type Inspection =
  | {
      readonly findings: readonly Finding[]
      /** Is true when a file names the mirror, or has the header of mirror. */
      readonly namesMirror: boolean
    }
  | { readonly findings: undefined; readonly unreadable: string }

/** Reads the files of a target and finds their known faults. */
export async function inspectTarget(target: ConfigTarget, cache: string | undefined): Promise<Inspection> {
  if (target.inspect === undefined) return { findings: [], namesMirror: false }
  try {
    const files = await readFiles(target.files, target.inputs)
    const texts = files.paths.map((path) => files.getText(path) ?? '')
    const namesMirror = texts.some(
      (text) => isWrittenByMirror(text) || (cache !== undefined && text.includes(new URL(cache).host)),
    )
    return { findings: target.inspect(cache, files), namesMirror }
  } catch (error) {
    if (error instanceof MirrorError) return { findings: undefined, unreadable: error.message }
    if (getErrno(error) === undefined) throw error
    const { path, why } = describeFileFailure(error) ?? {}
    return { findings: undefined, unreadable: path === undefined ? getFileFailureReason(error) : `${path}: ${why}` }
  }
}

/** Explains that the cluster or the file of a configured target no longer exists; undefined when it does, or when that is unknown. */
export async function explainGone(target: ConfigTarget): Promise<string | undefined> {
  const { cluster, file } = target.details
  if (await target.isDeleted?.()) return `The cluster ${cluster} no longer exists.`
  if (file === undefined) return undefined
  try {
    return (await target.files.read(file)) === undefined ? `${file} no longer exists.` : undefined
  } catch (error) {
    if (!(error instanceof MirrorError) && getErrno(error) === undefined) throw error
    return undefined
  }
}

interface CheckedFiles {
  readonly isAsWritten: boolean
  /** Is true when mirror created each file that differs, so that to write them again changes nothing of the user's. */
  readonly isOwn: boolean
}

/** Compares the files with the record, and the address with that of the mirror. */
export async function checkFiles(
  target: ConfigTarget,
  record: StoredRecord,
  command: string,
  subject: string,
  { machine, stale }: { readonly machine: Machine; readonly stale: ReturnType<typeof findStaleClients> },
  report: Report,
): Promise<CheckedFiles> {
  const found = (await stale).find(({ record: one }) => one.client === record.client && one.place === record.place)
  const listed = await listRecord(machine, record)
  const differing = (listed?.files ?? []).filter(({ state }) => state === 'gone' || state === 'changed since')
  const areOwn = await Promise.all(
    differing.map(
      async ({ path, state }) => (await isCreated(record, path)) || (state !== 'gone' && hasHeader(target, path)),
    ),
  )
  const isOwn = !record.lockedByRoot && areOwn.every(Boolean)
  if (found !== undefined)
    report({
      id: 'clients.address',
      subject,
      state: 'fail',
      saw:
        found.to === undefined
          ? `${subject} has ${found.from}, and cannot reach the mirror: ${found.why}`
          : `${subject} has ${found.from}, and the mirror is at ${found.to}.`,
      fix: { command: stripNote(found.mend), isOwn: isOwn && (await areCreated(record)) },
    })
  else report(toOk('clients.address', `${subject} has ${record.cache}.`, subject))
  const wrong = (
    await Promise.all(
      (listed?.files ?? []).map(async ({ path, state }) => ({
        path,
        why: await explainFile(path, state, target, record),
      })),
    )
  ).filter(({ why }) => why !== undefined)
  for (const { path, why } of wrong) {
    const saw = `${path}, which mirror wrote, ${why}.`
    if (why === unreadable) report(toSkipped('clients.files', saw, subject))
    // A file of mirror that the user has changed may be right; the other checks tell.
    else
      report({ id: 'clients.files', subject, state: why === changed ? 'warn' : 'fail', saw, fix: { command, isOwn } })
  }
  if (wrong.length === 0) report(toOk('clients.files', undefined, subject))
  return { isAsWritten: wrong.length === 0, isOwn }
}

/** Reports whether mirror created a file, also when a newer record has an earlier version by mirror as its backup. */
async function isCreated({ files }: StoredRecord, path: string): Promise<boolean> {
  const before = files.find((file) => file.path === path)?.before
  if (before === undefined) return true
  const text = await ifVisible(readFile(before.backup, 'utf8'))
  return text !== undefined && isWrittenByMirror(text)
}

async function areCreated(record: StoredRecord): Promise<boolean> {
  const created = await Promise.all(record.files.map(({ path }) => isCreated(record, path)))
  return created.every(Boolean)
}

const unreadable = 'cannot be read'
const changed = 'was changed since'

/** Explains what is wrong with a recorded file; undefined for nothing. */
async function explainFile(
  path: string,
  state: ConfiguredFileState,
  target: ConfigTarget,
  { files, cache }: StoredRecord,
): Promise<string | undefined> {
  if (state === 'unreachable') return unreadable
  if (state === 'gone') return 'is gone'
  if (state !== 'changed since') return undefined
  const isShared = files.some((file) => file.path === path && file.before !== undefined)
  if (!isShared || (await hasHeader(target, path))) return changed
  // The user may change a file of the user's own, as long as it keeps what mirror added.
  const text = Buffer.from((await target.files.read(path))?.bytes ?? []).toString()
  return text.includes(new URL(cache).host) || text.includes('config_path') ? undefined : 'no longer names the mirror'
}

/** Reports whether a file still has the header of those that only mirror writes. */
async function hasHeader({ files }: ConfigTarget, path: string): Promise<boolean> {
  const state = await ifVisible(files.read(path))
  return state !== undefined && isWrittenByMirror(Buffer.from(state.bytes).toString())
}

/** Removes the note after a command. */
export function stripNote(text: string): string {
  return text.split('   (')[0]!
}

/** Returns the note after a command as a sentence; undefined without one. */
export function getNote(text: string): string | undefined {
  const note = /   \((.*)\)$/.exec(text)?.[1]
  return note && `${note[0]!.toUpperCase()}${note.slice(1)}`
}
