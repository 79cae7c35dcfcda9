/** A holder of memory for a body, and the progress of the body. */
export interface MovingHolder {
  /** Bytes that it holds. */
  bytes: number
  /** Bytes of the body that have moved in all. */
  moved: number
  /** Bytes that have moved since the last look. */
  progressed: number
  /** Bytes that have to move until the holder is done; undefined when nobody knows. */
  readonly expected: number | undefined
  /** `performance.now()` of its beginning, moved on by the time that it has waited for memory. */
  since: number
  /** Whether it was there at the last look. */
  isKnown: boolean
  /** Defined while it waits for more memory. */
  readonly growing: unknown
}

/** Bytes that a holder has to move between two looks while others wait for its memory. */
const leastProgress = 16 * 1024

/**
 * Returns the holders to evict while others wait: those that have moved too little since the last look. When there is none and
 * the first waiter is due, returns the one that needs the longest to its end at its pace; among equals the latest, so that the
 * others finish. `turn`: a holder stays for so many ms to show its pace, and when it ends within so many ms.
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

/** Estimates how long a holder needs to its end at its pace, ms. */
function timeLeft(holder: MovingHolder | undefined, now: number): number {
  if (!holder) return 0
  const { bytes, expected = bytes, moved, since } = holder
  return moved === 0 ? Infinity : (Math.max(0, expected - moved) * (now - since)) / moved
}
