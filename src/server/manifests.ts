import type { IncomingMessage, ServerResponse } from 'node:http'
import { OciError } from '../oci/errors.ts'
import { isManifestType, mediaType as types } from '../oci/content.ts'
import type { ManifestAnswer } from '../oci/registry.ts'
import type { BlobSending } from './pull.ts'
import type { ClientDeparture } from './client-departure.ts'
import { answerHeaders, matchesEtag } from './respond.ts'
import { sendLarge } from './send-large.ts'

/**
 * Sends a manifest: the stored bytes with the stored type, whatever `Accept` says, for another form has another digest.
 * Returns the body bytes that left.
 */
export async function sendManifest(
  request: IncomingMessage,
  response: ServerResponse,
  answer: ManifestAnswer,
  sending: BlobSending,
  client: ClientDeparture,
): Promise<number> {
  const { digest, mediaType, size, body, stored, provenance } = answer
  const headers = answerHeaders(provenance)
  if (digest) {
    headers['docker-content-digest'] = digest
    headers['etag'] = `"${digest}"`
    if (matchesEtag(request, `"${digest}"`)) {
      response.writeHead(304, headers).end()
      return 0
    }
  }
  // What an earlier version has kept, or a HEAD was told, may be any text.
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
