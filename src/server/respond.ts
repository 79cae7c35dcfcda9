import { STATUS_CODES, type IncomingMessage, type ServerResponse } from 'node:http'
import { errnoOf } from '../lib/errors.ts'
import { OciError } from '../oci/errors.ts'
import type { Provenance } from '../oci/registry.ts'
import { securityHeaderLines } from './request-guard.ts'

/** The header of every registry response; every listener adds its security headers too (`SecureResponse`). */
export const commonHeaders = { 'docker-distribution-api-version': 'registry/2.0' } as const

/**
 * Response headers under construction. They are assigned one by one, because spreading objects makes several times the work for the
 * garbage collector of Node 20, and doubles the memory of the process.
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
  { registry, cacheStatus, outcome }: Provenance,
): void {
  if (registry !== undefined) headers['oci-namespace'] = registry
  if (cacheStatus !== undefined) headers['cache-status'] = cacheStatus
  if (outcome === 'stale') headers['warning'] = '299 - "This is what the mirror has; its upstream could not be asked."'
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
  }
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
  return `HTTP/1.1 ${error.status} ${STATUS_CODES[error.status]}\r\n${lines.join('')}${securityHeaderLines}\r\n${body}`
}

/** Checks whether a call failed because the process or the system has no file descriptor left. */
export function isOutOfDescriptors(error: unknown): boolean {
  const code = errnoOf(error)
  return code === 'EMFILE' || code === 'ENFILE'
}

/** Creates the 503 for a missing file descriptor. The client may retry soon. */
export function toOutOfDescriptorsError(): OciError {
  return new OciError('UNAVAILABLE', 503, 'The mirror has too many files open.', { 'retry-after': '1' })
}
