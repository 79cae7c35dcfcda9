import { UpstreamError, type UpstreamFailure } from './upstream.ts'

/** A failure that another try may not meet: no answer, a 5xx answer, a body cut short, a limit that is over at once. */
export class TransientError extends UpstreamError {
  /** Whether it is one of the failures that say that the upstream is down (decision D6). */
  readonly breaksCircuit: boolean
  /** Milliseconds that the upstream asked to wait; otherwise the usual pause. */
  readonly pauseMs: number | undefined

  constructor(
    failure: UpstreamFailure,
    status: number,
    message: string,
    options: { breaksCircuit?: boolean; pauseMs?: number; cause?: unknown } = {},
  ) {
    super(failure, status, message, {
      ...(options.pauseMs !== undefined && { retryAfterSeconds: Math.max(1, Math.ceil(options.pauseMs / 1000)) }),
      cause: options.cause,
    })
    this.breaksCircuit = options.breaksCircuit ?? false
    this.pauseMs = options.pauseMs
  }
}
