import { type ChildProcess, spawn } from 'node:child_process'
import { open, readFile } from 'node:fs/promises'
import type { Endpoints, StartedMirror } from '../admin/state.ts'
import { refuseForeignState } from '../admin/sudo.ts'
import type { MirrorPaths } from '../config/paths.ts'
import { exitCode, type ExitCode, MirrorError } from '../lib/errors.ts'
import { makeFolder } from '../lib/fs.ts'
import { limitLog } from './logging.ts'

interface DetachedOptions {
  /** Holds the program and its arguments; Node is that of this process. */
  args: string[]
  env: NodeJS.ProcessEnv
  /** Names the file to which stdout and stderr are appended. */
  logFile: string
  timeoutMs: number
  /** Aborts the start and kills the process. */
  signal: AbortSignal
}

/**
 * Starts a mirror that outlives this process, and returns when it answers. Throws the MirrorError that the child reports; a
 * MirrorError with the end of its log when it dies without a report.
 */
export async function startDetached(options: DetachedOptions): Promise<StartedMirror> {
  const log = await open(options.logFile, 'a', 0o600)
  try {
    const { size } = await log.stat()
    const child = spawn(process.execPath, options.args, {
      detached: true,
      windowsHide: true,
      env: options.env,
      stdio: ['ignore', log.fd, log.fd, 'ipc'],
    })
    const outcome = await waitForReadiness(child, options)
    if (outcome.type === 'ready') {
      child.disconnect()
      child.unref()
      return { pid: child.pid!, endpoints: outcome.endpoints }
    }
    if (outcome.type === 'failed') throw new MirrorError(outcome.message, { hints: outcome.hints, exit: outcome.exit })
    throw new MirrorError(`The mirror could not be started: ${outcome.reason}.`, {
      hints: [...(await readLastLogLines(options.logFile, size)), `The whole log: ${options.logFile}`],
      exit: outcome.type === 'interrupted' ? exitCode.interrupted : exitCode.failed,
    })
  } finally {
    await log.close()
  }
}

type Outcome = ReadinessMessage | { type: 'died' | 'interrupted'; reason: string }

function waitForReadiness(child: ChildProcess, { timeoutMs, signal }: DetachedOptions): Promise<Outcome> {
  return new Promise((resolve) => {
    const settle = (outcome: Outcome) => {
      clearTimeout(timer)
      signal.removeEventListener('abort', onAbort)
      child.removeAllListeners()
      // Ignore errors of a child that is being killed.
      child.on('error', () => {})
      if (outcome.type !== 'ready') {
        if (child.connected) child.disconnect()
        child.kill('SIGKILL')
        child.unref()
      }
      resolve(outcome)
    }
    const onAbort = () => settle({ type: 'interrupted', reason: 'it was interrupted' })
    const timer = setTimeout(
      () => settle({ type: 'died', reason: `it did not answer within ${timeoutMs / 1000} s` }),
      timeoutMs,
    )
    signal.addEventListener('abort', onAbort, { once: true })
    child.once('error', (error) => settle({ type: 'died', reason: error.message }))
    child.on('message', (message) => {
      if (isReadinessMessage(message)) settle(message)
    })
    child.once('exit', (code, killedBy) =>
      settle({
        type: 'died',
        reason: killedBy === null ? `it ended with exit code ${code}` : `it was killed by ${killedBy}`,
      }),
    )
    if (signal.aborted) onAbort()
  })
}

/** Reads the last five lines that were appended to a log of `from` bytes. */
async function readLastLogLines(logFile: string, from: number): Promise<string[]> {
  const bytes = await readFile(logFile)
  return bytes
    .subarray(from)
    .toString('utf8')
    .trim()
    .split('\n')
    .slice(-5)
    .filter((line) => line !== '')
}

/** Describes the only message that a detached mirror sends to the command that started it. */
type ReadinessMessage =
  | { type: 'ready'; endpoints: Endpoints }
  | { type: 'failed'; message: string; hints: string[]; exit: ExitCode }

/** Describes the part of `process` that sends messages to the parent process. */
type ParentChannel = Pick<NodeJS.Process, 'send' | 'connected'>

export function reportReady(parent: ParentChannel, endpoints: Endpoints): Promise<void> {
  return send(parent, { type: 'ready', endpoints })
}

/** Reports why the mirror cannot start. Any other error than a MirrorError is only logged, with its stack. */
export async function reportFailure(parent: ParentChannel, error: unknown): Promise<void> {
  if (!(error instanceof MirrorError)) return
  await send(parent, { type: 'failed', message: error.message, hints: error.hints, exit: error.exit })
}

export function isReadinessMessage(value: unknown): value is ReadinessMessage {
  const type = typeof value === 'object' && value !== null && 'type' in value ? value.type : undefined
  return type === 'ready' || type === 'failed'
}

/** Sends a message, unless the parent has left. */
function send(parent: ParentChannel, message: ReadinessMessage): Promise<void> {
  return new Promise((resolve) => {
    if (!parent.connected || parent.send === undefined) resolve()
    else parent.send(message, undefined, undefined, () => resolve())
  })
}

/**
 * Returns the arguments of Node for the server process. Halves V8's young generation: it fills with garbage of requests either way, and the
 * whole of it would make the process a tenth larger.
 */
export function getServeArguments(program: string): string[] {
  return ['--max-semi-space-size=8', program, 'serve']
}

interface ProcessRequest {
  /** bin/run.js */
  readonly program: string
  readonly paths: MirrorPaths
  readonly env: Readonly<Record<string, string | undefined>>
  readonly signal: AbortSignal
}

/** Limits the time for the server to report that it is ready. */
const readyTimeoutMs = 60_000

/** Starts the server as a detached process, and returns when it answers. Throws a MirrorError when it does not. */
export async function startProcess({ program, paths, env, signal }: ProcessRequest): Promise<StartedMirror> {
  await makeFolder(paths.stateDir)
  refuseForeignState(paths.stateDir)
  await limitLog(paths.logFile)
  return startDetached({
    args: getServeArguments(program),
    env: { ...env },
    logFile: paths.logFile,
    timeoutMs: readyTimeoutMs,
    signal,
  })
}
