import type { Clock } from '../lib/clock.ts'
import type { Logger } from '../lib/logger.ts'
import { TransientError } from './transient-error.ts'
import { UpstreamError, type UpstreamHealth } from './upstream.ts'

/** Keeps a dead upstream from being asked (decision D6): five failures in a row open it for 30 s, then one probe at a time. */
export interface Circuit {
  /** Runs one attempt and learns from its end. Throws an UpstreamError (503) at once while open. */
  run<T>(attempt: () => Promise<T>): Promise<T>
  readonly state: UpstreamHealth['state']
}

const failuresToOpen = 5
const openMs = 30_000

export function createCircuit(host: string, clock: Clock, logger: Logger): Circuit {
  let failures = 0
  let openUntil: number | undefined
  let probing = false
  // One token request serves many waiters: its failure is one, however many of them report it.
  const counted = new WeakSet<TransientError>()

  function refuseWhileOpen(): boolean {
    if (openUntil === undefined) return false
    const left = openUntil - clock.monotonic()
    if (left <= 0 && !probing) return true
    throw new UpstreamError('unavailable', 503, `${host} has not been answering and is left alone for a while.`, {
      retryAfterSeconds: Math.max(1, Math.ceil(left / 1000)),
    })
  }

  function answered(): void {
    failures = 0
    if (openUntil === undefined) return
    openUntil = undefined
    logger.info({ upstream: host }, 'the upstream answers again')
  }

  function failed(error: TransientError, isProbe: boolean): void {
    if (counted.has(error) && !isProbe) return
    counted.add(error)
    failures += 1
    if (!isProbe && (failures < failuresToOpen || openUntil !== undefined)) return
    openUntil = clock.monotonic() + openMs
    logger.warn({ upstream: host, reason: error.message }, 'the upstream does not answer and is left alone for 30 s')
  }

  return {
    async run(attempt) {
      const isProbe = refuseWhileOpen()
      if (isProbe) probing = true
      try {
        const result = await attempt()
        answered()
        return result
      } catch (error) {
        if (error instanceof TransientError && error.breaksCircuit) failed(error, isProbe)
        // Any other UpstreamError that carries an answer shows that somebody is there.
        else if (error instanceof UpstreamError && isAnswer(error)) answered()
        throw error
      } finally {
        if (isProbe) probing = false
      }
    },
    get state() {
      if (openUntil !== undefined) return 'open'
      return failures > 0 ? 'failing' : 'ok'
    },
  }
}

const isAnswer = ({ failure }: UpstreamError) => failure !== 'unavailable'
