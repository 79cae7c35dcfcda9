import { createClientForMirror } from '../admin/access.ts'
import type { AdminClient } from '../admin/client.ts'
import { findRunningMirror } from '../admin/find-mirror.ts'
import { exitCode, MirrorError } from '../lib/errors.ts'
import type { CommandEnvironment } from '../lib/process.ts'
import { getAdapter } from './adapters.ts'
import { listRecord } from './configured.ts'
import { findMirrorAddress } from './find-mirror.ts'
import { getConfigureCommand, openMachineRecords, type StoredRecord } from './records.ts'
import { explainUselessConfigure, rehearseConfigure } from './configure.ts'
import type { ConfigTarget, Machine, Reason } from './types.ts'

/** Reports the result of a check by a pull. */
export interface ClientCheckResult {
  /** Is true when the mirror received the request for the image, and the pull succeeded. */
  readonly seen: boolean
  /** Is true when the mirror received a request, whether the pull succeeded or not. */
  readonly asked: boolean
  /** Holds the client's error output when its pull failed. */
  readonly failed: string | undefined
  /** Names the image, as `docker.io/mirror-check/3f…:check`. */
  readonly image: string
  /** Lists observations of the client and its files, a sentence each; empty when `seen`. */
  readonly saw: readonly string[]
  /** Lists likely causes that fit the observations, the likeliest first; empty when `seen`. */
  readonly reasons: ConfigTarget['reasons']
}

/**
 * Verifies by a pull that a client uses the running mirror: the mirror offers a one-off probe image, the client pulls it, and the
 * mirror reports the requests for it. Throws MirrorError when no mirror runs, or when this client cannot run a pull.
 */
export async function checkClient(
  surroundings: CommandEnvironment,
  machine: Machine,
  client: string,
  target: ConfigTarget,
): Promise<ClientCheckResult> {
  if (!target.pull && client === 'docker' && !machine.detached && target.details['kind'] !== 'file')
    throw new MirrorError(`No Docker engine answers for ${target.title}, so there is nothing to check.`, {
      exit: exitCode.missing,
      hints: ['docker info   (shows if Docker runs)'],
    })
  if (!target.pull)
    throw new MirrorError(`Cannot run a ${client} pull on this machine, so there is nothing to check.`, {
      exit: exitCode.usage,
      hints: ['mirror logs -f   (shows the requests of a pull that you run)'],
    })
  const admin = await getAdminForCheck(surroundings)
  const { id, repository, tag } = await admin.offerProbeImage()
  const image = `docker.io/${repository}:${tag}`
  let failed: string | undefined
  let seen: Record<string, number>
  try {
    failed = (await target.pull(image)).failed
  } finally {
    seen = (await admin.endProbeImage(id)).seen
  }
  const asked = Object.keys(seen).length > 0
  const isSeen = asked && failed === undefined
  const explanation = isSeen
    ? { saw: [], reasons: [] }
    : await explainMissedPull(surroundings, machine, client, target, failed ?? '')
  return { seen: isSeen, asked, failed, image, ...explanation }
}

/** Collects observations and likely causes for a pull that bypassed the mirror. */
async function explainMissedPull(
  surroundings: CommandEnvironment,
  machine: Machine,
  client: string,
  target: ConfigTarget,
  output: string,
): Promise<Pick<ClientCheckResult, 'saw' | 'reasons'>> {
  const mirror = await getCurrentAddress(surroundings, target)
  const record = (await openMachineRecords(machine).list()).findLast(
    (one) => one.client === client && one.place === target.id && one.root === undefined && !one.undone,
  )
  const listed = record && (await listRecord(machine, record))
  const isAsWritten = listed !== undefined && listed.files.every(({ state }) => state === 'as written')
  const hasMoved = record !== undefined && mirror !== undefined && record.cache !== mirror
  const observation = mirror === undefined ? undefined : await target.observe?.({ cache: mirror })
  const configure = record === undefined ? `mirror configure ${client}` : await getConfigureCommand(machine, record)
  const saw = [
    ...(record === undefined || mirror === undefined
      ? []
      : [describeRecord(client, record.cache, mirror, isAsWritten)]),
    ...(observation?.saw ?? []),
  ]
  const reasons = hasMoved
    ? [{ why: `${client} is configured for ${record.cache}, and the mirror is at ${mirror}`, fix: configure }]
    : (observation?.reasons ?? target.reasons.filter(({ isUnconfigured }) => !isUnconfigured || !isAsWritten))
  const fixes = explainOutput(client, output) ?? reasons
  if (hasMoved || record === undefined || !fixes.some(({ fix }) => fix === configure)) return { saw, reasons: fixes }
  const step = await findOtherStep(surroundings, machine, record, target, { saw: saw.join(' '), command: configure })
  return {
    saw,
    reasons: fixes.map((one) => (one.fix === configure && step !== undefined ? { ...one, fix: step } : one)),
  }
}

/** Returns the step that helps where `mirror configure` would change nothing; undefined where it helps, or no mirror runs. */
async function findOtherStep(
  surroundings: CommandEnvironment,
  machine: Machine,
  { client, fallback }: StoredRecord,
  target: ConfigTarget,
  finding: { readonly saw: string; readonly command: string },
): Promise<string | undefined> {
  const mirror = await findMirrorAddress(surroundings, { url: undefined, caFile: undefined })
  const rehearsal = await rehearseConfigure({ machine, adapter: await getAdapter(client), target, mirror, fallback })
  return explainUselessConfigure(rehearsal, finding)
}

interface OutputReason extends Reason {
  /** Names the file that the client cannot read. */
  readonly file: string
}

/** Returns the cause that the client's own output names; undefined when it names none. */
export function explainOutput(client: string, output: string): readonly OutputReason[] | undefined {
  if (output.trim().endsWith(' is not installed.')) return []
  const refused = refusedFile.exec(output)?.groups
  if (refused === undefined) return undefined
  const line = /\bline:? (\d+)/.exec(output)?.[1]
  return [
    {
      why: `${client} cannot read ${refused['file']}${line === undefined ? '' : ` (line ${line})`}`,
      fix: `Fix the file, then run the check again`,
      file: refused['file']!,
    },
  ]
}

/** `Error: loading registries configuration "/etc/containers/registries.conf": toml: line 10: …` */
const refusedFile = /\b(?:load|read|pars|decod)ing [^"'\n/]*conf[^"'\n/]*["'](?<file>\/[^"'\n]+)["']:/i

function describeRecord(client: string, written: string, mirror: string, isAsWritten: boolean): string {
  const files = isAsWritten ? 'its files are as mirror wrote them' : 'its files were changed since'
  return `${client} is configured for ${written}${written === mirror ? '' : ` (the mirror is at ${mirror})`}; ${files}.`
}

/** Returns the address of the running mirror for this client; undefined when the client cannot reach it. */
async function getCurrentAddress(surroundings: CommandEnvironment, target: ConfigTarget): Promise<string | undefined> {
  try {
    return (await findMirrorAddress(surroundings, { url: undefined, caFile: undefined })).getAddress(target.location)
      .cache
  } catch (error) {
    if (error instanceof MirrorError) return undefined
    throw error
  }
}

/** Connects to the admin API of the running mirror. Throws MirrorError (notRunning) without one. */
export async function getAdminForCheck(surroundings: CommandEnvironment): Promise<AdminClient> {
  const found = await findRunningMirror(surroundings)
  if (found !== undefined) return createClientForMirror(found)
  throw new MirrorError('mirror is not running, so the check cannot observe a pull.', {
    exit: exitCode.notRunning,
    hints: ['mirror up'],
  })
}
