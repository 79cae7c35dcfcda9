import type { ChildProcess } from 'node:child_process'
import { readFile, readlink } from 'node:fs/promises'
import type { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { deferred } from './async.ts'
import { errnoOf } from './errors.ts'

/** What Linux tells of a process, beyond that its number is taken. */
interface ProcessStat {
  /** It has ended and only waits to be reaped. */
  readonly ended: boolean
  /** Clock ticks from boot to its start. */
  readonly started: string | undefined
}

/** Undefined where there is no /proc, or no such process. Fields 3 and 22 of proc_pid_stat(5). */
export async function readProcessStat(pid: number): Promise<ProcessStat | undefined> {
  const stat = await orAbsent(readFile(`/proc/${pid}/stat`, 'utf8'))
  if (stat === undefined) return undefined
  // The name in parentheses may hold anything, spaces and parentheses included.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return { ended: fields[0] === 'Z' || fields[0] === 'X', started: fields[19] }
}

/** Tells this boot of the kernel from any other; undefined where the system has none to tell. */
export async function readBootId(): Promise<string | undefined> {
  return (await orAbsent(readFile('/proc/sys/kernel/random/boot_id', 'utf8')))?.trim()
}

/** Tells where this process's number means it; undefined where there are no such namespaces. pid_namespaces(7) */
export async function readPidNamespace(): Promise<string | undefined> {
  return orAbsent(readlink('/proc/self/ns/pid'))
}

async function orAbsent(read: Promise<string>): Promise<string | undefined> {
  try {
    return await read
  } catch (error) {
    // ESRCH: the process ended between open and read.
    if (['ENOENT', 'ENOTDIR', 'ESRCH', 'EACCES', 'EPERM'].includes(errnoOf(error) ?? '')) return undefined
    throw error
  }
}

/**
 * What tells a process from any other that has or had its number: the boot and the tick it was started in. Undefined where
 * the platform has no /proc, or the process is gone or only waits to be reaped.
 */
export async function processIdentity(pid: number): Promise<string | undefined> {
  const [stat, boot] = await Promise.all([readProcessStat(pid), readBootId()])
  return stat?.started === undefined || stat.ended ? undefined : `${boot ?? 'boot'}:${stat.started}`
}

/** The boot in which a process was identified so; undefined where the platform has none to tell. */
export function bootOf(identity: string | undefined): string | undefined {
  const boot = identity?.slice(0, identity.lastIndexOf(':'))
  return boot === 'boot' || boot === '' ? undefined : boot
}

/** Whether the process that was identified so is still there. */
export async function isSameProcess(pid: number, identity: string | undefined): Promise<boolean> {
  if (!Number.isSafeInteger(pid) || pid <= 0) return false
  if (identity !== undefined) return (await processIdentity(pid)) === identity
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return errnoOf(error) === 'EPERM'
  }
}

/** What became of a program that was started. */
export interface CommandResult {
  /** Undefined when it did not end by itself: killed by a signal, or by the time-out. */
  readonly exitCode: number | undefined
  readonly stdout: string
  readonly stderr: string
}

interface CommandOptions {
  /** Written to its stdin, which is empty otherwise. */
  readonly input?: string
  /** Milliseconds until it is ended, with everything that it has started. */
  readonly timeoutMs: number
  /** Added to the environment of this process. */
  readonly env?: Readonly<Record<string, string>>
}

/**
 * Runs a program without a shell and waits for its end, whatever its exit code; `undefined` when there is no such program.
 * Output is kept as it came; a program that writes more than 16 MiB is ended.
 */
export type RunCommand = (
  file: string,
  args: readonly string[],
  options: CommandOptions,
) => Promise<CommandResult | undefined>

const maxOutputBytes = 16 * 1024 * 1024
/** How often, and how many times, to look for the end of the output of a program that has ended. */
const drainPollMs = 50
const maxDrainPolls = 20

/**
 * Loads what runs programs.
 * @internal
 */
export const loadCommandRunner = () => Promise.all([import('execa'), import('signal-exit')])

/** Runs programs of this machine. */
export const runCommand: RunCommand = async (file, args, { input, timeoutMs, env }) => {
  const [{ execa }, { onExit }] = await loadCommandRunner()
  let pid: number | undefined
  // The terminal's Ctrl-C does not reach a group of its own. Watched before there is one, so that none is missed.
  const stopWatching = onExit(() => void (pid !== undefined && signalGroup(pid, 'SIGTERM')))
  try {
    const program = execa(file, args, {
      ...ownGroup,
      reject: false,
      buffer: false,
      ...(input === undefined ? { stdin: 'ignore' as const } : { input }),
      ...(env && { env }),
    })
    pid = program.pid
    if (pid !== undefined) return await waitForResult(program, pid, timeoutMs)
    const { code, originalMessage } = await program
    if (code === 'ENOENT') return undefined
    // A program that could not be started has written nothing; why is all there is to say.
    return { exitCode: undefined, stdout: '', stderr: originalMessage ?? '' }
  } finally {
    stopWatching()
  }
}

/** Resolves at the program's end, or soon after the time-out, even if something keeps the output open. */
async function waitForResult(program: ChildProcess, pid: number, timeoutMs: number): Promise<CommandResult> {
  const exit = deferred<number | undefined>()
  const ended = deferred()
  const closed = deferred()
  const state = { closed: false, ended: false }
  const end = () => {
    if (state.ended) return
    state.ended = true
    void endGroup(pid).then(() => ended.resolve())
  }
  program.once('exit', (code) => {
    // What it leaves behind is not its own time.
    if (!state.ended) clearTimeout(timer)
    exit.resolve(code ?? undefined)
  })
  program.once('close', () => {
    state.closed = true
    closed.resolve()
  })
  const stdout = collect(program.stdout!, end)
  const stderr = collect(program.stderr!, end)
  const timer = setTimeout(end, timeoutMs)
  const untrack = trackGroup(pid)
  try {
    const exitCode = await Promise.race([exit.promise, ended.promise])
    // A daemon that the program has started may keep the output open for ever.
    for (let step = 0; step < maxDrainPolls && !state.closed && !state.ended; step++) await sleep(drainPollMs)
    if (state.ended) await Promise.race([closed.promise, ended.promise])
    return { exitCode: state.ended ? undefined : (exitCode ?? undefined), stdout: stdout(), stderr: stderr() }
  } finally {
    clearTimeout(timer)
    untrack()
    program.stdout!.destroy()
    program.stderr!.destroy()
  }
}

/** Keeps what a stream brings, as far as it may be kept; the result reads it. */
function collect(stream: Readable, onOverflow: () => void): () => string {
  const chunks: Buffer[] = []
  let size = 0
  stream.on('data', (chunk: Buffer) => {
    chunks.push(chunk.subarray(0, Math.max(0, maxOutputBytes - size)))
    size += chunk.length
    if (size > maxOutputBytes) onOverflow()
  })
  return () => Buffer.concat(chunks).toString('utf8')
}

/** A text as one word of a POSIX shell's command line; in quotes only where it needs them. */
export function shellWord(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`
}

/** How long a program has to put things in order after it was asked to end. */
const graceMs = 2000
const endPollMs = 50

/**
 * The option for `spawn` that gives a program a process group of its own, so that it can be ended together with what it has
 * started. On Windows, which has no such groups, a detached program would open a window, and `taskkill` finds the children.
 */
export const ownGroup = { detached: process.platform !== 'win32', windowsHide: true } as const

/**
 * Sends a signal to a program that was started with `ownGroup`, and to all that it has started. False when none is left.
 * @internal
 */
export function signalGroup(pid: number, signal: NodeJS.Signals | 0): boolean {
  if (process.platform === 'win32') {
    // Not every program runs others.
    const { spawn } = process.getBuiltinModule('node:child_process')
    // Without a forced end a program that has no window takes no notice.
    if (signal !== 0) spawn('taskkill', ['/pid', String(pid), '/T', '/F'], { stdio: 'ignore' }).on('error', () => {})
    return false
  }
  try {
    return process.kill(-pid, signal)
  } catch (error) {
    // EPERM: macOS, for a group of which only a zombie is left.
    if (errnoOf(error) === 'ESRCH' || errnoOf(error) === 'EPERM') return false
    throw error
  }
}

/** Asks a program and all that it has started to end, and kills what has not ended after two seconds. */
async function endGroup(pid: number): Promise<void> {
  if (!signalGroup(pid, 'SIGTERM')) return
  for (let waitedMs = 0; waitedMs < graceMs; waitedMs += endPollMs) {
    await sleep(endPollMs)
    if (!signalGroup(pid, 0)) return
  }
  signalGroup(pid, 'SIGKILL')
}

const trackedGroups = new Set<number>()

/** Notes that this process waits for a group; the result forgets it. */
function trackGroup(pid: number): () => void {
  trackedGroups.add(pid)
  return () => void trackedGroups.delete(pid)
}

/** Passes an interruption on, which the terminal sends to the group of this process only. */
export function interruptGroups(): void {
  for (const pid of trackedGroups) signalGroup(pid, 'SIGINT')
}

/** What a command finds around it. */
export interface Surroundings {
  /** As `process.platform`. */
  platform: string
  env: Readonly<Record<string, string | undefined>>
  /** The user's home folder. */
  homedir: string
  /** What relative paths in `env` start from. */
  cwd: string
  /**
   * As root: these before every place that others can change was taken out. They tell only whose mirror may be meant, and are
   * never obeyed.
   */
  callers?: Surroundings | undefined
}
