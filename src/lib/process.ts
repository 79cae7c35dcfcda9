import type { ChildProcess } from 'node:child_process'
import type { Readable } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { deferred } from './deferred.ts'
import { endGroup, ownGroup, signalGroup, trackGroup } from './process-group.ts'

/** What became of a program that was started. */
export interface CommandResult {
  /** Undefined when it did not end by itself: killed by a signal, or by the time-out. */
  readonly exitCode: number | undefined
  readonly stdout: string
  readonly stderr: string
}

export interface CommandOptions {
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

const outputBytes = 16 * 1024 * 1024
/** How often, and how many times, to look for the end of the output of a program that has ended. */
const drainStepMs = 50
const drainSteps = 20

/** Loads what runs programs. */
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
    if (pid !== undefined) return await resultOf(program, pid, timeoutMs)
    const { code, originalMessage } = await program
    if (code === 'ENOENT') return undefined
    // A program that could not be started has written nothing; why is all there is to say.
    return { exitCode: undefined, stdout: '', stderr: originalMessage ?? '' }
  } finally {
    stopWatching()
  }
}

/** Resolves at the program's end, or soon after the time-out, even if something keeps the output open. */
async function resultOf(program: ChildProcess, pid: number, timeoutMs: number): Promise<CommandResult> {
  const exit = deferred<number | undefined>()
  const ended = deferred()
  const closed = deferred()
  const is = { closed: false, ended: false }
  const end = () => {
    if (is.ended) return
    is.ended = true
    void endGroup(pid).then(() => ended.resolve())
  }
  program.once('exit', (code) => {
    // What it leaves behind is not its own time.
    if (!is.ended) clearTimeout(timer)
    exit.resolve(code ?? undefined)
  })
  program.once('close', () => {
    is.closed = true
    closed.resolve()
  })
  const stdout = collect(program.stdout!, end)
  const stderr = collect(program.stderr!, end)
  const timer = setTimeout(end, timeoutMs)
  const forget = trackGroup(pid)
  try {
    const exitCode = await Promise.race([exit.promise, ended.promise])
    // A daemon that the program has started may keep the output open for ever.
    for (let step = 0; step < drainSteps && !is.closed && !is.ended; step++) await sleep(drainStepMs)
    if (is.ended) await Promise.race([closed.promise, ended.promise])
    return { exitCode: is.ended ? undefined : (exitCode ?? undefined), stdout: stdout(), stderr: stderr() }
  } finally {
    clearTimeout(timer)
    forget()
    program.stdout!.destroy()
    program.stderr!.destroy()
  }
}

/** Keeps what a stream brings, as far as it may be kept; the result reads it. */
function collect(stream: Readable, onOverflow: () => void): () => string {
  const chunks: Buffer[] = []
  let size = 0
  stream.on('data', (chunk: Buffer) => {
    chunks.push(chunk.subarray(0, Math.max(0, outputBytes - size)))
    size += chunk.length
    if (size > outputBytes) onOverflow()
  })
  return () => Buffer.concat(chunks).toString('utf8')
}
