import { deferred } from '../lib/deferred.ts'

/** Resolves at the next progress, or when the signal aborts; the caller has to look which. */
export async function nextProgress(progress: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  if (!signal) return progress
  const aborted = deferred()
  const onAbort = () => aborted.resolve()
  signal.addEventListener('abort', onAbort, { once: true })
  await Promise.race([progress, aborted.promise])
  signal.removeEventListener('abort', onAbort)
}
