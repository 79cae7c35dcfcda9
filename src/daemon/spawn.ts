import { type ChildProcess, spawn } from 'node:child_process'
import { open, readFile } from 'node:fs/promises'
import type { Endpoints, StartedMirror } from '../admin/state.ts'
import { refuseOthersState } from '../admin/sudo.ts'
import type { MirrorPaths } from '../config/paths.ts'
import { exitCode, type ExitCode, MirrorError } from '../lib/errors.ts'
import { makeFolder } from '../lib/fs.ts'
import { limitLog } from './logging.ts'

interface DetachedOptions {
  /** The program and its arguments, for this very Node. */
  args: string[]
  env: NodeJS.ProcessEnv
  /** Its stdout and stderr are appended here. */
  logFile: string
  timeoutMs: number
  /** Ends the start, and the process with it. */
  signal: AbortSignal
}

/**
 * Starts a mirror that outlives this process, and returns when it answers. Throws the child's own MirrorError when it says why
 * it cannot; one with the end of its log when it dies without a word.
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
    const outcome = await readinessOf(child, options)
    if (outcome.type === 'ready') {
      child.disconnect()
      child.unref()
      return { pid: child.pid!, endpoints: outcome.endpoints }
    }
    if (outcome.type === 'failed') throw new MirrorError(outcome.message, { hints: outcome.hints, exit: outcome.exit })
    throw new MirrorError(`The mirror could not be started: ${outcome.reason}.`, {
      hints: [...(await endOf(options.logFile, size)), `The whole log: ${options.logFile}`],
      exit: outcome.type === 'interrupted' ? exitCode.interrupted : exitCode.failed,
    })
  } finally {
    await log.close()
  }
}

type Outcome = ReadinessMessage | { type: 'died' | 'interrupted'; reason: string }

function readinessOf(child: ChildProcess, { timeoutMs, signal }: DetachedOptions): Promise<Outcome> {
  return new Promise((resolve) => {
    const settle = (outcome: Outcome) => {
      clearTimeout(timer)
      signal.removeEventListener('abort', onAbort)
      child.removeAllListeners()
      // A child that is being killed may still fail to be: nobody is interested any more.
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

/** The last lines that a log got since it had `from` bytes. */
async function endOf(logFile: string, from: number): Promise<string[]> {
  const bytes = await readFile(logFile)
  return bytes
    .subarray(from)
    .toString('utf8')
    .trim()
    .split('\n')
    .slice(-5)
    .filter((line) => line !== '')
}

/** What a detached mirror tells the command that started it, once, over the channel between them. */
type ReadinessMessage =
  | { type: 'ready'; endpoints: Endpoints }
  | { type: 'failed'; message: string; hints: string[]; exit: ExitCode }

/** The half of `process` that talks to whoever started it. */
type ParentChannel = Pick<NodeJS.Process, 'send' | 'connected'>

export function reportReady(parent: ParentChannel, endpoints: Endpoints): Promise<void> {
  return tell(parent, { type: 'ready', endpoints })
}

/** Says why there will be no mirror. What is no MirrorError is left to the log, where its stack is. */
export async function reportFailure(parent: ParentChannel, error: unknown): Promise<void> {
  if (!(error instanceof MirrorError)) return
  await tell(parent, { type: 'failed', message: error.message, hints: error.hints, exit: error.exit })
}

export function isReadinessMessage(value: unknown): value is ReadinessMessage {
  const type = typeof value === 'object' && value !== null && 'type' in value ? value.type : undefined
  return type === 'ready' || type === 'failed'
}

/** A parent that has gone away meanwhile needs no answer. */
function tell(parent: ParentChannel, message: ReadinessMessage): Promise<void> {
  return new Promise((resolve) => {
    if (!parent.connected || parent.send === undefined) resolve()
    else parent.send(message, undefined, undefined, () => resolve())
  })
}

/**
 * What Node is given to run the server. Half of the usual space for new objects: it is soon full of what a request has left,
 * and with all of it the process would be a tenth larger for nothing.
 */
export function serveArguments(program: string): string[] {
  return ['--max-semi-space-size=8', program, 'serve']
}

interface ProcessRequest {
  /** bin/run.js */
  readonly program: string
  readonly paths: MirrorPaths
  readonly env: Readonly<Record<string, string | undefined>>
  readonly signal: AbortSignal
}

/** An answer that has not come by then will not come. */
const readyWithinMs = 60_000

/** Starts the server as a process of its own, and returns when it answers. Throws a MirrorError when it does not. */
export async function startProcess({ program, paths, env, signal }: ProcessRequest): Promise<StartedMirror> {
  await makeFolder(paths.stateDir)
  refuseOthersState(paths.stateDir)
  await limitLog(paths.logFile)
  return startDetached({
    args: serveArguments(program),
    env: { ...env },
    logFile: paths.logFile,
    timeoutMs: readyWithinMs,
    signal,
  })
}
