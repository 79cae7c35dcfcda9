import type { IncomingMessage, ServerResponse } from 'node:http'
import { isManifestType, mediaType as types } from '../oci/media-types.ts'
import type { ManifestAnswer } from '../registry/registry.ts'
import { answerHeaders, matchesEtag, sendWhole } from './respond.ts'

/**
 * Sends a manifest: the stored bytes with the stored type, whatever `Accept` says, for another form has another digest.
 * Returns the body bytes that left.
 */
export function sendManifest(request: IncomingMessage, response: ServerResponse, answer: ManifestAnswer): number {
  const { digest, mediaType, size, body, provenance } = answer
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
  if (body) return sendWhole(request, response, 200, headers, body.body)
  if (size !== undefined) headers['content-length'] = size
  response.writeHead(200, headers).end()
  return 0
}
