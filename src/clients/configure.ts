import { join } from 'node:path'
import { rootCommand } from '../admin/sudo.ts'
import { errnoOf, exitCode, MirrorError } from '../lib/errors.ts'
import { fileFailureReason } from '../lib/system-errors.ts'
import { applyPlan } from './apply.ts'
import { filesBelow } from './files/local.ts'
import type { MirrorAddress } from './find-mirror.ts'
import { configureCommand, isSameTarget, type KnownRecord, openMachineRecords } from './records.ts'
import {
  type ClientAdapter,
  type ConfigTarget,
  type ConfigPlan,
  type FileChange,
  type FilePort,
  FilesNow,
  type Machine,
  type MirrorForClient,
  type WantedFiles,
} from './types.ts'

interface PrepareRequest {
  readonly machine: Machine
  readonly adapter: ClientAdapter
  readonly place: ConfigTarget
  readonly mirror: MirrorAddress
  readonly fallback: boolean
  /** What root would be asked to do in the user's place: the arguments of this very command. */
  readonly args?: readonly string[]
}

/** All that would be done to one client, with nothing done yet. */
export interface PreparedClient extends PrepareRequest {
  readonly address: MirrorForClient
  /** Who reaches the mirror where, in one line. */
  readonly why: string
  readonly warning: string | undefined
  readonly plan: ConfigPlan
  readonly earlier: KnownRecord | undefined
  /** The command that takes back this place, and no other of the same client. */
  readonly wayBack: string
}

/** Plans, and has the client's own program look at it where it can. Throws MirrorError for what cannot be done safely. */
export async function prepareClient(request: PrepareRequest): Promise<PreparedClient> {
  const { machine, adapter, mirror, fallback } = request
  const place = resolveTargetBelowRoot(machine, request.place)
  const { why, warning, cache, registry, ca } = mirror.addressFor(place.location)
  const { registries, defaultUpstream } = mirror
  const address = { cache, registry, ca: ca?.pem, registries, defaultUpstream, fallback }
  const files = await readFiles(place.files, place.wants, () => getRootCommand(request))
  const earlier = (await openMachineRecords(machine).list()).findLast((record) =>
    isSameTarget(record, { client: adapter.client, place: place.id, root: getRecordRoot(machine) }),
  )
  const outdated = earlier && isOutdated(earlier, address) ? place.strip(earlier, files) : []
  const plan = planOnChangedFiles(files, outdated, (now) => place.plan(address, now))
  await assertWritable(plan.changes, { ...request, place }, earlier)
  await place.validate?.(plan.changes)
  const notes = [...plan.notes, ...(cache.startsWith('https:') && ca === undefined ? [publicCertificateNote] : [])]
  const { client } = adapter
  const configured = { client, root: getRecordRoot(machine), details: place.details }
  const wayBack = await configureCommand(machine, configured, '--undo')
  return { ...request, place, address, why, warning, plan: { ...plan, notes }, earlier, wayBack }
}

/** What is no longer true of the mirror must not stay behind in files that are not ours alone, nor name a CA that is taken away. */
function isOutdated(earlier: KnownRecord, { cache, registry, ca }: MirrorForClient): boolean {
  return earlier.cache !== cache || earlier.registry !== registry || (earlier.ca === true && ca === undefined)
}

const publicCertificateNote =
  'No CA is handed over: the certificate is taken for one that is trusted everywhere. Name its CA by "tls.ca" in mirror.yaml, or by --ca, if it is not.'

/** Carries the plan out. Changes nothing, and remembers nothing, when there is nothing to change. */
export async function configureClient(prepared: PreparedClient, now: Date): Promise<void> {
  const { machine, adapter, place, plan, earlier, address } = prepared
  const configured = openMachineRecords(machine)
  await configured.migrate()
  if (plan.changes.length === 0) return
  const since = now.toISOString()
  const before = earlier?.undone ? undefined : earlier
  const stripped = before ? place.strip(before, await readFiles(place.files, place.wants)) : []
  const root = getRecordRoot(machine)
  await applyPlan({
    changes: plan.changes,
    files: place.files,
    configured,
    backupFolder: join(configured.backupFolder({ root, details: place.details }), since.replaceAll(':', '-')),
    entry: {
      client: adapter.client,
      place: place.id,
      title: place.title,
      details: place.details,
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
  await place.settle?.(plan.changes.map(({ path }) => path))
}

/** The plan for files that changed so first, as one change of each file from what it really is. */
function planOnChangedFiles(
  files: FilesNow,
  first: readonly FileChange[],
  plan: (now: FilesNow) => ConfigPlan,
): ConfigPlan {
  const planned = plan(files.with(first))
  const after = new Map([...first, ...planned.changes].map((change) => [change.path, change.after]))
  return { ...planned, changes: [...after].flatMap(([path, text]) => files.change(path, text)) }
}

/** What a record keeps of `--root`. */
export function getRecordRoot(machine: Machine): string | undefined {
  return machine.detached ? machine.root : undefined
}

async function assertWritable(
  changes: readonly FileChange[],
  request: PrepareRequest,
  earlier: KnownRecord | undefined,
): Promise<void> {
  const { adapter, place, machine } = request
  const foreign: string[] = []
  for (const { path } of changes) if (!(await place.files.mayWrite(path))) foreign.push(path)
  const isRoots = changes.length > 0 && earlier?.lockedByRoot === true
  if (foreign.length === 0 && !isRoots) return
  const what =
    foreign.length > 0
      ? `No permission to write ${formatPaths(foreign)}.`
      : `${adapter.client} was configured by root, so only root can change that: ${place.title}.`
  const hasFilesOfUsers = !machine.detached && ['podman', 'containerd', 'buildkit'].includes(adapter.client)
  throw new MirrorError(what, {
    exit: exitCode.usage,
    hints: [
      await getRootCommand(request),
      ...(hasFilesOfUsers ? [`mirror configure ${adapter.client} --scope user   (your own files)`] : []),
    ],
  })
}

/** Many files of one kind are refused for one reason. */
function formatPaths(paths: readonly string[]): string {
  const [first, ...others] = paths
  return others.length === 0 ? first! : `${first} and ${others.length} more`
}

function getRootCommand({ machine, adapter, args }: PrepareRequest): Promise<string> {
  return rootCommand(machine, args ?? ['configure', adapter.client])
}

/**
 * Reads all that a writer wants to see. Throws MirrorError (usage) for what may not be read; `asRoot`: the command by which root
 * would do the same.
 */
export async function readFiles(
  files: FilePort,
  wanted: WantedFiles,
  asRoot?: () => Promise<string>,
): Promise<FilesNow> {
  const found = new Map<string, Uint8Array>()
  for (const path of wanted.files) await read(path)
  for (const tree of wanted.trees)
    for (const path of await translateReadErrors(tree, () => files.list(tree), asRoot)) await read(path)
  return new FilesNow(found)

  async function read(path: string): Promise<void> {
    const state = await translateReadErrors(path, () => files.read(path), asRoot)
    if (state) found.set(path, state.bytes)
  }
}

async function translateReadErrors<T>(
  path: string,
  ask: () => Promise<T>,
  asRoot: (() => Promise<string>) | undefined,
): Promise<T> {
  try {
    return await ask()
  } catch (cause) {
    const why = errnoOf(cause)
    if (why === undefined) throw cause
    const denied = why === 'EACCES' || why === 'EPERM'
    throw new MirrorError(
      denied ? `No permission to read ${path}.` : `${path} cannot be read: ${fileFailureReason(cause)}.`,
      {
        exit: exitCode.usage,
        hints: denied && asRoot ? [await asRoot(), '--scope user   (where the client has files of yours)'] : [],
        cause,
      },
    )
  }
}

/** A place as it is below `--root`, where a link means what it would mean if that were `/`. */
export function resolveTargetBelowRoot({ detached, root }: Machine, place: ConfigTarget): ConfigTarget {
  return detached ? { ...place, files: filesBelow(root) } : place
}
