import type { Dispatcher } from 'undici'
import { deferred } from '../lib/async.ts'
import { ResponseBody } from './undici.ts'

export interface Response {
  readonly status: number
  /** By lower-case names. */
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly body: ResponseBody
}

export interface DispatchOptions {
  readonly signal: AbortSignal
  /** The reason for a body that broke off, as its reader shall have it. */
  readonly explain: (error: unknown) => Error
  /** Called for each piece of the body, with its length. */
  readonly onBytes?: (bytes: number) => void
  /** Called once, when nothing more will come of it. */
  readonly onClose: () => void
}

/** One request. Rejects with what the network, or the signal, says. */
export function dispatch(
  dispatcher: Dispatcher,
  request: Dispatcher.DispatchOptions,
  { signal, explain, onBytes, onClose }: DispatchOptions,
): Promise<Response> {
  const answered = deferred<Response>()
  let control: Dispatcher.DispatchController | undefined
  let body: ResponseBody | undefined
  let failed = false
  const onAbort = () => {
    control?.abort(signal.reason)
    // It may still wait for a connection, where nothing can end it but its turn.
    fail(signal.reason)
  }
  const close = () => {
    signal.removeEventListener('abort', onAbort)
    onClose()
  }
  const fail = (error: unknown) => {
    if (body) return body.fail(error)
    // An abort is told of by its signal, by undici in answer to it, or at the request's turn: by the first of them.
    if (failed) return
    failed = true
    close()
    answered.reject(error)
  }

  signal.addEventListener('abort', onAbort, { once: true })
  dispatcher.dispatch(request, {
    onRequestStart(controller) {
      control = controller
      if (signal.aborted) controller.abort(signal.reason)
    },
    onResponseStart(controller, status, headers) {
      if (status < 200) return
      body = new ResponseBody({ control: controller, explain, onClose: close })
      answered.resolve({ status, headers, body })
    },
    onResponseData(_, chunk) {
      onBytes?.(chunk.length)
      body?.push(chunk)
    },
    onResponseEnd: () => body?.end(),
    onResponseError: (_, error) => fail(error),
  })
  return answered.promise
}
