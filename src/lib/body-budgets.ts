import { MemoryBudget } from './memory.ts'
import { memoryLimit } from './memory-limit.ts'

const KiB = 1024
const MiB = 1024 * KiB

/** An eighth of the memory that the process may have, between 16 and 64 MiB. */
function usualBudget(): number {
  return Math.max(16 * MiB, Math.min(64 * MiB, Math.floor(memoryLimit() / 8)))
}

function createShare(): MemoryBudget {
  return new MemoryBudget({
    bytes: usualBudget() / 2,
    mostWaiting: 256,
    patience: 20_000,
    // Bodies of up to 64 KiB, which count twice.
    small: { largest: 128 * KiB, bytes: 2 * MiB },
  })
}

/** Half of the memory of this process for bodies: those that clients send or take. */
export const clientBodies = createShare()

/** The other half: bodies that come from upstreams, or from the disk. Neither half waits for the other one's slow ones. */
export const upstreamBodies = createShare()
