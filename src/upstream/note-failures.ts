import type { WorkWatcher } from '../lib/system-errors.ts'
import { UpstreamError, type Upstream, type UpstreamFailure } from './upstream.ts'

const troubles: ReadonlySet<UpstreamFailure> = new Set(['unavailable', 'limited', 'invalid'])
/** Only an upstream that was asked refuses, or says that there is nothing. */
const answers: ReadonlySet<UpstreamFailure> = new Set(['absent', 'denied'])

/**
 * The same upstream, whose health tells the last failure too: why it is left alone, or until when it wants no more requests.
 * `wall`: wall clock ms. `watcher` hears whether each request got through to the upstream.
 */
export function noteFailures(upstream: Upstream, wall: () => number, watcher?: WorkWatcher): Upstream {
  let last: { readonly message: string; readonly at: number } | undefined
  let retryAt = 0

  async function noted<T>(ask: Promise<T>): Promise<T> {
    try {
      const answer = await ask
      watcher?.worked()
      return answer
    } catch (error) {
      if (error instanceof UpstreamError && answers.has(error.failure)) watcher?.worked()
      else watcher?.failed(error)
      if (error instanceof UpstreamError && troubles.has(error.failure)) {
        const now = wall()
        retryAt = error.retryAfterSeconds === undefined ? 0 : now + error.retryAfterSeconds * 1000
        last = { message: error.message, at: now }
      }
      throw error
    }
  }

  return {
    host: upstream.host,
    identity: (access) => upstream.identity(access),
    resolve: (...args) => noted(upstream.resolve(...args)),
    manifest: (...args) => noted(upstream.manifest(...args)),
    statBlob: (...args) => noted(upstream.statBlob(...args)),
    blob: (...args) => noted(upstream.blob(...args)),
    tags: (...args) => noted(upstream.tags(...args)),
    referrers: (...args) => noted(upstream.referrers(...args)),
    health() {
      const health = upstream.health()
      const left = retryAt - wall()
      if (last === undefined || (health.state === 'ok' && left <= 0)) return health
      return { ...health, lastError: { ...last, ...(left > 0 && { retryAfterSeconds: Math.ceil(left / 1000) }) } }
    },
  }
}
