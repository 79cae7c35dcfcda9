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
  /** Milliseconds until it is killed. */
  readonly timeoutMs: number
  /** Added to the environment of this process. */
  readonly env?: Readonly<Record<string, string>>
}

/**
 * Runs a program without a shell and waits for its end, whatever its exit code; `undefined` when there is no such program.
 * Output is kept as it came, up to 16 MiB.
 */
export type RunCommand = (
  file: string,
  args: readonly string[],
  options: CommandOptions,
) => Promise<CommandResult | undefined>

const outputBytes = 16 * 1024 * 1024

/** Runs programs of this machine. */
export const runCommand: RunCommand = async (file, args, { input, timeoutMs, env }) => {
  const { execa } = await import('execa')
  const result = await execa(file, args, {
    reject: false,
    timeout: timeoutMs,
    maxBuffer: outputBytes,
    stripFinalNewline: false,
    ...(input === undefined ? { stdin: 'ignore' as const } : { input }),
    ...(env && { env }),
  })
  if (result.code === 'ENOENT') return undefined
  // A program that could not be started has written nothing; why is all there is to say.
  const stderr = result.stderr ?? ''
  const started = result.exitCode !== undefined || result.isTerminated || result.timedOut
  return {
    exitCode: result.exitCode,
    stdout: result.stdout ?? '',
    stderr: started ? stderr : (result.originalMessage ?? stderr),
  }
}
