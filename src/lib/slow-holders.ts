/** One that holds memory for a body, and how the body moves. */
export interface MovingHolder {
  /** Bytes that it holds. */
  bytes: number
  /** Bytes of the body in all, and since the last look. */
  moved: number
  progressed: number
  /** Bytes that move before the holder is done; undefined when nobody knows. */
  readonly expected: number | undefined
  /** `performance.now()` of its beginning, later by the time that it has waited for memory. */
  since: number
  /** Whether it was there at the last look. */
  isKnown: boolean
  /** Something while it waits for more memory. */
  readonly growing: unknown
}

/** Bytes that a holder has to move between two looks while others wait for its memory. */
const leastProgress = 16 * 1024

/**
 * Looks at the holders while others wait: those that have moved too little since the last look. When the first of those who wait
 * is due, also the one that is the furthest from its end at its pace. Among equals that is the latest, so that the others finish.
 * `turn`: ms that a holder has to show its pace, and that its end is waited for.
 */
export function slowHolders<T extends MovingHolder>(
  holders: Iterable<T>,
  now: number,
  { turn, isDue }: { readonly turn: number; readonly isDue: boolean },
): T[] {
  const slow: T[] = []
  let last: T | undefined
  for (const holder of holders) {
    if (holder.growing !== undefined) continue
    if (holder.isKnown && holder.progressed < leastProgress) slow.push(holder)
    else if (now - holder.since >= turn && !(timeLeft(holder, now) < timeLeft(last, now))) last = holder
    holder.isKnown = true
    holder.progressed = 0
  }
  if (isDue && slow.length === 0 && last && timeLeft(last, now) > turn) slow.push(last)
  return slow
}

/** How long a holder needs to its end at its pace, ms. */
function timeLeft(holder: MovingHolder | undefined, now: number): number {
  if (!holder) return 0
  const { bytes, expected = bytes, moved, since } = holder
  return moved === 0 ? Infinity : (Math.max(0, expected - moved) * (now - since)) / moved
}
