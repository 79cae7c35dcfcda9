import { every, type OnFailure } from '../lib/time.ts'

/** What the process holds when it has little to do, roughly. */
const restingBytes = 128 * 1024 * 1024
/** Less is not worth a look at every free page. */
const worthwhileBytes = 16 * 1024 * 1024
const everyMilliseconds = 2000

export interface SpareMemoryOptions {
  /** Gives the system back what was freed. */
  readonly trim: () => Promise<void>
  /** What the process holds, bytes. */
  readonly held?: () => number
  readonly everyMs?: number
  /** Takes what a look throws: without a descriptor left nobody can say what the process holds. */
  readonly onFailure: OnFailure
}

/**
 * Gives memory back that a rush has taken: the C library keeps what was freed between what was not, several hundred MB after
 * a while, and on its own never lets go of it. Returns how to stop.
 */
export function spareMemory(options: SpareMemoryOptions): () => void {
  const { trim, held = () => process.memoryUsage.rss(), everyMs = everyMilliseconds, onFailure } = options
  /** From where on a look is worth it. */
  let limit = restingBytes + worthwhileBytes
  const look = async () => {
    const before = held()
    limit = Math.min(limit, Math.max(restingBytes, before) + worthwhileBytes)
    if (before < limit) return
    await trim()
    const after = held()
    // What has become free since, or is only seen to be, is found by the next look; what is needed is left alone.
    const gave = before - after >= worthwhileBytes / 2
    limit = Math.max(restingBytes, gave ? after - worthwhileBytes : after) + worthwhileBytes
  }
  return every(everyMs, look, onFailure)
}
