import { MirrorError } from '../lib/errors.ts'
import { DockerError } from '../docker/engine.ts'

/** What the engine refuses becomes a MirrorError: what could not be done, then the engine's own words. */
export async function inWords<T>(what: string, ask: Promise<T>, ...hints: string[]): Promise<T> {
  try {
    return await ask
  } catch (error) {
    if (!(error instanceof DockerError)) throw error
    throw new MirrorError(`${what}: ${error.message}.`, { hints, cause: error })
  }
}

/** For tidying up after a failure that matters more: what the engine refuses is the result, undefined when it obeys. */
export async function orRefused(ask: Promise<unknown>): Promise<MirrorError | DockerError | undefined> {
  try {
    await ask
    return undefined
  } catch (error) {
    if (error instanceof MirrorError || error instanceof DockerError) return error
    throw error
  }
}
