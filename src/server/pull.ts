import type { IncomingMessage, ServerResponse } from 'node:http'
import { toOciError } from '../cache/parts.ts'
import { clientBodies } from '../lib/body-memory.ts'
import { BudgetError, type Reservation, type ReserveOptions } from '../lib/memory.ts'
import { isManifestType, mediaType, mediaType as types } from '../oci/content.ts'
import { OciError } from '../oci/errors.ts'
import { type ByteRange, parseRange } from '../oci/headers.ts'
import type { ArrivingBlob, BlobResponse, ListResponse, ManifestResponse, Piece } from '../oci/registry.ts'
import { UpstreamError } from '../upstream/upstream.ts'
import type { ClientAbort } from './connection.ts'
import {
  addCommonHeaders,
  addProvenanceHeaders,
  createHeaders,
  type ResponseHeaders,
  matchesEtag,
  sendWhole,
} from './respond.ts'
import { type SendBlob, waitForTurn, writeChunk } from './send/send-blob.ts'

/** A body up to this size is sent at once, and its memory is not counted. */
const smallBytes = 64 * 1024
/** Bytes per write. */
const chunkBytes = 128 * 1024

export interface BlobSender {
  readonly sendBlob: SendBlob
  /** A client that accepts no bytes for so long is disconnected; ms. */
  readonly idle: number
}

/** Sends a blob or the requested part of it, from the disk or while it is downloaded. Returns the number of body bytes sent. */
export async function sendBlobAnswer(
  request: IncomingMessage,
  response: ServerResponse,
  answer: BlobResponse,
  sending: BlobSender,
  client: ClientAbort,
): Promise<number> {
  const { digest, size, body } = answer
  try {
    const headers = createHeaders(answer.provenance)
    headers['docker-content-digest'] = digest
    headers['etag'] = `"${digest}"`
    headers['accept-ranges'] = 'bytes'
    if (matchesEtag(request, `"${digest}"`)) {
      response.writeHead(304, headers).end()
      return 0
    }
    headers['content-type'] = mediaType.octetStream
    const range = size === undefined ? undefined : await parseRequestedRange(request, answer, size, client)
    if (range) headers['content-range'] = `bytes ${range.start}-${range.end}/${size}`
    const length = range ? range.end - range.start + 1 : size
    if (length !== undefined) headers['content-length'] = length
    const status = range ? 206 : 200

    if (body.kind === 'whole') {
      const whole = body.content.body
      return sendWhole(request, response, status, headers, range ? whole.slice(range.start, range.end + 1) : whole)
    }
    if (request.method === 'HEAD' || body.kind === 'none') {
      response.writeHead(status, headers).end()
      return 0
    }
    if (body.kind === 'arriving') {
      return await sendArriving(
        response,
        { status, headers, start: range?.start ?? 0, length },
        body.download,
        sending,
        client.signal,
      )
    }
    response.writeHead(status, headers)
    if (size !== undefined && size > 0)
      await sending.sendBlob(response, body.blob, range ?? { start: 0, end: size - 1 }, client.signal)
    response.end()
    return length ?? 0
  } finally {
    if (body.kind === 'stored') await body.blob.close()
  }
}

/**
 * Sends a blob while it is downloaded. The head waits for the first bytes that may be sent: a failure before that becomes an error
 * response; after it, the connection ends before its Content-Length, or before the last chunk. The end of every response, also of a
 * part, waits until the digest of the whole blob is verified (decision 0018).
 */
async function sendArriving(
  response: ServerResponse,
  head: { status: number; headers: ResponseHeaders; start: number; length: number | undefined },
  download: ArrivingBlob,
  sending: BlobSender,
  signal: AbortSignal,
): Promise<number> {
  // Sends everything or nothing to HTTP/1.0 clients, because a body of unknown length ends with its connection and always looks whole.
  const isAllOrNothing = head.length === undefined && !response.useChunkedEncodingByDefault
  const end = head.length === undefined ? undefined : head.start + head.length
  const follower = download.follow(head.start, { end, isAllOrNothing })
  let sent = 0
  try {
    // Runs for an empty blob too, because its digest must be verified before the response.
    for (let left = head.length ?? Infinity; left > 0 || !response.headersSent;) {
      const piece = await follower.next(signal)
      if (!response.headersSent) {
        if (isAllOrNothing) head.headers['content-length'] = left = download.size!
        response.writeHead(head.status, head.headers)
      }
      if (!piece) break
      const count = Math.min(left, pieceSize(piece))
      if (count > 0) await sendPiece(response, piece, count, sending, signal)
      left -= count
      sent += count
    }
    if (head.length !== undefined && sent < head.length) throw new Error('a body ended before its announced length')
    response.end()
    return sent
  } catch (error) {
    throw error instanceof UpstreamError
      ? toOciError(error, String(head.headers['oci-namespace']), 'BLOB_UNKNOWN')
      : error
  } finally {
    follower.close()
  }
}

async function waitUntilVerified(
  download: ArrivingBlob,
  size: number,
  signal: AbortSignal,
  registry: string,
): Promise<void> {
  const follower = download.follow(size, { end: size, isAllOrNothing: true })
  try {
    await follower.next(signal)
  } catch (error) {
    throw error instanceof UpstreamError ? toOciError(error, registry, 'BLOB_UNKNOWN') : error
  } finally {
    follower.close()
  }
}

function pieceSize(piece: Piece): number {
  return piece.kind === 'file' ? piece.range.end + 1 - piece.range.start : piece.bytes.length
}

/** Sends the first bytes of a piece. */
async function sendPiece(
  response: ServerResponse,
  piece: Piece,
  count: number,
  sending: BlobSender,
  signal: AbortSignal,
): Promise<void> {
  if (piece.kind === 'memory')
    return writeChunk(response, piece.bytes.subarray(0, count), { signal, idle: sending.idle })
  const { start } = piece.range
  return sending.sendBlob(response, piece.file, { start, end: start + count - 1 }, signal)
}

/** Returns the requested part; undefined for the whole. Throws an OciError 416. RFC 9110 §14: Range applies to GET only. */
async function parseRequestedRange(
  request: IncomingMessage,
  { digest, provenance, body }: BlobResponse,
  size: number,
  client: ClientAbort,
): Promise<ByteRange | undefined> {
  if (request.method !== 'GET') return undefined
  const condition = request.headers['if-range']
  if (condition !== undefined && condition !== `"${digest}"`) return undefined
  const range = parseRange(request.headers.range, size)
  if (range !== 'unsatisfiable') return range
  // Waits for the digest, because until then only the upstream vouches for the size of a blob that is being downloaded.
  if (body.kind === 'arriving') await waitUntilVerified(body.download, size, client.signal, String(provenance.registry))
  const headers: Record<string, string> = { 'content-range': `bytes */${size}` }
  addProvenanceHeaders(headers, provenance)
  throw new OciError('SIZE_INVALID', 416, `The blob has ${size} bytes.`, headers)
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

/** Bytes of the bodies that wait for a reservation. They are limited, because they are in memory already. */
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
