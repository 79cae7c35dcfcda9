import { join } from 'node:path'
import { applyPlan } from '../../clients/apply-plan.ts'
import type { ConfigPlan, FileChange, MirrorForClient } from '../../clients/client-config.ts'
import type { FilesNow } from '../../clients/files-now.ts'
import { isSamePlace, openConfiguredClients, type ConfiguredClient } from '../../clients/configured.ts'
import { MirrorError, exitCode } from '../../lib/errors.ts'
import { shellWord } from '../../lib/shell-word.ts'
import type { ClientAdapter, ClientPlace, Machine } from './client-adapter.ts'
import type { FoundMirror } from './find-mirror.ts'
import { placeBelowRoot } from './place-below-root.ts'
import { readFiles } from './read-files.ts'

export interface PrepareRequest {
  readonly machine: Machine
  readonly adapter: ClientAdapter
  readonly place: ClientPlace
  readonly mirror: FoundMirror
  readonly fallback: boolean
}

/** All that would be done to one client, with nothing done yet. */
export interface PreparedClient extends PrepareRequest {
  readonly address: MirrorForClient
  /** Who reaches the mirror where, in one line. */
  readonly why: string
  readonly warning: string | undefined
  readonly plan: ConfigPlan
  readonly earlier: ConfiguredClient | undefined
}

/** Plans, and has the client's own program look at it where it can. Throws MirrorError for what cannot be done safely. */
export async function prepareClient(request: PrepareRequest): Promise<PreparedClient> {
  const { machine, adapter, mirror, fallback } = request
  const place = placeBelowRoot(machine, request.place)
  const { why, warning, cache, registry, ca } = mirror.addressFor(place.home)
  const { registries, defaultUpstream } = mirror
  const address = { cache, registry, ca: ca?.pem, registries, defaultUpstream, fallback }
  const files = await readFiles(place.files, place.wants)
  const earlier = (await openConfiguredClients(machine.stateDir).list()).find((record) =>
    isSamePlace(record, { client: adapter.client, place: place.id, root: rootOf(machine) }),
  )
  const outdated = earlier && isOutdated(earlier, address) ? place.strip(earlier, files) : []
  const plan = planFrom(files, outdated, (now) => place.plan(address, now))
  await refuseForeign(
    plan.changes,
    { ...request, place },
    `--mirror ${cache}${ca === undefined ? '' : ` --ca ${shellWord(ca.file)}`}`,
  )
  await place.validate?.(plan.changes)
  const notes = [...plan.notes, ...(cache.startsWith('https:') && ca === undefined ? [trustedAnyway] : [])]
  return { ...request, place, address, why, warning, plan: { ...plan, notes }, earlier }
}

/** What is no longer true of the mirror must not stay behind in files that are not ours alone, nor name a CA that is taken away. */
function isOutdated(earlier: ConfiguredClient, { cache, registry, ca }: MirrorForClient): boolean {
  return earlier.cache !== cache || earlier.registry !== registry || (earlier.ca === true && ca === undefined)
}

const trustedAnyway =
  'No CA is handed over: the certificate is taken for one that is trusted everywhere. Name its CA by "tls.ca" in mirror.yaml, or by --ca, if it is not.'

/** Carries the plan out. Changes nothing, and remembers nothing, when there is nothing to change. */
export async function configureClient(prepared: PreparedClient, now: Date): Promise<void> {
  const { machine, adapter, place, plan, earlier, address } = prepared
  if (plan.changes.length === 0) return
  const since = now.toISOString()
  const stripped = earlier ? place.strip(earlier, await readFiles(place.files, place.wants)) : []
  await applyPlan({
    changes: plan.changes,
    files: place.files,
    configured: openConfiguredClients(machine.stateDir),
    backupFolder: join(machine.stateDir, 'backups', since.replaceAll(':', '-')),
    entry: {
      client: adapter.client,
      place: place.id,
      title: place.title,
      details: place.details,
      root: rootOf(machine),
      since,
      cache: address.cache,
      registry: address.registry,
      ...(address.ca !== undefined && { ca: true }),
      fallback: address.fallback,
    },
    earlier,
    withoutOurs(path) {
      const change = stripped.find((one) => one.path === path)
      return change ? change.after : plan.changes.find((one) => one.path === path)?.before
    },
  })
  await place.settle?.(plan.changes.map(({ path }) => path))
}

/** The plan for files that changed so first, as one change of each file from what it really is. */
function planFrom(files: FilesNow, first: readonly FileChange[], plan: (now: FilesNow) => ConfigPlan): ConfigPlan {
  const planned = plan(files.with(first))
  const after = new Map([...first, ...planned.changes].map((change) => [change.path, change.after]))
  return { ...planned, changes: [...after].flatMap(([path, text]) => files.change(path, text)) }
}

/** What a record keeps of `--root`. */
export function rootOf(machine: Machine): string | undefined {
  return machine.detached ? machine.root : undefined
}

async function refuseForeign(
  changes: readonly FileChange[],
  { adapter, place }: PrepareRequest,
  mirror: string,
): Promise<void> {
  const foreign: string[] = []
  for (const { path } of changes) if (!(await place.files.mayWrite(path))) foreign.push(path)
  if (foreign.length === 0) return
  throw new MirrorError(`You may not write ${foreign.join(', ')}.`, {
    exit: exitCode.usage,
    hints: [
      // Root has a state folder of its own, and no mirror in it.
      `sudo mirror configure ${adapter.client} ${mirror}`,
      `mirror configure ${adapter.client} --scope user   (files of your own, where the client has them)`,
    ],
  })
}
