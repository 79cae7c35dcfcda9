import { describeFailure } from '../../lib/errors.ts'
import type { Logger } from '../../lib/logger.ts'
import type { Outside } from './outside.ts'

const lookMs = 1000

/**
 * Removes what was handed to the mirrors before this one, credentials and keys among it, as soon as this one is there to stay;
 * until then one of them may be put back. Returns how to stop looking.
 */
export function forgetPredecessors(outside: Outside, logger: Logger, everyMs = lookMs): () => void {
  let looking = false
  const look = async () => {
    if (looking) return
    looking = true
    try {
      if ((await outside.endpoints()) === undefined) return
      clearInterval(timer)
      await outside.forgetOthers()
    } catch (error) {
      logger.warn({ error: describeFailure(error) }, 'what was handed to the mirror before this one cannot be removed')
    } finally {
      looking = false
    }
  }
  const timer = setInterval(() => void look(), everyMs).unref()
  return () => clearInterval(timer)
}
