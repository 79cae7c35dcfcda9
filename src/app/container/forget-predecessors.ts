import { describeFailure } from '../../lib/errors.ts'
import { every } from '../../lib/time.ts'
import type { Logger } from '../../lib/logger.ts'
import type { Outside } from './outside.ts'

const lookMs = 1000

/**
 * Removes what was handed to the mirrors before this one, credentials and keys among it, as soon as this one is there to stay;
 * until then one of them may be put back. Returns how to stop looking.
 */
export function forgetPredecessors(outside: Outside, logger: Logger, everyMs = lookMs): () => void {
  const look = async () => {
    if ((await outside.endpoints()) === undefined) return
    stop()
    await outside.forgetOthers()
  }
  const stop = every(everyMs, look, (error) =>
    logger.warn({ error: describeFailure(error) }, 'what was handed to the mirror before this one cannot be removed'),
  )
  return stop
}
