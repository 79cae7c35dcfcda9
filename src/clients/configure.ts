import { access, constants, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { renderRootCommand } from '../admin/sudo.ts'
import { getErrno, exitCode, MirrorError } from '../lib/errors.ts'
import { ifVisible } from '../lib/fs.ts'
import { quoteShellWord } from '../lib/process.ts'
import { getFileFailureReason } from '../lib/system-errors.ts'
import { listDefaultTargets } from './adapters.ts'
import { applyPlan } from './apply.ts'
import { createRootedFiles } from './files/local.ts'
import type { MirrorAddress } from './find-mirror.ts'
import { getConfigureCommand, isSameTarget, openMachineRecords, type StoredRecord } from './records.ts'
import {
  type ClientAdapter,
  type ConfigPlan,
  type ConfigTarget,
  type FileChange,
  type FilePort,
  FilesSnapshot,
  type Machine,
  type MirrorForClient,
  type TargetInputs,
} from './types.ts'

interface PrepareRequest {
  readonly machine: Machine
  readonly adapter: ClientAdapter
  readonly target: ConfigTarget
  readonly mirror: MirrorAddress
  readonly fallback: boolean
  /** Holds the arguments of the current command, for a hint to run it as root. */
  readonly args?: readonly string[]
  /** Plans also what this user may not write. */
  readonly dryRun?: boolean
}

/** Holds the planned configuration of one client; nothing is written yet. */
export interface PreparedClient extends PrepareRequest {
  readonly address: MirrorForClient
  /** Holds one line with the client, its address of the mirror and the reason for it. */
  readonly why: string
  readonly warning: string | undefined
  readonly plan: ConfigPlan
  /** Explains why this user may not carry out the plan, and which user may; only of a dry run. */
  readonly denial: MirrorError | undefined
  readonly previous: StoredRecord | undefined
  /** Holds the command that undoes this target, and no other target of the client. */
  readonly undoCommand: string
}

/**
 * Plans the configuration of a client, and validates it by the client's own program where possible. Throws MirrorError for a plan
 * that cannot be carried out safely, or without permission unless it is a dry run.
 */
export async function prepareClient(request: PrepareRequest): Promise<PreparedClient> {
  const { machine, adapter, mirror, fallback } = request
  const target = resolveTargetBelowRoot(machine, request.target)
  const { why, warning, cache, registry, ca } = mirror.getAddress(target.location)
  const { registries, defaultUpstream } = mirror
  const address = { cache, registry, ca: ca?.pem, registries, defaultUpstream, fallback }
  const files = await readFiles(target.files, target.inputs, () => getRootCommand(request))
  const previous = (await openMachineRecords(machine).list()).findLast((record) =>
    isSameTarget(record, { client: adapter.client, place: target.id, root: getRecordRoot(machine) }),
  )
  const outdated = previous && isOutdated(previous, address) ? target.strip(previous, files) : []
  const plan = planOnChangedFiles(files, outdated, (now) => target.plan(address, now))
  const denial = await findDenial(plan.changes, { ...request, target }, previous)
  if (denial !== undefined && !request.dryRun) throw denial
  await target.validate?.(plan.changes)
  const losses = await Promise.all(plan.changes.map(async ({ path }) => target.files.describeLoss?.(path)))
  const notes = [
    ...plan.notes,
    ...losses.filter((loss) => loss !== undefined),
    ...(cache.startsWith('https:') && ca === undefined ? [publicCertificateNote] : []),
  ]
  const { client } = adapter
  const configured = { client, root: getRecordRoot(machine), details: target.details }
  const undoCommand = await getConfigureCommand(machine, configured, '--undo')
  return {
    ...request,
    target,
    address,
    why,
    warning,
    plan: { ...plan, notes },
    denial,
    previous,
    undoCommand,
  }
}

/**
 * Reports whether the earlier record has another address, or a CA that is no longer needed: its keys must be removed from shared
 * files.
 */
function isOutdated(previous: StoredRecord, { cache, registry, ca }: MirrorForClient): boolean {
  return previous.cache !== cache || previous.registry !== registry || (previous.ca === true && ca === undefined)
}

/** Holds a note for HTTPS without a known CA. */
const publicCertificateNote =
  'No CA is configured in the client, because the certificate is assumed to be publicly trusted. If it is not, set "tls.ca" in mirror.yaml, or pass --ca.'

/** Carries out the plan. Writes no file and no record when the plan has no changes. */
export async function configureClient(prepared: PreparedClient, now: Date): Promise<void> {
  const { machine, adapter, target, plan, previous, address } = prepared
  const configured = openMachineRecords(machine)
  await configured.migrate()
  if (plan.changes.length === 0) return
  const since = now.toISOString()
  const before = previous?.undone ? undefined : previous
  const stripped = before ? target.strip(before, await readFiles(target.files, target.inputs)) : []
  const root = getRecordRoot(machine)
  await applyPlan({
    changes: plan.changes,
    files: target.files,
    records: configured,
    backupFolder: join(configured.getBackupFolder({ root, details: target.details }), since.replaceAll(':', '-')),
    entry: {
      client: adapter.client,
      place: target.id,
      title: target.title,
      details: target.details,
      root,
      since,
      cache: address.cache,
      registry: address.registry,
      ...(address.ca !== undefined && { ca: true }),
      ...(prepared.mirror.isNamed && { isNamed: true }),
      fallback: address.fallback,
    },
    previous: before,
    getTextWithoutMirror(path) {
      const change = stripped.find((one) => one.path === path)
      return change ? change.after : plan.changes.find((one) => one.path === path)?.before
    },
  })
  await target.completeWrite?.(plan.changes.map(({ path }) => path))
}

/** Plans on the files after `first`, and merges both into one change of each current file. */
function planOnChangedFiles(
  files: FilesSnapshot,
  first: readonly FileChange[],
  plan: (now: FilesSnapshot) => ConfigPlan,
): ConfigPlan {
  const planned = plan(files.with(first))
  const after = new Map([...first, ...planned.changes].map((change) => [change.path, change.after]))
  return { ...planned, changes: [...after].flatMap(([path, text]) => files.change(path, text)) }
}

/** Returns `--root` as a record stores it; undefined without the flag. */
export function getRecordRoot(machine: Machine): string | undefined {
  return machine.detached ? machine.root : undefined
}

/** Returns the error (usage) for files that this user cannot write, or for a record that only root can change; else undefined. */
async function findDenial(
  changes: readonly FileChange[],
  request: PrepareRequest,
  previous: StoredRecord | undefined,
): Promise<MirrorError | undefined> {
  const { adapter, target, machine } = request
  const denied: string[] = []
  for (const { path } of changes) if (!(await target.files.mayWrite(path))) denied.push(path)
  const belongsToRoot = changes.length > 0 && previous?.lockedByRoot === true
  if (denied.length === 0 && !belongsToRoot) return undefined
  const what =
    denied.length > 0
      ? `No permission to write ${formatPaths(denied)}.`
      : `${adapter.client} was configured by root, so only root can change that: ${target.title}.`
  const closed = belongsToRoot ? undefined : await findChmod(denied[0]!)
  if (closed !== undefined) return new MirrorError(what, { exit: exitCode.usage, hints: [closed] })
  const hasUserScope =
    !machine.detached &&
    target.details['scope'] !== 'user' &&
    (await listDefaultTargets(machine, adapter)).some(({ details }) => details['scope'] === 'user')
  return new MirrorError(what, {
    exit: exitCode.usage,
    hints: [
      await getRootCommand(request),
      ...(hasUserScope ? [`mirror configure ${adapter.client} --scope user   (your own files)`] : []),
    ],
  })
}

/**
 * Returns the command that makes writable the folder of this user that prevents the write of a file; undefined if it is another
 * user's folder.
 */
async function findChmod(path: string): Promise<string | undefined> {
  let folder = dirname(path)
  let stats = await ifVisible(stat(folder))
  while (stats === undefined && folder !== dirname(folder)) {
    folder = dirname(folder)
    stats = await ifVisible(stat(folder))
  }
  if (stats === undefined || stats.uid !== process.geteuid?.()) return undefined
  const checkAccess = async (mode: number) => {
    try {
      await access(folder, mode)
      return undefined
    } catch (error) {
      const code = getErrno(error)
      if (code === undefined) throw error
      return code
    }
  }
  const [writeFailure, searchFailure] = await Promise.all([checkAccess(constants.W_OK), checkAccess(constants.X_OK)])
  // No mode helps on a read-only file system.
  if ((writeFailure ?? searchFailure) === undefined || writeFailure === 'EROFS') return undefined
  return `chmod ${searchFailure === undefined ? 'u+w' : 'u+wx'} ${quoteShellWord(folder)}`
}

/** Shortens a list of paths to the first and a count. */
function formatPaths(paths: readonly string[]): string {
  const [first, ...others] = paths
  if (others.length === 0) return first!
  return `${first} and ${others.length} more ${others.length === 1 ? 'file' : 'files'}`
}

function getRootCommand({ machine, adapter, args }: PrepareRequest): Promise<string> {
  return renderRootCommand(machine, args ?? ['configure', adapter.client])
}

/**
 * Reads the files and folders that a target declares in `inputs`. Throws MirrorError (usage) for an unreadable one. `asRoot` returns
 * the command to run as root instead, for a hint.
 */
export async function readFiles(
  files: FilePort,
  inputs: TargetInputs,
  asRoot?: () => Promise<string>,
): Promise<FilesSnapshot> {
  const found = new Map<string, Uint8Array>()
  // Read at once, because each file in a node or a virtual machine takes a program there.
  const trees = inputs.trees.map(async (tree) => {
    const paths = await translateReadErrors(tree, () => files.list(tree), asRoot)
    await Promise.all(paths.map(read))
  })
  await Promise.all([...inputs.files.map(read), ...trees])
  return new FilesSnapshot(found)

  async function read(path: string): Promise<void> {
    const state = await translateReadErrors(path, () => files.read(path), asRoot)
    if (state) found.set(path, state.bytes)
  }
}

async function translateReadErrors<T>(
  path: string,
  read: () => Promise<T>,
  asRoot: (() => Promise<string>) | undefined,
): Promise<T> {
  try {
    return await read()
  } catch (cause) {
    const code = getErrno(cause)
    if (code === undefined) throw cause
    const denied = code === 'EACCES' || code === 'EPERM'
    throw new MirrorError(
      denied ? `No permission to read ${path}.` : `${path} cannot be read: ${getFileFailureReason(cause)}.`,
      {
        exit: exitCode.usage,
        hints: denied && asRoot ? [await asRoot(), '--scope user   (if the client reads files of your own)'] : [],
        cause,
      },
    )
  }
}

/** Returns a target whose files resolve symbolic links below `--root` as if that were `/`. */
export function resolveTargetBelowRoot({ detached, root }: Machine, target: ConfigTarget): ConfigTarget {
  return detached ? { ...target, files: createRootedFiles(root) } : target
}

/** Describes what `mirror configure` of a target would do now. */
export type Rehearsal =
  | { readonly refusal: MirrorError }
  | {
      readonly refusal: undefined
      readonly plan: ConfigPlan
      /** Holds the files as they would be afterwards. */
      readonly after: FilesSnapshot
    }

/** Plans the configuration of a target and writes nothing, so that nobody is told to run a command that would not help. */
export async function rehearseConfigure(request: {
  readonly machine: Machine
  readonly adapter: ClientAdapter
  readonly target: ConfigTarget
  readonly mirror: MirrorAddress
  readonly fallback: boolean
}): Promise<Rehearsal> {
  try {
    const { plan, target } = await prepareClient({ ...request, dryRun: true })
    const files = await readFiles(target.files, target.inputs)
    return { refusal: undefined, plan, after: files.with(plan.changes) }
  } catch (error) {
    if (error instanceof MirrorError) return { refusal: error }
    if (getErrno(error) === undefined) throw error
    return { refusal: new MirrorError(error instanceof Error ? error.message : String(error)) }
  }
}

/**
 * Explains why `mirror configure` would not mend a finding, as a step for the user; undefined if it would. `saw`: the finding.
 * `path`: the file that it is about. `remains`: finds out whether it is still there afterwards. `command`: that of `mirror configure`.
 */
export function explainUselessConfigure(
  rehearsal: Rehearsal,
  {
    saw,
    path,
    remains,
    command,
  }: {
    readonly saw: string
    readonly path?: string | undefined
    readonly remains?: (after: FilesSnapshot) => boolean
    readonly command: string
  },
): string | undefined {
  const { refusal } = rehearsal
  if (refusal !== undefined) return isCommand(refusal.hints[0]) ? undefined : describeRefusal(refusal, command)
  const { plan, after } = rehearsal
  const words = new Set(saw.split(/[\s,]+/).map((word) => word.replace(/[.:;]$/, '')))
  const left = path === undefined ? plan.leftOut?.find(({ registry }) => words.has(registry)) : undefined
  if (left !== undefined) return `${left.why} Then run: mirror up; ${command}`
  const isIdle = path === undefined ? plan.changes.length === 0 : !plan.changes.some((change) => change.path === path)
  if (remains === undefined ? !isIdle : !remains(after)) return undefined
  const step = `${command} would not change that; ${command} --undo removes what mirror recorded.`
  return [step, ...plan.notes].join(' ')
}

/** Reports whether a hint is a command that names the same problem, or does what this user may not do. */
function isCommand(hint: string | undefined): boolean {
  return hint !== undefined && /^(?:sudo|chmod|mirror|docker|kind) /.test(hint)
}

function describeRefusal({ message, hints: [hint] }: MirrorError, command: string): string {
  if (hint === undefined) return message
  const step = hint.replace(/(?:run )?the (?:same )?command again/, (again) =>
    again.startsWith('run') ? `run: ${command}` : command,
  )
  return step.charAt(0).toUpperCase() + step.slice(1)
}
