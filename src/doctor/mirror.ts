import { readFile, statfs } from 'node:fs/promises'
import { uptime } from 'node:os'
import { dirname } from 'node:path'
import { findDeadMirror } from '../admin/find-mirror.ts'
import { readState } from '../admin/state.ts'
import { openMachineRecords } from '../clients/records.ts'
import { findPortHolder } from '../daemon/start-errors.ts'
import { getErrno, MirrorError } from '../lib/errors.ts'
import { ifVisible } from '../lib/fs.ts'
import { readProcessStat } from '../lib/process.ts'
import { formatBytes, formatDuration } from '../lib/units.ts'
import { type DoctorContext, notRunning, type Report, type Task, toOk, toSkipped } from './context.ts'
import {
  findFreePort,
  type ListenerName,
  listenerNames,
  planStart,
  toStartCommand,
  tryListen,
} from './start-command.ts'

const maxSkewMs = 60_000
const recommendedOpenFiles = 1024
const maxHolderLength = 40

/** Lists the checks of the mirror itself. */
export function listMirrorTasks(context: DoctorContext): Task[] {
  let taken: Promise<readonly TakenPort[]> | undefined
  const findTaken = () => (taken ??= findTakenPorts(context))
  const toTask = (name: string, check: (context: DoctorContext, report: Report) => Promise<void>): Task => ({
    ids: [`mirror.${name}`],
    run: (report) => check(context, report),
  })
  return [
    toTask('runs', (_, report) => checkRuns(context, findTaken, report)),
    toTask('version', checkVersion),
    toTask('config', checkConfig),
    toTask('ports', (_, report) => checkPorts(context, findTaken, report)),
    toTask('disk', checkDisk),
    toTask('lock', (_, report) => checkLock(context, findTaken, report)),
    toTask('clock', checkClock),
    toTask('files', checkFiles),
    toTask('records', checkRecords),
    toTask('troubles', checkTroubles),
  ]
}

async function checkRuns(
  context: DoctorContext,
  findTaken: () => Promise<readonly TakenPort[]>,
  report: Report,
): Promise<void> {
  const id = 'mirror.runs'
  const { found, status, surroundings, paths } = context
  const mirror = await found
  if (mirror === undefined) {
    const died = await findDeadMirror(paths, surroundings)
    const since = died?.lastSeen === undefined ? '' : `, last seen ${died.lastSeen}`
    const saw =
      died === undefined ? notRunning : `${notRunning}, and nobody stopped the last one (${died.reason}${since})`
    // A start fails while another program has a port, so leave the command to mirror.ports.
    if ((await findTaken()).length > 0)
      return report({ id, state: 'fail', saw: `${saw}.`, advice: 'See the command of mirror.ports.' })
    return report({ id, state: 'fail', saw: `${saw}.`, fix: (await planStart(context)).fix })
  }
  const answer = await status
  if (answer === undefined)
    return report({
      id,
      state: 'fail',
      saw: `The mirror runs, but does not answer on ${mirror.running.endpoints.admin.join(', ')}.`,
      fix: (await planStart(context)).fix,
    })
  const where = answer.runtime === 'container' ? 'container' : `pid ${answer.pid}`
  report(toOk(id, `mirror ${answer.version} runs (${where}).`))
}

async function checkVersion(context: DoctorContext, report: Report): Promise<void> {
  const id = 'mirror.version'
  const { status, version } = context
  const answer = await status
  if (answer === undefined) return report(toSkipped(id, notRunning))
  if (answer.version === version) return report(toOk(id, `Command and mirror have version ${version}.`))
  const saw = `The mirror has version ${answer.version}, and this command ${version}.`
  report({ id, state: 'warn', saw, fix: (await planStart(context)).fix })
}

async function checkConfig(context: DoctorContext, report: Report): Promise<void> {
  const id = 'mirror.config'
  const { config, found } = context
  try {
    await config
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    const [hint] = error.hints
    const saw = error.message.replace(', so nothing was done', '')
    return report({ id, state: 'fail', saw, ...(hint !== undefined && { advice: hint }) })
  }
  const mirror = await found
  // The file of another user, and the one in a container, may differ from this one.
  if (mirror === undefined || mirror.user !== undefined || mirror.running.container)
    return report(toOk(id, 'mirror.yaml is valid.'))
  const { fix, changed, ports, otherFlags } = await planStart(context)
  if (changed.length > 0) {
    const saw = `The running mirror has other settings than mirror.yaml, perhaps by flags of mirror up: ${changed.join(', ')}.`
    return report({ id, state: 'warn', saw, fix })
  }
  if (fix.command === toStartCommand({})) return report(toOk(id))
  const flags = toStartCommand(ports, otherFlags).slice('mirror up '.length)
  report(toOk(id, `The running mirror uses mirror.yaml, except for what these flags set: ${flags}.`))
}

/** Describes a port of the stopped mirror that another program has. */
interface TakenPort {
  readonly name: ListenerName
  readonly host: string
  readonly port: number
  readonly who: string
}

async function findTakenPorts(context: DoctorContext): Promise<readonly TakenPort[]> {
  const { config } = await planStart(context)
  if (config === undefined) return []
  const taken: TakenPort[] = []
  for (const name of listenerNames) {
    if (name === 'registry' && !config.registry.enabled) continue
    const addresses = new Map(config[name].listen.map(({ host, port }) => [port, host]))
    for (const [port, host] of addresses) {
      const holder = port === 0 ? undefined : await findPortHolder(port, context.machine)
      if (holder !== undefined) {
        const who = holder.mirror === undefined ? cutText(holder.command) : 'another mirror'
        taken.push({ name, host, port, who: `${who} (pid ${holder.pid})` })
      }
      // The processes of other users are not visible.
      else if (port !== 0 && (await tryListen(host, port)) === 'EADDRINUSE')
        taken.push({ name, host, port, who: 'a program of another user' })
    }
  }
  return taken
}

function cutText(text: string): string {
  return text.length <= maxHolderLength ? text : `${text.slice(0, maxHolderLength - 1)}…`
}

/** Finds the programs that have ports of the stopped mirror, and one command with other ports for all of them. */
async function checkPorts(
  context: DoctorContext,
  findTaken: () => Promise<readonly TakenPort[]>,
  report: Report,
): Promise<void> {
  const id = 'mirror.ports'
  if ((await context.found) !== undefined) return report(toOk(id, 'The running mirror has its ports.'))
  // Reject for a mirror.yaml that is not valid.
  await context.config
  const taken = await findTaken()
  if (taken.length === 0) return report(toOk(id))
  const plan = await planStart(context)
  const used = new Set(listenerNames.flatMap((name) => plan.config?.[name].listen.map(({ port }) => port) ?? []))
  const ports = { ...plan.ports }
  for (const { name, host, port } of taken) {
    const free = await findFreePort(host, port + 1000, used)
    if (free === undefined) continue
    used.add(free)
    ports[name] = free
  }
  const fix = { command: toStartCommand(ports, plan.otherFlags), isOwn: false }
  for (const [at, { name, port, who }] of taken.entries())
    report({
      id,
      subject: name,
      state: 'fail',
      saw: `Port ${port} (${name}) is in use by ${who}.`,
      // Name the command once, below the last port.
      ...(at === taken.length - 1 && { fix }),
    })
}

async function checkDisk({ status, config, paths }: DoctorContext, report: Report): Promise<void> {
  const id = 'mirror.disk'
  const answer = await status
  const minFree = answer?.storage.minFree ?? (await config).cache.minFree
  const path = answer?.storage.path ?? paths.dataDir
  const free = answer === undefined ? await readFreeBytes(path) : answer.storage.freeBytes
  if (free === undefined) return report(toSkipped(id, `the free space of ${path} is unknown`))
  const saw = `${formatBytes(free)} are free at ${path}; the reserve is ${formatBytes(minFree)}.`
  if (free > minFree) return report(toOk(id, saw))
  const advice = 'Free space on this disk, or set a smaller cache.maxSize or cache.minFree in mirror.yaml.'
  const fix = { command: 'mirror cache prune', isOwn: true }
  report({ id, state: 'fail', saw: `${saw} The mirror stores nothing more.`, fix, advice })
}

async function readFreeBytes(path: string): Promise<number | undefined> {
  for (let folder = path; ; folder = dirname(folder)) {
    try {
      const { bavail, bsize } = await statfs(folder)
      return bavail * bsize
    } catch (error) {
      if (getErrno(error) !== 'ENOENT' || folder === dirname(folder)) return undefined
    }
  }
}

async function checkLock(
  context: DoctorContext,
  findTaken: () => Promise<readonly TakenPort[]>,
  report: Report,
): Promise<void> {
  const id = 'mirror.lock'
  const { found, status, paths, surroundings } = context
  const mirror = await found
  if (mirror === undefined) {
    const state = await readState(paths.stateFile)
    const died = state && (await findDeadMirror(paths, surroundings))
    if (died === undefined) return report(toOk(id))
    const who = died.pid === undefined ? `container ${died.container}` : `process ${died.pid}`
    const saw = `${paths.stateFile} was left by ${who}, which has ended.`
    if ((await findTaken()).length > 0)
      return report({ id, state: 'warn', saw, advice: 'See the command of mirror.ports.' })
    return report({ id, state: 'warn', saw, fix: (await planStart(context)).fix })
  }
  const answer = await status
  const { running } = mirror
  if (answer === undefined || running.container || answer.pid === running.pid) return report(toOk(id))
  const saw = `Two mirrors run: ${paths.stateFile} names process ${running.pid}, and process ${answer.pid} answers.`
  report({ id, state: 'fail', saw, advice: `Stop one of them: kill ${running.pid}` })
}

async function checkClock(context: DoctorContext, report: Report): Promise<void> {
  const id = 'mirror.clock'
  const jump = await findClockJump(context)
  if (jump !== undefined && Math.abs(jump) > maxSkewMs)
    report({
      id,
      state: 'warn',
      saw: `The clock has jumped ${jump > 0 ? 'forward' : 'back'} by ${formatDuration(Math.abs(jump))} since the mirror started.`,
      advice: 'Check that a time service runs: timedatectl',
    })
  const skews = (await context.probeUpstreams()).flatMap(({ skewMs }) => (skewMs === undefined ? [] : [skewMs]))
  if (skews.length === 0) return report(toSkipped(id, 'no upstream has answered with its time'))
  const skew = skews.toSorted((one, other) => one - other)[Math.floor(skews.length / 2)]!
  if (Math.abs(skew) <= maxSkewMs) return report(toOk(id))
  report({
    id,
    state: Math.abs(skew) > 5 * maxSkewMs ? 'fail' : 'warn',
    saw: `The clock of this machine is ${formatDuration(Math.abs(skew))} ${skew > 0 ? 'ahead of' : 'behind'} the upstreams, so certificates and tokens may count as invalid.`,
    fix: { command: 'sudo timedatectl set-ntp true', isOwn: false },
  })
}

/** Compares the start by the wall clock with the age of the process; undefined where the system does not tell. */
async function findClockJump({ found, surroundings }: DoctorContext): Promise<number | undefined> {
  const running = (await found)?.running
  if (running === undefined || running.container || surroundings.platform !== 'linux') return undefined
  const ticks = (await readProcessStat(running.pid))?.started
  if (ticks === undefined) return undefined
  const ageMs = uptime() * 1000 - Number(ticks) * 10
  const jump = Date.now() - Date.parse(running.startedAt) - ageMs
  // The state is written some time after the start of the process.
  return jump < 0 && jump > -maxSkewMs ? 0 : jump
}

async function checkFiles(context: DoctorContext, report: Report): Promise<void> {
  const id = 'mirror.files'
  const { found, surroundings } = context
  const running = (await found)?.running
  if (running?.container) return report(toSkipped(id, 'the container has its own limit'))
  if (surroundings.platform !== 'linux') return report(toSkipped(id, 'only Linux tells the limit of a process'))
  const text = await ifVisible(readFile(`/proc/${running?.pid ?? 'self'}/limits`, 'utf8'))
  const limit = Number(/^Max open files\s+(\d+)/m.exec(text ?? '')?.[1] ?? Infinity)
  if (limit >= recommendedOpenFiles) return report(toOk(id))
  const { ports, otherFlags, forOwner } = await planStart(context)
  report({
    id,
    state: 'warn',
    saw: `The limit on open files is ${limit}, so the mirror serves few clients at once.`,
    advice: forOwner(`ulimit -n ${recommendedOpenFiles}; mirror down && ${toStartCommand(ports, otherFlags)}`),
  })
}

async function checkRecords({ status, machine }: DoctorContext, report: Report): Promise<void> {
  const id = 'mirror.records'
  const damaged = (await status)?.registry.damaged ?? []
  for (const { repository, path, reason, served } of damaged)
    report({
      id,
      subject: repository ?? path,
      state: 'fail',
      saw: `The record ${path} is damaged (${reason}), and its repository is ${served ? 'served' : 'not served'}.`,
      advice: 'Push the images of this repository again.',
    })
  try {
    await openMachineRecords(machine).list()
    if (damaged.length === 0) report(toOk(id))
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    report({
      id,
      subject: 'clients',
      state: 'fail',
      saw: error.message,
      ...(error.hints[0] && { advice: error.hints[0] }),
    })
  }
}

async function checkTroubles({ status }: DoctorContext, report: Report): Promise<void> {
  const id = 'mirror.troubles'
  const answer = await status
  if (answer === undefined) return report(toSkipped(id, notRunning))
  for (const trouble of answer.troubles ?? []) report({ id, state: 'fail', saw: trouble, advice: 'mirror logs' })
  if (!answer.troubles?.length) report(toOk(id))
}
