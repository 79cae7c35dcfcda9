import { OciError, type OciErrorCode } from '../oci/errors.ts'
import { formatUpstreamSetting } from '../oci/reference.ts'
import type { Repository } from '../oci/route.ts'
import type { UpstreamError } from '../upstream/upstream.ts'

/**
 * Maps an upstream's failure to the client's error; `absent` is the code of a 404. An outage is never a 404, because clients
 * take that for "does not exist". 401 and 403 carry no challenge, so that clients try the origin with their own credentials.
 */
export function toOciError(error: UpstreamError, registry: string, absent: OciErrorCode): OciError {
  const headers: Record<string, string> = {
    'oci-namespace': registry,
    'cache-status': `mirror; fwd=miss; fwd-status=${error.status}`,
  }
  if (error.retryAfterSeconds !== undefined)
    headers['retry-after'] = String(Math.max(1, Math.ceil(error.retryAfterSeconds)))
  switch (error.failure) {
    case 'absent':
      return new OciError(absent, 404, error.message, headers)
    case 'denied':
      // Clients know these two statuses best; `Cache-Status` has the upstream's own.
      return error.status === 401
        ? new OciError('UNAUTHORIZED', 401, error.message, headers)
        : new OciError('DENIED', 403, error.message, headers)
    case 'limited':
      return new OciError('TOOMANYREQUESTS', 429, error.message, { 'retry-after': '60', ...headers })
    case 'unavailable':
      return new OciError(
        'UNAVAILABLE',
        [502, 503, 504].includes(error.status) ? error.status : 502,
        error.message,
        headers,
      )
    case 'invalid':
      return new OciError('UNKNOWN', 502, error.message, headers)
  }
}

/** Creates the 404 for a registry that is not mirrored. */
export function toUnknownRegistryError({ registry, name }: Repository): OciError {
  const host = registry ?? 'the default upstream'
  return new OciError(
    'NAME_UNKNOWN',
    404,
    `${host} is not mirrored (requested: ${name}). To mirror it, add "${formatUpstreamSetting(host)}" to mirror.yaml.`,
  )
}
