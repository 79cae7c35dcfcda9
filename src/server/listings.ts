import type { IncomingMessage, ServerResponse } from 'node:http'
import type { ListAnswer } from '../oci/registry.ts'
import type { ClientDeparture } from './client-departure.ts'
import { answerHeaders } from './respond.ts'
import { sendLarge } from './send-large.ts'

/** Sends a list. The next page is below the path the client used, which may name the upstream in several ways. */
export function sendList(
  request: IncomingMessage,
  response: ServerResponse,
  answer: ListAnswer,
  sending: { readonly idle: number; readonly client: ClientDeparture },
): Promise<number> {
  const target = request.url!
  const mark = target.indexOf('?')
  const path = mark === -1 ? target : target.slice(0, mark)
  const ns = mark === -1 ? null : new URLSearchParams(target.slice(mark + 1)).get('ns')
  const namespace = ns === null ? '' : `&ns=${encodeURIComponent(ns)}`
  return sendLarge(
    request,
    response,
    {
      ...answerHeaders(answer.provenance),
      'content-type': answer.contentType,
      ...(answer.next === undefined ? {} : { link: `<${path}?${answer.next}${namespace}>; rel="next"` }),
      ...(answer.filtersApplied === undefined ? {} : { 'oci-filters-applied': answer.filtersApplied }),
    },
    answer.bytes,
    sending,
  )
}
