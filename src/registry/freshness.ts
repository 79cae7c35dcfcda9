/** What is known of a tag when it is asked for. Times are monotonic milliseconds. */
export interface TagAge {
  /** When the upstream was last asked about it by this process; undefined after a start. */
  readonly checkedAt: number | undefined
  readonly now: number
  readonly freshFor: number
  readonly noCache: boolean
  readonly offline: boolean
}

/** Whether a tag may be answered without a word to its upstream. Digests are immutable and never come here. */
export function isFresh(age: TagAge): boolean {
  if (age.offline) return true
  if (age.noCache || age.checkedAt === undefined) return false
  return age.now - age.checkedAt < age.freshFor
}

export type StalePolicy = 'on-error' | 'always' | 'never'

/** Whether a cached tag may stand in for what its upstream could not, or would not, say (decision D1). */
export function mayServeStale(
  policy: StalePolicy,
  failure: 'absent' | 'denied' | 'limited' | 'unavailable' | 'invalid',
): boolean {
  if (policy === 'never') return false
  return policy === 'always' || failure === 'limited' || failure === 'unavailable' || failure === 'invalid'
}
