import { readFile, statfs } from 'node:fs/promises'
import { uptime } from 'node:os'
import { dirname } from 'node:path'
import { findDeadMirror } from '../admin/find-mirror.ts'
import { readState } from '../admin/state.ts'
import { openMachineRecords } from '../clients/records.ts'
import { hashConfig, listChangedParts } from '../config/config.ts'
import { findPortHolder } from '../daemon/start-errors.ts'
import { getErrno, MirrorError } from '../lib/errors.ts'
import { ifVisible } from '../lib/fs.ts'
import { readProcessStat } from '../lib/process.ts'
import { formatBytes, formatDuration } from '../lib/units.ts'
import { type DoctorContext, notRunning, type Outcome, type Report, type Task, toOk, toSkipped } from './context.ts'

const maxSkewMs = 60_000
const recommendedOpenFiles = 1024
const start = { command: 'mirror up', isOwn: true } as const

/** Lists the checks of the mirror itself. */
export function listMirrorTasks(context: DoctorContext): Task[] {
  const toTask = (name: string, check: (context: DoctorContext, report: Report) => Promise<void>): Task => ({
    ids: [`mirror.${name}`],
    run: (report) => check(context, report),
  })
  return [
    toTask('runs', checkRuns),
    toTask('version', checkVersion),
    toTask('config', checkConfig),
    toTask('ports', checkPorts),
    toTask('disk', checkDisk),
    toTask('lock', checkLock),
    toTask('clock', checkClock),
    toTask('files', checkFiles),
    toTask('records', checkRecords),
    toTask('troubles', checkTroubles),
  ]
}

async function checkRuns({ found, status, surroundings, paths }: DoctorContext, report: Report): Promise<void> {
  const id = 'mirror.runs'
  const mirror = await found
  if (mirror === undefined) {
    const died = await findDeadMirror(paths, surroundings)
    const since = died?.lastSeen === undefined ? '' : `, last seen ${died.lastSeen}`
    const saw =
      died === undefined ? notRunning : `${notRunning}: it has ended without being stopped (${died.reason}${since})`
    return report({ id, state: 'fail', saw: `${saw}.`, fix: start })
  }
  const answer = await status
  if (answer === undefined)
    return report({
      id,
      state: 'fail',
      saw: `The mirror runs, but does not answer on ${mirror.running.endpoints.admin.join(', ')}.`,
      fix: start,
    })
  const where = answer.runtime === 'container' ? 'container' : `pid ${answer.pid}`
  report(toOk(id, `mirror ${answer.version} runs (${where}).`))
}

async function checkVersion({ status, version }: DoctorContext, report: Report): Promise<void> {
  const id = 'mirror.version'
  const answer = await status
  if (answer === undefined) return report(toSkipped(id, notRunning))
  if (answer.version === version) return report(toOk(id, `Command and mirror have version ${version}.`))
  const saw = `The mirror has version ${answer.version}, and this command ${version}.`
  report({ id, state: 'warn', saw, fix: start })
}

async function checkConfig({ config, found, paths }: DoctorContext, report: Report): Promise<void> {
  const id = 'mirror.config'
  let current: Awaited<typeof config>
  try {
    current = await config
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    const [hint] = error.hints
    return report({ id, state: 'fail', saw: error.message, ...(hint !== undefined && { advice: hint }) })
  }
  const mirror = await found
  // The file of another user, and the one in a container, may differ from this one.
  if (mirror === undefined || mirror.user !== undefined || mirror.running.container) return report(toOk(id))
  const changed = listChangedParts(mirror.running.configHashes, hashConfig(current, paths.dataDir))
  if (changed.length === 0) return report(toOk(id))
  const saw = `The running mirror has other settings than mirror.yaml, perhaps by flags of mirror up: ${changed.join(', ')}.`
  report({ id, state: 'warn', saw, fix: start })
}

/** Finds the program that has a port of the stopped mirror. */
async function checkPorts({ found, config, machine }: DoctorContext, report: Report): Promise<void> {
  const id = 'mirror.ports'
  const mirror = await found
  if (mirror !== undefined) return report(toOk(id, 'The running mirror has its ports.'))
  const { cache, registry, admin } = await config
  const listeners = [
    ['cache', cache.listen],
    ['registry', registry.enabled ? registry.listen : []],
    ['admin', admin.listen],
  ] as const
  const taken: Outcome[] = []
  for (const [name, addresses] of listeners) {
    for (const port of new Set(addresses.map((address) => address.port).filter((number) => number !== 0))) {
      const holder = await findPortHolder(port, machine)
      if (holder === undefined) continue
      const who = `${holder.mirror === undefined ? holder.command : 'another mirror'} (pid ${holder.pid})`
      const other = port + 1000 <= 65_535 ? port + 1000 : port - 1000
      taken.push({
        id,
        subject: name,
        state: 'fail',
        saw: `Port ${port} (${name}) is in use by ${who}.`,
        fix: { command: `mirror up --${name}-port ${other}`, isOwn: false },
      })
    }
  }
  for (const outcome of taken.length === 0 ? [toOk(id)] : taken) report(outcome)
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

async function checkLock({ found, status, paths, surroundings }: DoctorContext, report: Report): Promise<void> {
  const id = 'mirror.lock'
  const mirror = await found
  if (mirror === undefined) {
    const state = await readState(paths.stateFile)
    const died = state && (await findDeadMirror(paths, surroundings))
    if (died === undefined) return report(toOk(id))
    const who = died.pid === undefined ? `container ${died.container}` : `process ${died.pid}`
    const saw = `${paths.stateFile} was left by ${who}, which has ended.`
    return report({ id, state: 'warn', saw, fix: start })
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

async function checkFiles({ found, surroundings }: DoctorContext, report: Report): Promise<void> {
  const id = 'mirror.files'
  const running = (await found)?.running
  if (running?.container) return report(toSkipped(id, 'the container has its own limit'))
  if (surroundings.platform !== 'linux') return report(toSkipped(id, 'only Linux tells the limit of a process'))
  const text = await ifVisible(readFile(`/proc/${running?.pid ?? 'self'}/limits`, 'utf8'))
  const limit = Number(/^Max open files\s+(\d+)/m.exec(text ?? '')?.[1] ?? Infinity)
  if (limit >= recommendedOpenFiles) return report(toOk(id))
  report({
    id,
    state: 'warn',
    saw: `The limit on open files is ${limit}, so the mirror serves few clients at once.`,
    advice: `ulimit -n ${recommendedOpenFiles}; mirror down && mirror up`,
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
