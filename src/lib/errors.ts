/** The exit codes of the program; part of its contract. */
export const exitCode = {
  done: 0,
  failed: 1,
  usage: 2,
  notRunning: 3,
  missing: 4,
  checkFailed: 5,
  interrupted: 130,
} as const
export type ExitCode = (typeof exitCode)[keyof typeof exitCode]

/** What to end with when several things have failed: the lowest, which says the least of what the user could do. `done` when none has. */
export function gravest(codes: readonly ExitCode[]): ExitCode {
  const failures = codes.filter((code) => code !== exitCode.done)
  return failures.length === 0 ? exitCode.done : (Math.min(...failures) as ExitCode)
}

/**
 * A failure that is the user's to mend: what happened, why, and what to do next.
 * `message` is one sentence; `hints` are next steps, one a line, without a full stop where they are commands.
 */
export class MirrorError extends Error {
  override name = 'MirrorError'
  readonly exit: ExitCode
  readonly hints: string[]

  constructor(message: string, options: { exit?: ExitCode; hints?: string[]; cause?: unknown } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.exit = options.exit ?? exitCode.failed
    this.hints = options.hints ?? []
  }
}

/** The `code` of a Node system error (`ENOENT`, `ECONNREFUSED` …), if the value is one. */
export function errnoOf(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined
}
