import { adminClientHere } from '../admin/access.ts'
import type { AdminClient } from '../admin/client.ts'
import { findMirrorHere } from '../admin/find-mirror.ts'
import { exitCode, MirrorError } from '../lib/errors.ts'
import type { Surroundings } from '../lib/process.ts'
import { listRecord } from './configured.ts'
import { findMirror } from './find-mirror.ts'
import { configureCommand, openMachineRecords } from './records.ts'
import type { ConfigTarget, Machine } from './types.ts'

export interface CheckResult {
  /** The mirror was asked for the image, and the client has it. */
  readonly seen: boolean
  /** The mirror was asked, whatever became of it. */
  readonly asked: boolean
  /** What the client said when its pull failed. */
  readonly failed: string | undefined
  /** `docker.io/mirror-check/3f…:check` */
  readonly image: string
  /** What the client and its files said when it was not seen, a sentence each. */
  readonly saw: readonly string[]
  /** What explains it and fits what was seen. */
  readonly reasons: ConfigTarget['reasons']
}

/**
 * Proves by a pull that a client comes through the running mirror: the mirror offers an image that nobody else has, the client
 * pulls it, and the mirror says whether it was asked. Throws MirrorError when no mirror runs, or this client cannot be made
 * to pull.
 */
export async function checkClient(
  surroundings: Surroundings,
  machine: Machine,
  client: string,
  place: ConfigTarget,
): Promise<CheckResult> {
  if (!place.pull)
    throw new MirrorError(`Cannot run a ${client} pull on this machine, so there is nothing to check.`, {
      exit: exitCode.usage,
      hints: ['mirror logs -f   (while you pull by it)'],
    })
  const admin = await adminToCheckBy(surroundings)
  const { id, repository, tag } = await admin.offerProbeImage()
  const image = `docker.io/${repository}:${tag}`
  let failed: string | undefined
  let seen: Record<string, number>
  try {
    failed = (await place.pull(image)).failed
  } finally {
    seen = (await admin.endProbeImage(id)).seen
  }
  const asked = Object.keys(seen).length > 0
  const isSeen = asked && failed === undefined
  const why = isSeen ? { saw: [], reasons: [] } : await explainMissedPull(surroundings, machine, client, place)
  return { seen: isSeen, asked, failed, image, ...why }
}

/** What is to be seen of a client that went past the mirror, and what explains it. */
async function explainMissedPull(
  surroundings: Surroundings,
  machine: Machine,
  client: string,
  place: ConfigTarget,
): Promise<Pick<CheckResult, 'saw' | 'reasons'>> {
  const mirror = await getCurrentAddress(surroundings, place)
  const record = (await openMachineRecords(machine).list()).findLast(
    (one) => one.client === client && one.place === place.id && one.root === undefined && !one.undone,
  )
  const listed = record && (await listRecord(machine, record))
  const isAsWritten = listed !== undefined && listed.files.every(({ state }) => state === 'as written')
  const hasMoved = record !== undefined && mirror !== undefined && record.cache !== mirror
  const seen = mirror === undefined ? undefined : await place.observe?.({ cache: mirror })
  const configure = record === undefined ? `mirror configure ${client}` : await configureCommand(machine, record)
  const saw = [
    ...(record === undefined || mirror === undefined
      ? []
      : [describeRecord(client, record.cache, mirror, isAsWritten)]),
    ...(seen?.saw ?? []),
  ]
  const reasons = hasMoved
    ? [{ why: `${client} is configured for ${record.cache}, and the mirror is at ${mirror}`, fix: configure }]
    : (seen?.reasons ?? place.reasons.filter(({ isUnconfigured }) => !isUnconfigured || !isAsWritten))
  return { saw, reasons }
}

function describeRecord(client: string, written: string, mirror: string, isAsWritten: boolean): string {
  const files = isAsWritten ? 'its files are as mirror wrote them' : 'its files were changed since'
  return `${client} is configured for ${written}${written === mirror ? '' : ` (the mirror is at ${mirror})`}; ${files}.`
}

/** Where this client would reach the running mirror; undefined where it cannot. */
async function getCurrentAddress(surroundings: Surroundings, place: ConfigTarget): Promise<string | undefined> {
  try {
    return (await findMirror(surroundings, { url: undefined, caFile: undefined })).addressFor(place.location).cache
  } catch (error) {
    if (error instanceof MirrorError) return undefined
    throw error
  }
}

/** The mirror that a pull is to be seen by. Throws MirrorError (notRunning) when there is none. */
export async function adminToCheckBy(surroundings: Surroundings): Promise<AdminClient> {
  const here = await findMirrorHere(surroundings)
  if (here !== undefined) return adminClientHere(here)
  throw new MirrorError('mirror is not running, so the check cannot observe a pull.', {
    exit: exitCode.notRunning,
    hints: ['mirror up'],
  })
}
