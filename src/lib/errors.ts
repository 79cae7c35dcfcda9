const bugNames = new Set(['Error', 'TypeError', 'RangeError', 'ReferenceError', 'SyntaxError', 'AssertionError'])
const connectionCodes =
  /^ERR_(TLS_|SSL_|SOCKET_|HTTP2_(STREAM|SESSION|GOAWAY|ERROR)|STREAM_(PREMATURE_CLOSE|DESTROYED))/

/** Lists the exit codes of the program; part of its contract. */
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

/** Combines the exit codes of several steps: the lowest failure code, because it is the least specific; `done` when none failed. */
export function combineExitCodes(codes: readonly ExitCode[]): ExitCode {
  const failures = codes.filter((code) => code !== exitCode.done)
  return failures.length === 0 ? exitCode.done : (Math.min(...failures) as ExitCode)
}

/**
 * Reports a failure that the user can fix: what happened, why, and what to do next.
 * `message` is one sentence; `hints` are next steps, one per line, without a full stop where they are commands.
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
 * Returns the `code` of a system error (`ENOENT`, `ECONNREFUSED` …); undefined for any other value. A system error names the
 * failed call (`syscall`). Node's `ERR_*` errors do not count, because most of them are bugs.
 */
export function getErrno(error: unknown): string | undefined {
  return isSystemError(error) ? (getInnerCode(error) ?? getCode(error)) : undefined
}

/** Returns the system's code in an `ERR_SYSTEM_ERROR`, which functions of `node:os` throw. */
function getInnerCode(error: unknown): string | undefined {
  if (getCode(error) !== 'ERR_SYSTEM_ERROR') return undefined
  const { info } = error as { info?: { code?: unknown } }
  return typeof info?.code === 'string' ? info.code : undefined
}

/** Returns the `code` of any error that has one: a system error, or one of Node or a library. */
export function getCode(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : undefined
}

/** Creates a system error for a failure that this program detects itself. */
export function createSystemError(code: string, syscall: string, message: string): Error {
  return Object.assign(new Error(message), { code, syscall })
}

/** Creates the error (ENOSPC) of a write that would leave less than `minFree` bytes on the disk. */
export function createReserveError(minFree: number): Error {
  const error = createSystemError('ENOSPC', 'write', `ENOSPC: no space left above the reserve of ${minFree} bytes`)
  return Object.assign(error, { minFree })
}

/** Returns the reserve in bytes (`minFree`) of an error from `createReserveError`; undefined for any other error. */
export function getReserve(error: unknown): number | undefined {
  return error instanceof Error && 'minFree' in error && typeof error.minFree === 'number' ? error.minFree : undefined
}

/** Checks whether a connection could not be opened, broke, or violated the protocol. */
export function isConnectionFailure(error: unknown): boolean {
  if (getErrno(error) !== undefined) return true
  const code = getCode(error)
  // Socket hang-ups, TLS errors and HTTP parser errors have no `syscall`.
  return code !== undefined && (!code.startsWith('ERR_') || connectionCodes.test(code))
}

/** Formats an error for the log, with its stack when it is a bug (an error without a type of its own). */
export function describeFailure(error: unknown): string {
  const isBug = error instanceof Error && bugNames.has(error.name) && getErrno(error) === undefined
  return (isBug && error.stack) || String(error)
}

function isSystemError(error: unknown): boolean {
  // Node throws an AggregateError with one error per address of a host name.
  if (error instanceof AggregateError) return error.errors.length > 0 && error.errors.every(isSystemError)
  return error instanceof Error && 'syscall' in error && typeof error.syscall === 'string'
}

/**
 * Finds the candidate that a mistyped word probably means: one that differs only in case, or in at most a third of its characters (one
 * in a short word); else the only candidate that starts with the word.
 */
export function findNearest(word: string, candidates: readonly string[]): string | undefined {
  const lower = word.toLowerCase()
  let best: string | undefined
  let bestDistance = Math.max(1, Math.floor(word.length / 3)) + 1
  for (const candidate of candidates) {
    const distance = computeEditDistance(lower, candidate.toLowerCase())
    // Skip a candidate that shares no character with the word.
    if (distance < bestDistance && distance < Math.max(word.length, candidate.length)) {
      ;[best, bestDistance] = [candidate, distance]
    }
  }
  if (best !== undefined || lower === '') return best
  const [only, ...others] = candidates.filter((candidate) => candidate.toLowerCase().startsWith(lower))
  return others.length === 0 ? only : undefined
}

/** Computes the optimal string alignment distance: how many characters to add, drop, change, or swap with the next one. */
function computeEditDistance(a: string, b: string): number {
  let before: number[] = []
  let row = Array.from({ length: b.length + 1 }, (_, index) => index)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const change = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)
      let distance = Math.min(row[j]! + 1, next[j - 1]! + 1, change)
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        distance = Math.min(distance, before[j - 2]! + 1)
      next.push(distance)
    }
    ;[before, row] = [row, next]
  }
  return row[b.length]!
}
