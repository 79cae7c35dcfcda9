import type { IncomingMessage, ServerResponse } from 'node:http'
import { toOciError } from '../cache/grants.ts'
import { mediaType } from '../oci/content.ts'
import { OciError } from '../oci/errors.ts'
import type { ByteRange } from '../oci/headers.ts'
import type { ArrivingBlob, BlobResponse, Piece } from '../oci/registry.ts'
import { UpstreamError } from '../upstream/upstream.ts'
import type { ClientAbort } from './connection.ts'
import { addProvenanceHeaders, createHeaders, matchesEtag, type ResponseHeaders, sendWhole } from './respond.ts'
import { type BlobSender, writeChunk } from './send/send-blob.ts'

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
      const count = Math.min(left, getPieceSize(piece))
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

function getPieceSize(piece: Piece): number {
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
 * Parses a `Range` header for a body of `size` bytes. `undefined`: send the whole body, because there is no header, its unit is not
 * bytes, it has several ranges, or its syntax is wrong; RFC 9110 §14.2 lets a server ignore these. `unsatisfiable`: respond 416.
 */
export function parseRange(header: string | undefined, size: number): ByteRange | 'unsatisfiable' | undefined {
  if (header === undefined) return undefined
  const match = /^bytes=(\d*)-(\d*)$/.exec(header.replaceAll(' ', ''))
  if (!match) return undefined
  const [, first, last] = match
  if (first === '' && last === '') return undefined
  if (first === '') {
    const length = Math.min(Number(last), size)
    return length === 0 ? 'unsatisfiable' : { start: size - length, end: size - 1 }
  }
  const start = Number(first)
  const end = last === '' ? size - 1 : Math.min(Number(last), size - 1)
  return start >= size || (last !== '' && Number(last) < start) ? 'unsatisfiable' : { start, end }
}
