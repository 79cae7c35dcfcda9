import { UpstreamError, type UpstreamFailure } from './upstream.ts'

/**
 * What a failure tells about the upstream (decision D6): `unreachable` = no connection; `silent` = a connection, but no answer in
 * time; `answered` = a 5xx answer. The last two may concern a single repository.
 */
export type Outage = 'unreachable' | 'silent' | 'answered'

/** A failure that another try may not meet: no answer, a 5xx answer, a body cut short, a limit that is over at once. */
export class TransientError extends UpstreamError {
  /** Undefined for a failure that does not count for the circuit breaker. */
  readonly outage: Outage | undefined
  /** Milliseconds that the upstream asked to wait; otherwise the usual pause. */
  readonly pauseMs: number | undefined

  /** `breaksCircuit`: the failure counts for the circuit breaker, as an `answered` outage unless `outage` says otherwise. */
  constructor(
    failure: UpstreamFailure,
    status: number,
    message: string,
    options: { breaksCircuit?: boolean; outage?: Outage; pauseMs?: number; cause?: unknown } = {},
  ) {
    super(failure, status, message, {
      ...(options.pauseMs !== undefined && { retryAfterSeconds: Math.max(1, Math.ceil(options.pauseMs / 1000)) }),
      cause: options.cause,
    })
    this.outage = options.breaksCircuit === true ? (options.outage ?? 'answered') : undefined
    this.pauseMs = options.pauseMs
  }

  /** Whether an answer came, though not the wanted one. A failure of the network carries its cause. */
  get isAnswer(): boolean {
    return this.cause === undefined
  }
}
