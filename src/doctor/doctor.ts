import { setMaxListeners } from 'node:events'
import type { CheckResult, CheckState, DoctorReport } from '../admin/activity.ts'
import { createClientForMirror } from '../admin/access.ts'
import { findRunningMirror } from '../admin/find-mirror.ts'
import { describeMachine, getAdapter } from '../clients/adapters.ts'
import type { ClientName } from '../clients/types.ts'
import { loadConfig } from '../config/load.ts'
import { mirrorPaths } from '../config/paths.ts'
import { createDeferred } from '../lib/async.ts'
import { MirrorError } from '../lib/errors.ts'
import { redact } from '../lib/logger.ts'
import type { CommandEnvironment } from '../lib/process.ts'
import { runLater } from '../lib/time.ts'
import { checks, createSelection, getCheck, lateStart } from './checks.ts'
import { listClientTasks } from './clients.ts'
import type { DoctorContext, Outcome, Task } from './context.ts'
import { listListenerTasks } from './listeners.ts'
import { listMirrorTasks } from './mirror.ts'
import { probeUpstreams } from './probe.ts'
import { listUpstreamTasks } from './upstreams.ts'
import { listUseTasks } from './use.ts'

/** Limits the time of all checks without a pull by default, ms. */
const defaultTimeoutMs = 4000

export interface DoctorRequest {
  readonly surroundings: CommandEnvironment
  /** Holds the version of this command. */
  readonly version: string
  /** Names the clients to check; all when empty. */
  readonly clients: readonly string[]
  /** Lists ids of checks, or their first parts; all when empty. */
  readonly only: readonly string[]
  /** Adds a pull by each configured client. */
  readonly pull: boolean
  /** Limits the time of all checks without a pull, ms; default: 4000. */
  readonly timeoutMs?: number | undefined
  /** Holds the part of that time that the start of the program has taken, ms. */
  readonly elapsedMs?: number
}

/**
 * Runs the checks, all at once, and collects their results in the order of the groups. A check never fails the run: one that is late
 * is skipped, and an error of one is its result. Throws MirrorError (usage) for an unknown client or check.
 */
export async function runDoctor(request: DoctorRequest): Promise<DoctorReport> {
  const begin = performance.now()
  const isSelected = createSelection(request.only)
  const deadline = new AbortController()
  const probing = new AbortController()
  // Each task listens, and there are more than ten.
  setMaxListeners(0, deadline.signal, probing.signal)
  const { timeoutMs = defaultTimeoutMs, elapsedMs = 0 } = request
  // A slow start leaves enough for the limits of single checks.
  const leftMs = Math.max(timeoutMs - elapsedMs, timeoutMs * 0.85)
  const stops = (
    [
      [deadline, leftMs],
      [probing, leftMs * 0.8],
    ] as const
  ).map(([controller, ms]) =>
    runLater(
      ms,
      () => controller.abort(),
      () => {},
    ),
  )
  const context = await createContext(request, { signal: deadline.signal, probeSignal: probing.signal })
  const tasks = [
    ...listMirrorTasks(context),
    ...listUpstreamTasks(context),
    ...listListenerTasks(context),
    ...(await listClientTasks(context)),
    ...listUseTasks(context),
  ].filter(({ ids }) => ids.some(isSelected))
  const outcomes = (await Promise.all(tasks.map((task) => runTask(task, deadline.signal, timeoutMs)))).flat()
  for (const stop of stops) stop()
  deadline.abort()
  const order = new Map(checks.map(({ id, group }) => [id, group]))
  const groups = [...new Set(order.values())]
  const results = outcomes
    .filter(({ id }) => isSelected(id))
    .map((outcome): CheckResult => {
      const { fix, advice } = outcome
      return {
        ...outcome,
        saw: redact(outcome.saw),
        ...(fix !== undefined && { fix: { ...fix, command: nameForUser(fix.command, request.surroundings) } }),
        ...(advice !== undefined && { advice: nameForUser(advice, request.surroundings) }),
        group: getCheck(outcome.id).group,
      }
    })
    .toSorted((one, other) => groups.indexOf(one.group) - groups.indexOf(other.group))
  return {
    at: new Date().toISOString(),
    durationMs: Math.round(performance.now() - begin),
    counts: countStates(results),
    results,
  }
}

/** Leaves out sudo for root itself, whose machine may not have it. */
function nameForUser(text: string, { env }: CommandEnvironment): string {
  const isRoot = process.geteuid?.() === 0 && env['SUDO_UID'] === undefined
  return isRoot ? text.replaceAll(/(?<![\w/-])sudo (?=(?:systemctl|kill|ip6?tables|ufw|timedatectl) )/g, '') : text
}

function countStates(results: readonly CheckResult[]): Record<CheckState, number> {
  const counts = { ok: 0, warn: 0, fail: 0, skipped: 0 }
  for (const { state } of results) counts[state]++
  return counts
}

async function createContext(
  { surroundings, version, clients, pull }: DoctorRequest,
  signals: Pick<DoctorContext, 'signal' | 'probeSignal'>,
): Promise<DoctorContext> {
  const named: ClientName[] = []
  for (const name of clients) named.push((await getAdapter(name, 'mirror doctor CLIENT')).client)
  const paths = mirrorPaths(surroundings)
  const found = findRunningMirror(surroundings)
  const config = loadConfig({ ...surroundings, paths })
  const status = found.then(async (mirror) => {
    if (mirror === undefined) return undefined
    try {
      return await createClientForMirror(mirror).getStatus()
    } catch (error) {
      // Leave the failure to the check of the mirror itself.
      if (error instanceof MirrorError) return undefined
      throw error
    }
  })
  // Prevent an unhandled rejection when no selected check awaits them.
  for (const promise of [found, config, status]) promise.catch(() => {})
  let probes: ReturnType<typeof probeUpstreams> | undefined
  const context: DoctorContext = {
    surroundings,
    machine: await describeMachine(surroundings, undefined),
    paths,
    version,
    found,
    status,
    config,
    probeUpstreams: () => (probes ??= probeUpstreams(context)),
    clients: named,
    pull,
    ...signals,
  }
  return context
}

/** Runs a task until the deadline, and returns what it reported. */
async function runTask(task: Task, deadline: AbortSignal, deadlineMs: number): Promise<Outcome[]> {
  const { ids, subject, timeoutMs } = task
  const outcomes: Outcome[] = []
  let isOpen = true
  const report = (outcome: Outcome) => {
    if (isOpen) outcomes.push(outcome)
  }
  const late = createDeferred<'late'>()
  const onLate = () => late.resolve('late')
  const stop = timeoutMs === undefined ? undefined : runLater(timeoutMs, onLate, () => {})
  if (timeoutMs === undefined) deadline.addEventListener('abort', onLate, { once: true })
  const named = subject === undefined ? {} : { subject }
  try {
    const end = await Promise.race([task.run(report), late.promise])
    if (end === 'late')
      report({ id: ids[0]!, ...named, state: 'skipped', saw: `${lateStart}${(timeoutMs ?? deadlineMs) / 1000} s` })
  } catch (error) {
    if (error instanceof MirrorError) {
      const [hint] = error.hints
      const advice = hint === undefined ? {} : { advice: hint }
      report({ id: ids[0]!, ...named, state: 'skipped', saw: error.message, ...advice })
    } else report({ id: ids[0]!, ...named, state: 'fail', saw: `The check itself failed: ${String(error)}` })
  } finally {
    isOpen = false
    stop?.()
    deadline.removeEventListener('abort', onLate)
  }
  return outcomes
}
