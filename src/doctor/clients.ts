import { getAdapter } from '../clients/adapters.ts'
import { isLoopbackUrl } from '../clients/address.ts'
import { checkClient } from '../clients/check.ts'
import { readFiles } from '../clients/configure.ts'
import { type ConfiguredFileState, listRecord } from '../clients/configured.ts'
import { findMirrorAddress, type MirrorAddress } from '../clients/find-mirror.ts'
import { isWrittenByMirror } from '../clients/files/kinds.ts'
import { getConfigureCommand, openMachineRecords, type StoredRecord } from '../clients/records.ts'
import { inspectKanikoVariables } from '../clients/kaniko.ts'
import { findStaleClients } from '../clients/stale-clients.ts'
import { type ClientName, clientNames, type ConfigTarget, type Finding, type Machine } from '../clients/types.ts'
import { getTarget } from '../clients/undo.ts'
import { getErrno, MirrorError } from '../lib/errors.ts'
import { ifVisible } from '../lib/fs.ts'
import { type DoctorContext, notRunning, type Outcome, type Report, type Task, toOk, toSkipped } from './context.ts'
import { type CheckedTarget, listClusters, listFaultIds, listTargets } from './targets.ts'

const pullTimeoutMs = 180_000

/** Lists the clients that another one brings along, or that concern only new clusters: not to configure them is no mistake. */
const optional: ReadonlySet<ClientName> = new Set(['buildkit', 'containerd', 'kind', 'k3d', 'minikube'])

const general = ['configured', 'files', 'address', 'running', 'loopback'] as const

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
  report: Report,
): Promise<void> {
  const { machine } = all
  const subject = nameTarget(client, target)
  const mirror = await all.address
  const current = mirror === undefined ? undefined : getCache(mirror, target)
  const cache = current ?? record?.cache
  const { details } = target
  // Only root may write the files of the system.
  const lockedByRoot = details['scope'] === 'system' && process.geteuid?.() !== 0
  const command = await getConfigureCommand(machine, record ?? { client, root: undefined, details, lockedByRoot })
  const [files, observation, findings] = await Promise.all([
    record === undefined ? undefined : checkFiles(target, record, command, subject, all, report),
    cache === undefined ? undefined : target.observe?.({ cache }),
    inspectTarget(target, cache),
  ])
  const isOwn = target.isOwn === true || files?.isOwn === true
  for (const finding of findings) report(await toOutcome(finding, subject, { command, isOwn }))
  const isCluster = client === 'kind' && target.details['cluster'] !== undefined
  const inUse = observation?.inUse ?? (isCluster ? !findings.some(({ state }) => state === 'fail') : undefined)
  if (record !== undefined)
    report(toOk('clients.configured', `${subject} is configured since ${record.since}.`, subject))
  else if (inUse === true) report(toOk('clients.configured', `${subject} uses the mirror.`, subject))
  else if (!isCluster) reportUnconfigured(client, subject, command, all, report)
  if (record !== undefined && mirror !== undefined)
    reportRunning(observation, files?.isAsWritten === true, subject, report)
  else if (record !== undefined) report(toSkipped('clients.running', notRunning, subject))
  reportLoopback(target, record, subject, { command, isOwn }, report)
  const found = new Set(findings.map(({ fault }) => `clients.${fault}`))
  for (const id of listFaultIds(client)) if (!found.has(id)) report(toOk(id, undefined, subject))
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

/** Reads the files of a target and finds their known faults; none in files that cannot be read. */
export async function inspectTarget(target: ConfigTarget, cache: string | undefined): Promise<readonly Finding[]> {
  if (target.inspect === undefined) return []
  try {
    return target.inspect(cache, await readFiles(target.files, target.inputs))
  } catch (error) {
    // Leave files that this user cannot read to the check of the files, and to root.
    if (error instanceof MirrorError || getErrno(error) !== undefined) return []
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

interface CheckedFiles {
  readonly isAsWritten: boolean
  /** Is true when mirror created each file that differs, so that to write them again changes nothing of the user's. */
  readonly isOwn: boolean
}

/** Compares the files with the record, and the address with that of the mirror. */
async function checkFiles(
  target: ConfigTarget,
  record: StoredRecord,
  command: string,
  subject: string,
  { machine, stale }: Surroundings,
  report: Report,
): Promise<CheckedFiles> {
  const found = (await stale).find(({ record: one }) => one.client === record.client && one.place === record.place)
  const listed = await listRecord(machine, record)
  const isCreated = (path: string) => record.files.find((file) => file.path === path)?.before === undefined
  const differing = (listed?.files ?? []).filter(({ state }) => state === 'gone' || state === 'changed since')
  const areOwn = await Promise.all(
    differing.map(async ({ path, state }) => isCreated(path) || (state !== 'gone' && hasHeader(target, path))),
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
      fix: { command: stripNote(found.mend), isOwn: isOwn && record.files.every(({ path }) => isCreated(path)) },
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

function reportRunning(
  observation: Awaited<ReturnType<NonNullable<ConfigTarget['observe']>>> | undefined,
  isAsWritten: boolean,
  subject: string,
  report: Report,
): void {
  const id = 'clients.running'
  if (observation === undefined) return report(toSkipped(id, 'this client does not tell what it uses', subject))
  const { inUse, saw, reasons } = observation
  const text = saw.join(' ')
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

function stripNote(text: string): string {
  return text.split('   (')[0]!
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
        saw: [`The pull did not come through the mirror.`, reason?.why, ...saw, failed].filter(Boolean).join(' '),
        ...(reason !== undefined && toFix(reason.fix)),
      })
  }
}
