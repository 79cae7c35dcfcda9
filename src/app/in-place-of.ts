import { orRefused } from '../runtime/engine-words.ts'
import { withAftermath } from '../runtime/with-aftermath.ts'
import type { WayBack } from './way-back.ts'

/**
 * Ends a mirror and has its successor start; where that fails, or somebody interrupts, goes back to the one before, and the
 * error says so. Without a way back nothing ran before.
 */
export async function inPlaceOf<T>(
  back: WayBack | undefined,
  signal: AbortSignal,
  start: () => Promise<T>,
): Promise<T> {
  await back?.leave()
  let started: T
  try {
    signal.throwIfAborted()
    started = await start()
  } catch (error) {
    throw back ? withAftermath(error, { refusal: await orRefused(back.goBack()), signal }) : error
  }
  // Should something of it stay, the next `mirror down` finds it.
  if (back) await orRefused(back.forget())
  return started
}
