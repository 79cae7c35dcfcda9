import { inPlaceOf } from './in-place-of.ts'
import { serveMirror, type ServeRequest } from '../daemon/serve.ts'
import type { WayBack } from './way-back.ts'

export interface ServeInPlaceRequest extends ServeRequest {
  /** Undefined where no mirror runs. */
  back: WayBack | undefined
  /** Ends the attempt until the server hears signals itself. */
  signal: AbortSignal
  /** Hears that it does. */
  onServing: () => void
}

/** Serves in this process as `serveMirror` does, in place of a mirror that runs, which comes back when this one cannot start. */
export async function serveInPlace(request: ServeInPlaceRequest): Promise<void> {
  const { back, signal, onServing } = request
  const serving = await inPlaceOf(back, signal, () => {
    onServing()
    return untilReady(request)
  })
  await serving.ended
}

/** In an object: the promise itself would be waited for. */
function untilReady(request: ServeRequest): Promise<{ ended: Promise<void> }> {
  return new Promise((resolve, reject) => {
    const ended = serveMirror({
      ...request,
      onReady(endpoints) {
        resolve({ ended })
        request.onReady?.(endpoints)
      },
    })
    ended.catch(reject)
  })
}
