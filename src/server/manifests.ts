import type { IncomingMessage, ServerResponse } from 'node:http'
import type { ManifestAnswer } from '../registry/registry.ts'
import { commonHeaders, matchesEtag, provenanceHeaders, sendWhole } from './respond.ts'

/**
 * Sends a manifest: the stored bytes with the stored type, whatever `Accept` says, for another form has another digest.
 * Returns the body bytes that left.
 */
export function sendManifest(request: IncomingMessage, response: ServerResponse, answer: ManifestAnswer): number {
  const { digest, mediaType, size, body, provenance } = answer
  const etag = digest && `"${digest}"`
  const headers = {
    ...provenanceHeaders(provenance),
    ...(digest ? { 'docker-content-digest': digest, etag: `"${digest}"` } : {}),
  }
  if (etag && matchesEtag(request, etag)) {
    response.writeHead(304, { ...commonHeaders, ...headers }).end()
    return 0
  }
  if (body) return sendWhole(request, response, 200, { ...headers, 'content-type': mediaType }, body)
  const length = size === undefined ? {} : { 'content-length': size }
  response.writeHead(200, { ...commonHeaders, ...headers, 'content-type': mediaType, ...length }).end()
  return 0
}
