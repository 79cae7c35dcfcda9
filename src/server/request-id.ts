import { randomInt } from 'node:crypto'
import type { OutgoingHttpHeader, OutgoingHttpHeaders, ServerResponse } from 'node:http'
import { LingeringResponse } from './connection.ts'

/** Names the header that identifies a request, in every response of the cache and the registry. */
export const requestIdHeader = 'x-request-id'

const base = 36
/** Begins another series before the count has more than six digits, so that an id has at most 16 characters. */
const maxCount = base ** 6
let series = beginSeries()
let count = 0

/**
 * Creates the id of a request: no other request of this process or of another start of the mirror has it. A client's own
 * `X-Request-Id` is not used, because two clients may send the same.
 */
export function createRequestId(): string {
  if (count === maxCount) {
    series = beginSeries()
    count = 0
  }
  return series + (count++).toString(base)
}

/** Returns ten characters: the time, and two random ones for a clock that was set back. */
function beginSeries(): string {
  return Date.now().toString(base).padStart(8, '0').slice(-8) + randomInt(base, base ** 2).toString(base)
}

/** Holds the time of the first release with ids, wall clock ms. */
const firstIdAt = Date.UTC(2025, 0)
const dayMs = 86_400_000

/** Reports whether a text may be such an id: it begins with the time of a start of the mirror, so that few words may be one. */
export function looksLikeRequestId(text: string): boolean {
  if (!/^[0-9a-z]{11,16}$/.test(text)) return false
  const at = Number.parseInt(text.slice(0, 8), base)
  return at >= firstIdAt && at < Date.now() + dayMs
}

/** Is the response class of the cache and the registry. Adds the id to every head, also to those that Node writes itself. */
export class IdentifiedResponse extends LingeringResponse {
  readonly requestId = createRequestId()

  override writeHead(
    status: number,
    message?: string | OutgoingHttpHeaders | OutgoingHttpHeader[],
    headers?: OutgoingHttpHeaders | OutgoingHttpHeader[],
  ): this {
    const own = (typeof message === 'string' ? headers : message) ?? {}
    if (Array.isArray(own)) own.push(requestIdHeader, this.requestId)
    else own[requestIdHeader] = this.requestId
    return typeof message === 'string' ? super.writeHead(status, message, own) : super.writeHead(status, own)
  }
}

/** Returns the id of the request that a response answers. */
export function getRequestId(response: ServerResponse): string {
  return response instanceof IdentifiedResponse ? response.requestId : createRequestId()
}
