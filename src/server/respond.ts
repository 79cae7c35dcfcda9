import { STATUS_CODES, type IncomingMessage, type ServerResponse } from 'node:http'
import { clientBodies } from '../lib/body-memory.ts'
import { getErrno } from '../lib/errors.ts'
import { BudgetError, type Reservation, type ReserveOptions } from '../lib/memory.ts'
import { isManifestType, mediaType as types } from '../oci/content.ts'
import { OciError } from '../oci/errors.ts'
import type { ListResponse, ManifestResponse, Provenance } from '../oci/registry.ts'
import type { ClientAbort } from './connection.ts'
import { securityHeaderLines } from './request-guard.ts'
import { createRequestId, requestIdHeader } from './request-id.ts'
import { type BlobSender, waitForTurn, writeChunk } from './send/send-blob.ts'
import { formatWarning } from './warning.ts'

/** Holds the header of every registry response; every listener adds its security headers too (`SecureResponse`). */
export const commonHeaders = { 'docker-distribution-api-version': 'registry/2.0' } as const

/** Limits the size of a body that is sent at once, and whose memory is not counted. */
const smallBytes = 64 * 1024
/** Bytes per write. */
const chunkBytes = 128 * 1024

/**
 * Holds response headers under construction. They are assigned one by one, because spreading objects makes several times the work
 * for the garbage collector of Node 20, and doubles the memory of the process.
 */
export type ResponseHeaders = Record<string, string | number>

/** Creates the headers of a response: the common ones and those that describe its provenance. */
export function createHeaders(provenance: Provenance): ResponseHeaders {
  const headers: ResponseHeaders = {}
  addCommonHeaders(headers)
  addProvenanceHeaders(headers, provenance)
  return headers
}

/** Adds the header of every registry response. */
export function addCommonHeaders(headers: ResponseHeaders): void {
  headers['docker-distribution-api-version'] = commonHeaders['docker-distribution-api-version']
}

/**
 * Adds the headers that describe where a response came from.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#warnings
 */
export function addProvenanceHeaders(
  headers: Record<string, string> | ResponseHeaders,
  { registry, cacheStatus, warning }: Provenance,
): void {
  if (registry !== undefined) headers['oci-namespace'] = registry
  if (cacheStatus !== undefined) headers['cache-status'] = cacheStatus
  if (warning !== undefined) headers['warning'] = formatWarning(warning)
}

/** Checks whether the client has this content already. RFC 9110 §13.1.2. */
export function matchesEtag(request: IncomingMessage, etag: string): boolean {
  const header = request.headers['if-none-match']
  if (header === undefined) return false
  return header.split(',').some((tag) => tag.trim() === '*' || tag.trim().replace(/^W\//, '') === etag)
}

/**
 * Ends a response with a whole body; a HEAD gets the head only. A string is sent as Latin-1, one byte per character. Completes `headers`.
 * Returns the number of body bytes sent.
 */
export function sendWhole(
  request: IncomingMessage,
  response: ServerResponse,
  status: number,
  headers: ResponseHeaders,
  body: Uint8Array | string,
): number {
  addCommonHeaders(headers)
  headers['content-length'] = body.length
  response.writeHead(status, headers)
  if (request.method === 'HEAD') {
    response.end()
    return 0
  }
  if (typeof body === 'string') response.end(body, 'latin1')
  else response.end(body)
  return body.length
}

/**
 * Sends a manifest: the stored bytes with the stored type, whatever `Accept` says, because another form would have another digest.
 * Returns the number of body bytes sent.
 */
export async function sendManifest(
  request: IncomingMessage,
  response: ServerResponse,
  answer: ManifestResponse,
  sending: BlobSender,
  client: ClientAbort,
): Promise<number> {
  const { digest, mediaType, size, body, stored, provenance } = answer
  const headers = createHeaders(provenance)
  if (digest) {
    headers['docker-content-digest'] = digest
    headers['etag'] = `"${digest}"`
    if (matchesEtag(request, `"${digest}"`)) {
      response.writeHead(304, headers).end()
      return 0
    }
  }
  // Checks the type, because a record of an earlier version or an upstream's HEAD may have any text.
  headers['content-type'] = isManifestType(mediaType) ? mediaType : types.octetStream
  if (body) return sendLarge(request, response, headers, body.body, { idle: sending.idle, client })
  if (size !== undefined) headers['content-length'] = size
  if (!stored || request.method === 'HEAD') {
    response.writeHead(200, headers).end()
    return 0
  }
  const blob = await stored.open()
  if (!blob) throw new OciError('UNAVAILABLE', 503, 'The manifest has just been removed.', { 'retry-after': '1' })
  try {
    response.writeHead(200, headers)
    await sending.sendBlob(response, blob, { start: 0, end: blob.size - 1 }, client.signal)
    response.end()
    return blob.size
  } finally {
    await blob.close()
  }
}

/** Sends a list. The link to the next page has the path of the request, which may name the upstream in several ways. */
export function sendList(
  request: IncomingMessage,
  response: ServerResponse,
  answer: ListResponse,
  sending: { readonly idle: number; readonly client: ClientAbort },
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
      ...createHeaders(answer.provenance),
      'content-type': answer.contentType,
      ...(answer.next === undefined ? {} : { link: `<${path}?${answer.next}${namespace}>; rel="next"` }),
      ...(answer.filtersApplied === undefined ? {} : { 'oci-filters-applied': answer.filtersApplied }),
    },
    answer.bytes,
    sending,
  )
}

/**
 * Ends a response with a whole body, at the client's pace. A large body reserves memory of the budget for bodies until it is sent. A
 * client that is too slow while others wait for that memory is disconnected, and so is one that accepts no bytes for `idle` ms.
 * Returns the number of body bytes sent. Throws a BudgetError before anything is sent.
 */
export async function sendLarge(
  request: IncomingMessage,
  response: ServerResponse,
  headers: ResponseHeaders,
  body: Uint8Array | string,
  { idle, client }: { readonly idle: number; readonly client: ClientAbort },
): Promise<number> {
  if (typeof body === 'string' || body.length <= smallBytes || request.method === 'HEAD')
    return sendWhole(request, response, 200, headers, body)
  const { signal } = client
  const reservation = await reserveFor(body.length, { signal, evict: () => response.destroy() })
  try {
    addCommonHeaders(headers)
    headers['content-length'] = body.length
    response.writeHead(200, headers)
    await waitForTurn(response, signal)
    for (let at = 0; at < body.length; at += chunkBytes) {
      const chunk = body.subarray(at, at + chunkBytes)
      await writeChunk(response, chunk, { signal, idle })
      reservation.progress(chunk.length)
    }
    response.end()
    return body.length
  } finally {
    reservation.release()
  }
}

/** Counts the bytes of the bodies that wait for a reservation. They are limited, because they are in memory already. */
let waitingBytes = 0

/** Reserves memory of the budget. Throws a BudgetError at once while bodies of the budget's size are waiting. */
async function reserveFor(bytes: number, options: ReserveOptions): Promise<Reservation> {
  if (waitingBytes > 0 && waitingBytes + bytes > clientBodies.bytes) throw new BudgetError()
  waitingBytes += bytes
  try {
    return await clientBodies.reserve(bytes, options)
  } finally {
    waitingBytes -= bytes
  }
}

/** Ends a response without a body. */
export function sendEmpty(response: ServerResponse, status: number, headers: Record<string, string>): void {
  // A 204 has no body by definition, and must not have a length.
  const length = status === 204 ? {} : { 'content-length': 0 }
  response.writeHead(status, { ...commonHeaders, ...headers, ...length }).end()
}

/** Ends a response with the specification's JSON error body; destroys a response whose head is sent already. */
export function sendError(request: IncomingMessage, response: ServerResponse, error: OciError): void {
  if (response.headersSent) {
    response.destroy()
    return
  }
  const headers = { ...error.headers, 'content-type': 'application/json' }
  sendWhole(request, response, error.status, headers, Buffer.from(error.body()))
}

/** Formats an error as a complete HTTP response, for a socket without a response object. The connection ends with it. */
export function formatErrorResponse(error: OciError, { isHead = false }: { readonly isHead?: boolean } = {}): string {
  const body = isHead ? '' : error.body()
  const headers = {
    ...error.headers,
    'content-type': 'application/json',
    'content-length': Buffer.byteLength(body),
    connection: 'close',
    [requestIdHeader]: createRequestId(),
  }
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
  return `HTTP/1.1 ${error.status} ${STATUS_CODES[error.status]}\r\n${lines.join('')}${securityHeaderLines}\r\n${body}`
}

/** Checks whether a call failed because the process or the system has no file descriptor left. */
export function isOutOfDescriptors(error: unknown): boolean {
  const code = getErrno(error)
  return code === 'EMFILE' || code === 'ENFILE'
}

/** Creates the 503 for a missing file descriptor. The client may retry soon. */
export function toOutOfDescriptorsError(): OciError {
  return new OciError('UNAVAILABLE', 503, 'The mirror has too many files open.', { 'retry-after': '1' })
}
