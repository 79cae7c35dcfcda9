import { setImmediate } from 'node:timers/promises'
import type { Clock } from '../lib/clock.ts'

// Long enough to get on, short enough for nobody to notice.
const sliceMs = 10

/** Lets other work in between, when enough time has passed since the last pause. */
export function createPauses(clock: Clock): () => Promise<void> {
  let began = clock.monotonic()
  return async () => {
    if (clock.monotonic() - began < sliceMs) return
    await setImmediate()
    began = clock.monotonic()
  }
}

/** Runs long work that pauses at every `yield`; undefined when the signal has ended it early. */
export async function inSlices<Result>(
  work: Generator<undefined, Result>,
  clock: Clock,
  signal: AbortSignal,
): Promise<Result | undefined> {
  const pause = createPauses(clock)
  while (!signal.aborted) {
    const step = work.next()
    if (step.done) return step.value
    await pause()
  }
  return undefined
}
