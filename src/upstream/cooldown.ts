import type { Clock } from '../lib/time.ts'
import { LimitedError } from './limited-error.ts'
import type { Limit } from './rate-limit.ts'

/** Remembers who was told to wait, so that the upstream is not asked before the time is over. */
export interface Cooldown {
  /** Throws a LimitedError while a request by this identity would be in vain; `spendsQuota`: it is a GET of a manifest. */
  check(identity: string, spendsQuota: boolean): void
  note(identity: string, limit: Limit): void
}

export function createCooldown(host: string, clock: Clock): Cooldown {
  const limits = new Map<string, { readonly until: number; readonly reason: string | undefined }>()

  function check(identity: string, scope: Limit['scope']): void {
    const key = `${scope} ${identity}`
    const limit = limits.get(key)
    if (!limit) return
    const retryAfterMs = limit.until - clock.monotonic()
    if (retryAfterMs > 0) throw new LimitedError(host, { scope, retryAfterMs, reason: limit.reason })
    limits.delete(key)
  }

  return {
    check(identity, spendsQuota) {
      check(identity, 'all')
      if (spendsQuota) check(identity, 'manifests')
    },
    note(identity, { scope, retryAfterMs, reason }) {
      const key = `${scope} ${identity}`
      limits.set(key, { until: Math.max(limits.get(key)?.until ?? 0, clock.monotonic() + retryAfterMs), reason })
    },
  }
}
