import type { Clock } from '../lib/clock.ts'
import { LimitedError } from './limited-error.ts'
import type { Limit } from './rate-limit.ts'

/** Remembers who was told to wait, so that the upstream is not asked before the time is over. */
export interface Cooldown {
  /** Throws a LimitedError while a request by this identity would be in vain; `spendsQuota`: it is a GET of a manifest. */
  check(identity: string, spendsQuota: boolean): void
  note(identity: string, limit: Limit): void
}

export function createCooldown(host: string, clock: Clock): Cooldown {
  const ends = new Map<string, number>()

  function check(identity: string, scope: Limit['scope']): void {
    const key = `${scope} ${identity}`
    const retryAfterMs = (ends.get(key) ?? 0) - clock.monotonic()
    if (retryAfterMs > 0) throw new LimitedError(host, { scope, retryAfterMs })
    ends.delete(key)
  }

  return {
    check(identity, spendsQuota) {
      check(identity, 'all')
      if (spendsQuota) check(identity, 'manifests')
    },
    note(identity, { scope, retryAfterMs }) {
      const key = `${scope} ${identity}`
      ends.set(key, Math.max(ends.get(key) ?? 0, clock.monotonic() + retryAfterMs))
    },
  }
}
