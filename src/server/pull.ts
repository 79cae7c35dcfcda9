import type { IncomingMessage, ServerResponse } from 'node:http'
import type { Download } from '../cache/download.ts'
import type { Piece } from '../cache/followers.ts'
import { toOciError } from '../cache/parts.ts'
import { mediaType } from '../oci/content.ts'
import { OciError } from '../oci/errors.ts'
import { type ByteRange, parseRange } from '../oci/headers.ts'
import type { BlobAnswer } from '../oci/registry.ts'
import { UpstreamError } from '../upstream/upstream.ts'
import type { ClientDeparture } from './client-departure.ts'
import { addProvenance, answerHeaders, type Headers, matchesEtag, sendWhole } from './respond.ts'
import { type SendBlob, writeChunk } from './send/send-blob.ts'

export interface BlobSending {
  readonly sendBlob: SendBlob
  /** A client that takes nothing for so long is cut off; ms. */
  readonly idle: number
}

/** Sends a blob, or the part of it that was asked for, from the disk or along with its arrival. Returns the body bytes that left. */
export async function sendBlobAnswer(
  request: IncomingMessage,
  response: ServerResponse,
  answer: BlobAnswer,
  sending: BlobSending,
  client: ClientDeparture,
): Promise<number> {
  const { digest, size, body } = answer
  try {
    const headers = answerHeaders(answer.provenance)
    headers['docker-content-digest'] = digest
    headers['etag'] = `"${digest}"`
    headers['accept-ranges'] = 'bytes'
    if (matchesEtag(request, `"${digest}"`)) {
      response.writeHead(304, headers).end()
      return 0
    }
    headers['content-type'] = mediaType.octetStream
    const range = size === undefined ? undefined : await requestedRange(request, answer, size, client)
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
 * Follows a download. The head waits for the first bytes that may leave: a blob that turns out wrong before that becomes an
 * error the client can read; after it, the connection is cut short of its Content-Length, or of the last chunk. The end of
 * every answer, of a part too, waits until the digest of the whole blob agrees (decision 0018).
 */
async function sendArriving(
  response: ServerResponse,
  head: { status: number; headers: Headers; start: number; length: number | undefined },
  download: Download,
  sending: BlobSending,
  signal: AbortSignal,
): Promise<number> {
  // A body that ends with its connection is whole wherever it ends: HTTP/1.0 has no other for one of unknown length.
  const isAllOrNothing = head.length === undefined && !response.useChunkedEncodingByDefault
  const end = head.length === undefined ? undefined : head.start + head.length
  const follower = download.follow(head.start, { end, isAllOrNothing })
  let sent = 0
  try {
    // Also of an empty blob the digest must be right before it is given away.
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

async function untilVerified(download: Download, size: number, signal: AbortSignal, registry: string): Promise<void> {
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
  sending: BlobSending,
  signal: AbortSignal,
): Promise<void> {
  if (piece.kind === 'memory')
    return writeChunk(response, piece.bytes.subarray(0, count), { signal, idle: sending.idle })
  const { start } = piece.range
  return sending.sendBlob(response, piece.file, { start, end: start + count - 1 }, signal)
}

/** The part asked for; undefined for the whole. Throws 416. RFC 9110 §14: Range means something for GET only. */
async function requestedRange(
  request: IncomingMessage,
  { digest, provenance, body }: BlobAnswer,
  size: number,
  client: ClientDeparture,
): Promise<ByteRange | undefined> {
  if (request.method !== 'GET') return undefined
  const condition = request.headers['if-range']
  if (condition !== undefined && condition !== `"${digest}"`) return undefined
  const range = parseRange(request.headers.range, size)
  if (range !== 'unsatisfiable') return range
  // The size of a blob that arrives is the upstream's word until the digest agrees.
  if (body.kind === 'arriving') await untilVerified(body.download, size, client.signal, String(provenance.registry))
  const headers: Record<string, string> = { 'content-range': `bytes */${size}` }
  addProvenance(headers, provenance)
  throw new OciError('SIZE_INVALID', 416, `The blob has ${size} bytes.`, headers)
}
