import { getAdapter } from '../clients/adapters.ts'
import { isLoopbackUrl } from '../clients/address.ts'
import { checkClient, explainOutput } from '../clients/check.ts'
import { findMirrorAddress, type MirrorAddress } from '../clients/find-mirror.ts'
import { getConfigureCommand, getFirstCommand, openMachineRecords, type StoredRecord } from '../clients/records.ts'
import { inspectKanikoVariables } from '../clients/kaniko.ts'
import { findStaleNodes, openKindNodes } from '../clients/kind/nodes.ts'
import { explainUselessConfigure, type Rehearsal, rehearseConfigure } from '../clients/configure.ts'
import { findStaleClients } from '../clients/stale-clients.ts'
import { type ClientName, clientNames, type ConfigTarget, type Finding, type Machine } from '../clients/types.ts'
import { getTarget } from '../clients/undo.ts'
import { MirrorError } from '../lib/errors.ts'
import { checkFiles, explainGone, getNote, type Inspection, inspectTarget, stripNote } from './client-files.ts'
import { type DoctorContext, notRunning, type Outcome, type Report, type Task, toOk, toSkipped } from './context.ts'
import { type CheckedTarget, listClusters, listFaultIds, listTargets } from './targets.ts'

const pullTimeoutMs = 180_000

/** Lists the clients that another one brings along, or that concern only new clusters: not to configure them is no mistake. */
const optional: ReadonlySet<ClientName> = new Set(['buildkit', 'containerd', 'kind', 'k3d', 'minikube'])

/** Lists the faults that each kind cluster has before mirror configures it. */
const mirrorFaults: ReadonlySet<string> = new Set(['containerd.config-path', 'kind.hosts'])

const general = ['configured', 'exists', 'files', 'address', 'running', 'loopback'] as const

/** Holds what the checks of all clients need. */
interface Surroundings {
  readonly context: DoctorContext
  readonly machine: Machine
  /** Resolves to undefined when no mirror runs. */
  readonly address: Promise<MirrorAddress | undefined>
  readonly stale: ReturnType<typeof findStaleClients>
  readonly records: Promise<readonly StoredRecord[]>
}

/** Lists the checks of the clients that are installed or configured on this machine. */
export async function listClientTasks(context: DoctorContext): Promise<Task[]> {
  const { surroundings, machine, clients } = context
  const all: Surroundings = {
    context,
    machine,
    address: findMirrorAddress(surroundings, { url: undefined, caFile: undefined }).catch((error: unknown) => {
      if (error instanceof MirrorError) return undefined
      throw error
    }),
    stale: findStaleClients(surroundings),
    records: listActiveRecords(machine),
  }
  // Prevent an unhandled rejection when no selected check awaits them.
  for (const promise of [all.address, all.stale, all.records]) promise.catch(() => {})
  const names = clients.length === 0 ? clientNames : clients
  return names.flatMap((client): Task[] => [
    {
      ids: [...general.map((name) => `clients.${name}`), ...listFaultIds(client)],
      subject: client,
      run: (report) => checkTargets(client, all, report),
    },
    ...(context.pull
      ? [
          {
            ids: ['clients.pull'],
            subject: client,
            timeoutMs: pullTimeoutMs,
            run: (report: Report) => checkPulls(client, all, report),
          },
        ]
      : []),
  ])
}

async function listActiveRecords(machine: Machine): Promise<readonly StoredRecord[]> {
  const records = await openMachineRecords(machine).list()
  return records.filter(({ root, undone }) => root === undefined && undone !== true)
}

async function checkTargets(client: ClientName, all: Surroundings, report: Report): Promise<void> {
  const { machine, context } = all
  const adapter = await getAdapter(client)
  if (client === 'kaniko')
    for (const finding of inspectKanikoVariables(machine.env)) report(await toOutcome(finding, client, undefined))
  const clusters = client === 'kind' ? listClusters(machine) : Promise.resolve([])
  const [what, allRecords] = await Promise.all([adapter.find(machine), all.records, clusters])
  const records = allRecords.filter((record) => record.client === client)
  if (what === undefined && records.length === 0) {
    if (context.clients.includes(client))
      report(toSkipped('clients.configured', `${client} is not installed on this machine`, client))
    return
  }
  const targets = await listTargets(adapter, records, await clusters, machine, report)
  await Promise.all(targets.map((checked) => checkTarget(client, checked, all, report)))
}

/** Names a target for a person: `kind cluster dev`, `docker, system`. */
function nameTarget(client: ClientName, { title, details }: ConfigTarget): string {
  const { cluster } = details
  return cluster === undefined ? `${client}, ${title.replace(/ \(.*\)$/, '')}` : `${client} cluster ${cluster}`
}

async function checkTarget(
  client: ClientName,
  { target, record }: CheckedTarget,
  all: Surroundings,
  tell: Report,
): Promise<void> {
  const { machine } = all
  const subject = nameTarget(client, target)
  const failed: Outcome[] = []
  if (record !== undefined) {
    const gone = await explainGone(target)
    if (gone !== undefined) {
      const fix = { command: await getConfigureCommand(machine, record, '--undo'), isOwn: !record.lockedByRoot }
      const saw = `${gone} Only the record of its configuration is left.`
      return tell({ id: 'clients.exists', subject, state: 'warn', saw, fix })
    }
    tell(toOk('clients.exists', undefined, subject))
  }
  const mirror = await all.address
  const current = mirror === undefined ? undefined : getCache(mirror, target)
  const cache = current ?? record?.cache
  const command = await (record ? getConfigureCommand(machine, record) : getFirstCommand(machine, client, target))
  // Keep what needs `mirror configure` until it is known that this helps, or until there is no time left to find out.
  const kept: Outcome[] = []
  const { probeSignal } = all.context
  const release = () => kept.splice(0).forEach(tell)
  probeSignal.addEventListener('abort', release, { once: true })
  const report = (outcome: Outcome) => {
    if (outcome.state === 'fail') failed.push(outcome)
    const isKept = outcome.fix?.command === command && mirror !== undefined && !probeSignal.aborted
    if (isKept) kept.push(outcome)
    else tell(outcome)
  }
  const [files, observation, inspection] = await Promise.all([
    record === undefined ? undefined : checkFiles(target, record, command, subject, all, report),
    cache === undefined ? undefined : target.observe?.({ cache, since: record?.since }),
    inspectTarget(target, cache),
  ])
  const isOwn = target.isOwn === true || files?.isOwn === true
  const isCluster = client === 'kind' && target.details['cluster'] !== undefined
  const isRead = inspection.findings !== undefined
  const isForeign = isCluster && record === undefined && isRead && !inspection.namesMirror
  const findings = (inspection.findings ?? []).filter(({ fault }) => !isForeign || !mirrorFaults.has(fault))
  for (const finding of findings) report(await toOutcome(finding, subject, { command, isOwn }))
  const works = isCluster && isRead ? !isForeign && !findings.some(({ state }) => state === 'fail') : undefined
  const inUse = observation?.inUse ?? works
  if (record !== undefined)
    report(toOk('clients.configured', `${subject} is configured since ${record.since}.`, subject))
  else if (inUse === true) report(toOk('clients.configured', `${subject} uses the mirror.`, subject))
  else if (isForeign) {
    const saw = `${subject} is not configured for the mirror.`
    report({ id: 'clients.configured', subject, state: 'warn', saw, fix: { command, isOwn: false } })
  } else if (!isCluster) reportUnconfigured(client, subject, command, all, report)
  const failure = observation?.failure
  if (failure !== undefined) reportFailure(client, failure, subject, failed, report)
  else if (works === true) await reportNodes(target, subject, machine, report)
  // The files for new clusters have no reader yet, and a cluster that does not read them has a finding that says why.
  else if (record !== undefined && target.observe !== undefined) {
    if (observation === undefined || mirror === undefined) report(toSkipped('clients.running', notRunning, subject))
    // One cause is one finding: a client whose files have a fault does not use the mirror.
    else if (observation.inUse === false && failed.length > 0)
      report(toSkipped('clients.running', 'its files have a fault, which comes first', subject))
    else reportRunning(observation, files?.isAsWritten === true, subject, report)
  }
  reportLoopback(target, record, subject, { command, isOwn }, report)
  const isEmpty = record === undefined && inUse !== true && isRead && !inspection.namesMirror
  reportSoundFiles(client, inspection, { isForeign, isEmpty }, subject, report)
  if (kept.length === 0 || mirror === undefined) return
  const adapter = await getAdapter(client)
  const fallback = record?.fallback ?? true
  const rehearsal = await rehearseConfigure({ machine, adapter, target, mirror, fallback })
  for (const outcome of kept.splice(0)) tell(replaceUselessFix(outcome, rehearsal, { command, target, cache, record }))
}

/** Replaces the command of a finding by an advice where `mirror configure` would not mend it. */
function replaceUselessFix(
  outcome: Outcome,
  rehearsal: Rehearsal,
  {
    command,
    target,
    cache,
    record,
  }: {
    readonly command: string
    readonly target: ConfigTarget
    readonly cache: string | undefined
    readonly record: StoredRecord | undefined
  },
): Outcome {
  const { id, saw } = outcome
  const fault = id.slice('clients.'.length)
  const isFault = fault.includes('.')
  const path = id === 'clients.files' ? record?.files.find((file) => saw.startsWith(file.path))?.path : undefined
  const advice = explainUselessConfigure(rehearsal, {
    saw,
    path,
    command,
    ...(isFault && {
      remains: (after) => target.inspect?.(cache, after).some((one) => one.fault === fault && one.saw === saw) === true,
    }),
  })
  if (advice === undefined) return outcome
  const { fix: _fix, ...rest } = outcome
  return { ...rest, advice }
}

/**
 * Reports the faults that the files do not have; all as one skipped check when the files cannot be read. `isEmpty`: no file is one of the
 * mirror, so that only their syntax was checked.
 */
function reportSoundFiles(
  client: ClientName,
  inspection: Inspection,
  { isForeign, isEmpty }: { readonly isForeign: boolean; readonly isEmpty: boolean },
  subject: string,
  report: Report,
): void {
  const all = listFaultIds(client)
  const ids = isEmpty ? all.filter((id) => id.endsWith('.syntax')) : all
  const { findings } = inspection
  if (findings === undefined)
    return report(toSkipped(all[0]!, `its files cannot be read: ${inspection.unreadable}`, subject))
  const found = new Set([...findings.map(({ fault }) => fault), ...(isForeign ? mirrorFaults : [])])
  for (const id of ids) if (!found.has(id.slice('clients.'.length))) report(toOk(id, undefined, subject))
}

function reportUnconfigured(
  client: ClientName,
  subject: string,
  command: string,
  { context }: Surroundings,
  report: Report,
): void {
  const place = subject.startsWith(`${client}, `) ? ` (${subject.slice(client.length + 2)})` : ''
  const saw = `${client}${place} is installed, but not configured for the mirror.`
  const isMeant = context.clients.includes(client)
  if (!isMeant && optional.has(client)) return report(toSkipped('clients.configured', 'it is not configured', subject))
  report({ id: 'clients.configured', subject, state: 'warn', saw, fix: { command, isOwn: false } })
}

/** Returns the current address of the mirror for a target; undefined when the target cannot reach it. */
function getCache(mirror: MirrorAddress, { location }: ConfigTarget): string | undefined {
  try {
    return mirror.getAddress(location).cache
  } catch (error) {
    if (error instanceof MirrorError) return undefined
    throw error
  }
}

/** Converts a finding to a result. `configure`: the command that configures the target again. */
export async function toOutcome(
  { fault, state, where, saw, mend }: Finding,
  subject: string,
  configure: { readonly command: string; readonly isOwn: boolean } | undefined,
): Promise<Outcome> {
  const common = { id: `clients.${fault}`, subject: where === undefined ? subject : `${subject}, ${where}`, state, saw }
  if (mend === 'configure') return { ...common, ...(configure && { fix: configure }) }
  return {
    ...common,
    ...('command' in mend ? { fix: { command: mend.command, isOwn: false } } : { advice: mend.advice }),
  }
}

/** Matches the checks of files that clients refuse. */
const refusedFaults = /\.(?:syntax|old-style|location)$/

/** Reports the error of the client's own program, unless a failure in the file that it names explains it. */
function reportFailure(
  client: ClientName,
  failure: string,
  subject: string,
  failed: readonly Outcome[],
  report: Report,
): void {
  const isExplained = failed.some(({ id, subject: about }) => {
    const path = about?.split(', ').at(-1)
    return refusedFaults.test(id) && path?.startsWith('/') === true && failure.includes(path)
  })
  if (isExplained) return
  const [reason] = explainOutput(client, failure) ?? []
  const advice = reason === undefined ? 'Correct its configuration' : `Correct ${reason.file}`
  report({
    id: 'clients.running',
    subject,
    state: 'fail',
    saw: failure,
    advice: `${advice}, then run mirror doctor again.`,
  })
}

function reportRunning(
  { inUse, saw, reasons, todo, bypasses = [] }: Awaited<ReturnType<NonNullable<ConfigTarget['observe']>>>,
  isAsWritten: boolean,
  subject: string,
  report: Report,
): void {
  const id = 'clients.running'
  const text = saw.join(' ')
  for (const { why, fix } of bypasses) report({ id, subject, state: 'warn', saw: `${why}.`, ...toFix(fix) })
  if (bypasses.length > 0) return
  const [step] = todo
  // A part of the client still has the old configuration: a service of podman.
  if (inUse === true && step !== undefined)
    return report({ id, subject, state: 'warn', saw: joinSentences([text, getNote(step)]), ...toFix(step) })
  if (inUse === true) return report(toOk(id, text, subject))
  if (inUse === undefined) return report(toSkipped(id, text, subject))
  const reason = reasons.find(({ isUnconfigured }) => !isUnconfigured || !isAsWritten) ?? reasons[0]
  report({
    id,
    subject,
    state: 'fail',
    saw: reason === undefined ? text : `${reason.why}. ${text}`,
    ...(reason !== undefined && toFix(reason.fix)),
  })
}

/** Returns a text for the user as a command where it is one that mends, and as an advice otherwise. */
function toFix(text: string): Pick<Outcome, 'fix' | 'advice'> {
  const command = stripNote(text)
  const mends = /^(?:mirror|(?:sudo )?(?:systemctl|kill)|docker buildx rm|unset|minikube start) \S/.test(command)
  return mends && !/[;,]/.test(command) ? { fix: { command, isOwn: false } } : { advice: text }
}

/** Reports the nodes of a kind cluster whose containerd runs with an older configuration. */
async function reportNodes(
  { details }: ConfigTarget,
  subject: string,
  machine: Machine,
  report: Report,
): Promise<void> {
  const id = 'clients.running'
  const nodes = openKindNodes(machine, details['program'] ?? 'docker')
  const stale = await findStaleNodes(nodes, (details['nodes'] ?? '').split(' ').filter(Boolean))
  for (const node of stale)
    report({
      id,
      subject: `${subject}, ${node}`,
      state: 'warn',
      saw: `config.toml in ${node} has changed since its containerd started, which reads the file only then.`,
      fix: { command: `${nodes.program} exec ${node} systemctl restart containerd`, isOwn: false },
    })
  if (stale.length === 0)
    report(toOk(id, `containerd in the nodes of ${subject} reads the files of the mirror.`, subject))
}

function reportLoopback(
  { location }: ConfigTarget,
  record: StoredRecord | undefined,
  subject: string,
  fix: NonNullable<Outcome['fix']>,
  report: Report,
): void {
  const id = 'clients.loopback'
  if (record === undefined) return
  if (location.in === 'host' || !isLoopbackUrl(record.cache)) return report(toOk(id, undefined, subject))
  const saw = `${location.what} have ${record.cache}, and a loopback address means the client's own machine there.`
  report({ id, subject, state: 'fail', saw, fix })
}

/** Joins texts that may lack their full stops. */
export function joinSentences(texts: readonly (string | undefined)[]): string {
  const sentences = texts.map((text) => text?.trim() ?? '').filter((text) => text !== '')
  return sentences.map((text) => (/[.!?:]$/.test(text) ? text : `${text}.`)).join(' ')
}

/** Pulls a test image by each configured target. */
async function checkPulls(
  client: ClientName,
  { context, machine, records }: Surroundings,
  report: Report,
): Promise<void> {
  const id = 'clients.pull'
  for (const record of (await records).filter((one) => one.client === client)) {
    const target = await getTarget(machine, record)
    const subject = nameTarget(client, target)
    if (await explainGone(target)) continue
    if (target.pull === undefined) {
      report(toSkipped(id, 'no pull can be run from this machine', subject))
      continue
    }
    const { seen, failed, saw, reasons } = await checkClient(context.surroundings, machine, client, target)
    const [reason] = reasons
    if (seen) report(toOk(id, `${subject} pulls through the mirror.`, subject))
    else
      report({
        id,
        subject,
        state: 'fail',
        saw: joinSentences(['The pull did not come through the mirror', reason?.why, ...saw, failed]),
        ...(reason !== undefined && toFix(reason.fix)),
      })
  }
}
