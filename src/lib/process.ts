import type { ChildProcess } from 'node:child_process'
import { readFile, readlink } from 'node:fs/promises'
import { totalmem } from 'node:os'
import type { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { createDeferred } from './async.ts'
import { getErrno } from './errors.ts'
import { ifVisible } from './fs.ts'

const maxOutputBytes = 16 * 1024 * 1024
/** Sets the interval and number of the polls for the end of the output, once the program has ended. */
const drainPollMs = 50
const maxDrainPolls = 20
/** Limits the time that a program has to end after SIGTERM, ms. */
const graceMs = 2000
const endPollMs = 50

/** Holds the state of a process from /proc/PID/stat. */
interface ProcessStat {
  /** Is true when the process has ended and waits to be reaped. */
  readonly ended: boolean
  /** Holds clock ticks from boot to its start. */
  readonly started: string | undefined
}

/** Reads the state and start of a process (fields 3 and 22 of proc_pid_stat(5)); undefined without /proc or without the process. */
export async function readProcessStat(pid: number): Promise<ProcessStat | undefined> {
  const stat = await ifVisible(readFile(`/proc/${pid}/stat`, 'utf8'))
  if (stat === undefined) return undefined
  // Skip the name in parentheses, which may hold spaces and parentheses itself.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return { ended: fields[0] === 'Z' || fields[0] === 'X', started: fields[19] }
}

/** Counts the clock ticks of proc(5) in a second: USER_HZ, which is 100 on each architecture that Node supports. */
const ticksPerSecond = 100

/** Reads when a process started, in ms since the epoch and correct to a second; undefined without /proc or without the process. */
export async function readProcessStart(pid: number): Promise<number | undefined> {
  const [stat, uptime] = await Promise.all([readProcessStat(pid), ifVisible(readFile('/proc/uptime', 'utf8'))])
  if (stat?.started === undefined || uptime === undefined) return undefined
  return Date.now() - (Number.parseFloat(uptime) - Number(stat.started) / ticksPerSecond) * 1000
}

/** Reads the id of this boot of the kernel; undefined where the system has none. */
export async function readBootId(): Promise<string | undefined> {
  return (await ifVisible(readFile('/proc/sys/kernel/random/boot_id', 'utf8')))?.trim()
}

/** Reads the id of this process's PID namespace (pid_namespaces(7)); undefined where the system has none. */
export async function readPidNamespace(): Promise<string | undefined> {
  return ifVisible(readlink('/proc/self/ns/pid'))
}

/**
 * Returns the identity of a process, `BOOT:TICK`: the boot and the clock tick of its start, which differ from those of any other
 * process with the same PID. Undefined without /proc, or when the process has ended, even if it is not reaped yet.
 */
export async function getProcessIdentity(pid: number): Promise<string | undefined> {
  const [stat, boot] = await Promise.all([readProcessStat(pid), readBootId()])
  return stat?.started === undefined || stat.ended ? undefined : `${boot ?? 'boot'}:${stat.started}`
}

/** Returns the boot id of a process identity; undefined when the identity has none. */
export function getBoot(identity: string | undefined): string | undefined {
  const boot = identity?.slice(0, identity.lastIndexOf(':'))
  return boot === 'boot' || boot === '' ? undefined : boot
}

/** Checks whether the process with this identity still runs. Without an identity, any process with this PID counts. */
export async function isSameProcess(pid: number, identity: string | undefined): Promise<boolean> {
  if (!Number.isSafeInteger(pid) || pid <= 0) return false
  if (identity !== undefined) return (await getProcessIdentity(pid)) === identity
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    return getErrno(error) === 'EPERM'
  }
}

/** Reports the result of a program that has run. */
export interface CommandResult {
  /** Is undefined when a signal or the time-out ended the program. */
  readonly exitCode: number | undefined
  readonly stdout: string
  readonly stderr: string
}

interface CommandOptions {
  /** Holds the text for the program's stdin, which is empty by default. */
  readonly input?: string
  /** Sets the time after which the program is ended together with all that it has started, ms. */
  readonly timeoutMs: number
  /** Holds the variables to add to the environment of this process. */
  readonly env?: Readonly<Record<string, string>>
}

/**
 * Runs a program without a shell and resolves at its end, whatever its exit code; with `undefined` when the program does not exist.
 * The output is kept unchanged. A program that writes more than 16 MiB is ended.
 */
export type RunCommand = (
  file: string,
  args: readonly string[],
  options: CommandOptions,
) => Promise<CommandResult | undefined>

/**
 * Loads the libraries that run programs.
 * @internal
 */
export const loadCommandRunner = () => Promise.all([import('execa'), import('signal-exit')])

/** Runs programs on this machine. */
export const runCommand: RunCommand = async (file, args, { input, timeoutMs, env }) => {
  const [{ execa }, { onExit }] = await loadCommandRunner()
  let pid: number | undefined
  // End the program's group when this process ends, because Ctrl-C does not reach it. Watch before the start, so that no end is missed.
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
    // Report the reason as stderr, because a program that could not be started has written nothing.
    return { exitCode: undefined, stdout: '', stderr: originalMessage ?? '' }
  } finally {
    stopWatching()
  }
}

/** Resolves at the program's end, or soon after the time-out, even if another process keeps the output open. */
async function waitForResult(program: ChildProcess, pid: number, timeoutMs: number): Promise<CommandResult> {
  const exit = createDeferred<number | undefined>()
  const ended = createDeferred()
  const closed = createDeferred()
  const state = { closed: false, ended: false }
  const end = () => {
    if (state.ended) return
    state.ended = true
    void endGroup(pid).then(() => ended.resolve())
  }
  program.once('exit', (code) => {
    // Stop the time-out, because processes that the program leaves behind are not bound by it.
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
    // Wait only briefly, because a daemon that the program has started may keep the output open for ever.
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

/** Collects at most 16 MiB of a stream. Returns the function that reads the text so far. */
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

/** Quotes a text as one word of a POSIX shell's command line, where it needs quotes. */
export function quoteShellWord(text: string): string {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`
}

/**
 * Holds the options for `spawn` that start a program in its own process group, so that it can be ended together with all that it
 * has started. Windows has no process groups: a detached program would open a window there, and `taskkill` finds the children
 * anyway.
 */
export const ownGroup = { detached: process.platform !== 'win32', windowsHide: true } as const

/**
 * Sends a signal to a program that was started with `ownGroup`, and to all that it has started. Returns false when none is left.
 * @internal
 */
export function signalGroup(pid: number, signal: NodeJS.Signals | 0): boolean {
  if (process.platform === 'win32') {
    // Load the module here, because few commands need it.
    const { spawn } = process.getBuiltinModule('node:child_process')
    // Force the end (/F), because a program without a window ignores a polite one.
    if (signal !== 0) spawn('taskkill', ['/pid', String(pid), '/T', '/F'], { stdio: 'ignore' }).on('error', () => {})
    return false
  }
  try {
    return process.kill(-pid, signal)
  } catch (error) {
    // EPERM: macOS returns it for a group with only a zombie left.
    if (getErrno(error) === 'ESRCH' || getErrno(error) === 'EPERM') return false
    throw error
  }
}

/** Sends SIGTERM to a program and all that it has started, and SIGKILL after two seconds. */
async function endGroup(pid: number): Promise<void> {
  if (!signalGroup(pid, 'SIGTERM')) return
  for (let waitedMs = 0; waitedMs < graceMs; waitedMs += endPollMs) {
    await sleep(endPollMs)
    if (!signalGroup(pid, 0)) return
  }
  signalGroup(pid, 'SIGKILL')
}

const trackedGroups = new Set<number>()

/** Adds a group to those that `interruptGroups` interrupts. Returns the function that removes it. */
function trackGroup(pid: number): () => void {
  trackedGroups.add(pid)
  return () => void trackedGroups.delete(pid)
}

/** Sends SIGINT to all running groups, because the terminal sends it to the group of this process only. */
export function interruptGroups(): void {
  for (const pid of trackedGroups) signalGroup(pid, 'SIGINT')
}

/** Returns the program that opens a URL in the user's browser, with its arguments; undefined where there is no browser. */
export function findBrowserProgram(
  url: string,
  { platform, env }: Pick<CommandEnvironment, 'platform' | 'env'>,
): [file: string, ...args: string[]] | undefined {
  if (platform === 'darwin') return ['open', url]
  // Avoid `start` of cmd, which gives characters of a URL a meaning.
  if (platform === 'win32') return ['rundll32', 'url.dll,FileProtocolHandler', url]
  if (env['WSL_DISTRO_NAME']) return ['rundll32.exe', 'url.dll,FileProtocolHandler', url]
  // The browser of the user who has become root does not run as root.
  if (env['SUDO_UID'] ?? env['DOAS_USER'] ?? env['PKEXEC_UID']) return undefined
  return env['DISPLAY'] || env['WAYLAND_DISPLAY'] ? ['xdg-open', url] : undefined
}

/** Limits the wait for a browser that cannot be started: a program that runs for longer shows the page. */
const browserStartMs = 2000

/** Opens a URL in the user's browser, which outlives this process. Resolves with false when that fails. */
export function openBrowser(url: string, surroundings: Pick<CommandEnvironment, 'platform' | 'env'>): Promise<boolean> {
  const [file, ...args] = findBrowserProgram(url, surroundings) ?? []
  if (file === undefined) return Promise.resolve(false)
  const { spawn } = process.getBuiltinModule('node:child_process')
  return new Promise((resolve) => {
    const program = spawn(file, args, { ...ownGroup, stdio: 'ignore' })
    const timer = setTimeout(() => resolve(true), browserStartMs)
    program.once('error', () => {
      clearTimeout(timer)
      resolve(false)
    })
    program.once('exit', (code) => {
      clearTimeout(timer)
      resolve(code === 0)
    })
    program.unref()
  })
}

/** Describes the environment of a command: platform, variables, home folder and working folder. */
export interface CommandEnvironment {
  /** Holds a value of `process.platform`. */
  platform: string
  env: Readonly<Record<string, string | undefined>>
  /** Names the user's home folder. */
  homedir: string
  /** Names the folder that relative paths in `env` start from. */
  cwd: string
  /**
   * Holds the original environment when mirror runs as root, which ignores paths that others can change. It only tells whose mirror
   * the user may mean; no setting is read from it.
   */
  callers?: CommandEnvironment | undefined
}

/**
 * Returns the memory limit of this process, bytes: the container's limit, or the machine's memory. Without a limit
 * `constrainedMemory` returns 0, or more than any machine has.
 */
export function getMemoryLimit(): number {
  return Math.min(process.constrainedMemory() || Infinity, totalmem())
}

/** Checks whether a variable that is a switch is on: `MIRROR_NO_SENDFILE=1`. */
export function isSet(value: string | undefined): boolean {
  return value !== undefined && value !== '' && value !== '0' && value !== 'false'
}
