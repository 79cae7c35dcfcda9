import type { Slots } from '../lib/async.ts'
import type { BufferRelease } from '../lib/body-memory.ts'
import type { Logger } from '../lib/logger.ts'
import { OciError, type OciErrorCode } from '../oci/errors.ts'
import { upstreamSetting } from '../oci/reference.ts'
import type { Repository } from '../oci/route.ts'
import type { BlobStore } from '../store/blob-store.ts'
import type { HashPool } from '../store/hashing.ts'
import type { RefStore } from '../store/records.ts'
import type { UpstreamError } from '../upstream/upstream.ts'
import type { RangePolicy } from './download.ts'
import type { Stats } from './stats.ts'

/** The dependencies that the caches of manifests, blobs and referrers share. */
export interface CacheDependencies {
  readonly blobs: BlobStore
  readonly refs: RefStore
  /** When a blob is fetched over several connections. */
  readonly ranges: RangePolicy
  readonly hashes: Pick<HashPool, 'follow'>
  readonly release: BufferRelease
  /** Slots for downloads: each has a file and connections open. */
  readonly downloadSlots: Slots
  /** Maximum bytes of a blob whose size is unknown. */
  readonly maxUnsizedBytes: number
  readonly stats: Stats
  /** Running time in ms, for eviction. */
  readonly runningTime: () => number
  /** Tries to free so many bytes on the disk; resolves when it cannot free more. */
  readonly makeRoom: (bytes: number) => Promise<void>
  /** Called after content was stored. */
  readonly onStored: () => void
  readonly logger: Logger
}

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

/** The error for a registry that is not mirrored. */
export function toUnknownRegistryError({ registry, name }: Repository): OciError {
  const host = registry ?? 'the default upstream'
  return new OciError(
    'NAME_UNKNOWN',
    404,
    `${host} is not mirrored (requested: ${name}). To mirror it, add "${upstreamSetting(host)}" to mirror.yaml.`,
  )
}
