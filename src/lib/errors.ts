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

/**
 * The `code` of a system error (`ENOENT`, `ECONNREFUSED` …), if the value is one: it names the call that failed. Node's `ERR_*`
 * errors have a code too, but most of them are bugs.
 */
export function errnoOf(error: unknown): string | undefined {
  return isSystemError(error) ? (getInnerCode(error) ?? codeOf(error)) : undefined
}

/** Functions of `node:os` throw `ERR_SYSTEM_ERROR`, with the system's own code in it. */
function getInnerCode(error: unknown): string | undefined {
  if (codeOf(error) !== 'ERR_SYSTEM_ERROR') return undefined
  const { info } = error as { info?: { code?: unknown } }
  return typeof info?.code === 'string' ? info.code : undefined
}

/** The `code` of any error that has one: the system's, Node's, or a library's. */
export function codeOf(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined
}

/** A system error for a failure that this program finds by itself. */
export function systemError(code: string, syscall: string, message: string): Error {
  return Object.assign(new Error(message), { code, syscall })
}

/** The failure of a write that would leave less than `minFree` bytes on the disk: a full disk, but for the reserve. */
export function reserveReached(minFree: number): Error {
  const error = systemError('ENOSPC', 'write', `ENOSPC: no space left above the reserve of ${minFree} bytes`)
  return Object.assign(error, { minFree })
}

/** The bytes that are to stay free, of the failure of a write that would use them. */
export function reserveOf(error: unknown): number | undefined {
  return error instanceof Error && 'minFree' in error && typeof error.minFree === 'number' ? error.minFree : undefined
}

/** Whether a connection could not be made, broke, or brought something that is not the protocol. */
export function isConnectionFailure(error: unknown): boolean {
  if (errnoOf(error) !== undefined) return true
  const code = codeOf(error)
  // A socket that hangs up, TLS and the HTTP parser name no system call.
  return code !== undefined && (!code.startsWith('ERR_') || connectionCodes.test(code))
}

/** What a log tells of an error: of a bug, which has no type of its own, where it is. */
export function describeFailure(error: unknown): string {
  const isBug = error instanceof Error && bugNames.has(error.name) && errnoOf(error) === undefined
  return (isBug && error.stack) || String(error)
}

const bugNames = new Set(['Error', 'TypeError', 'RangeError', 'ReferenceError', 'SyntaxError', 'AssertionError'])

const connectionCodes =
  /^ERR_(TLS_|SSL_|SOCKET_|HTTP2_(STREAM|SESSION|GOAWAY|ERROR)|STREAM_(PREMATURE_CLOSE|DESTROYED))/

function isSystemError(error: unknown): boolean {
  // One error for each address of a host name.
  if (error instanceof AggregateError) return error.errors.length > 0 && error.errors.every(isSystemError)
  return error instanceof Error && 'syscall' in error && typeof error.syscall === 'string'
}
