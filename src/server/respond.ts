import { STATUS_CODES, type IncomingMessage, type ServerResponse } from 'node:http'
import { errnoOf } from '../lib/errors.ts'
import { OciError } from '../oci/errors.ts'
import type { Provenance } from '../oci/registry.ts'
import { securityHeaderLines } from './request-guard.ts'

/** What every answer of a registry carries, besides what every answer of a listener does (security-headers.ts). */
export const commonHeaders = { 'docker-distribution-api-version': 'registry/2.0' } as const

/**
 * Headers in the making. They are assigned one by one: spreading objects leaves the collector of Node 20 several times the work,
 * and the process twice the memory.
 */
export type ResponseHeaders = Record<string, string | number>

/** The headers of every answer, and those that say where this one came from. */
export function createHeaders(provenance: Provenance): ResponseHeaders {
  const headers: ResponseHeaders = {}
  addCommonHeaders(headers)
  addProvenanceHeaders(headers, provenance)
  return headers
}

/** Adds what every answer carries. */
export function addCommonHeaders(headers: ResponseHeaders): void {
  headers['docker-distribution-api-version'] = commonHeaders['docker-distribution-api-version']
}

/**
 * Adds the headers that say where an answer came from.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#warnings
 */
export function addProvenanceHeaders(
  headers: Record<string, string> | ResponseHeaders,
  { registry, cacheStatus, outcome }: Provenance,
): void {
  if (registry !== undefined) headers['oci-namespace'] = registry
  if (cacheStatus !== undefined) headers['cache-status'] = cacheStatus
  if (outcome === 'stale') headers['warning'] = '299 - "This is what the mirror has; its upstream could not be asked."'
}

/** Whether the client holds this content already. RFC 9110 §13.1.2. */
export function matchesEtag(request: IncomingMessage, etag: string): boolean {
  const header = request.headers['if-none-match']
  if (header === undefined) return false
  return header.split(',').some((tag) => tag.trim() === '*' || tag.trim().replace(/^W\//, '') === etag)
}

/**
 * Ends a response with a whole body, of which a string has a character for each byte; a HEAD gets its head only. `headers` is
 * completed. Returns the body bytes that left.
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

/** Ends a response that says everything in its head. */
export function sendEmpty(response: ServerResponse, status: number, headers: Record<string, string>): void {
  // A 204 has no body by definition, and must not give a length.
  const length = status === 204 ? {} : { 'content-length': 0 }
  response.writeHead(status, { ...commonHeaders, ...headers, ...length }).end()
}

/** Answers with the specification's JSON error body; a response that has begun can only be cut. */
export function sendError(request: IncomingMessage, response: ServerResponse, error: OciError): void {
  if (response.headersSent) {
    response.destroy()
    return
  }
  const headers = { ...error.headers, 'content-type': 'application/json' }
  sendWhole(request, response, error.status, headers, Buffer.from(error.body()))
}

/** An answer with an error as text, for a socket without a response. The connection ends with it. */
export function formatErrorResponse(error: OciError, { isHead = false }: { readonly isHead?: boolean } = {}): string {
  const body = isHead ? '' : error.body()
  const headers = {
    ...error.headers,
    'content-type': 'application/json',
    'content-length': Buffer.byteLength(body),
    connection: 'close',
  }
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
  return `HTTP/1.1 ${error.status} ${STATUS_CODES[error.status]}\r\n${lines.join('')}${securityHeaderLines}\r\n${body}`
}

/** Whether a call failed because the process, or the system, has as many files open as it may. */
export function isOutOfDescriptors(error: unknown): boolean {
  const code = errnoOf(error)
  return code === 'EMFILE' || code === 'ENFILE'
}

/** What a client is told then: it is over in a moment. */
export function outOfDescriptors(): OciError {
  return new OciError('UNAVAILABLE', 503, 'The mirror has as many files open as it may.', { 'retry-after': '1' })
}
