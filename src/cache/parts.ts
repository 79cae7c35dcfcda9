import type { Slots } from '../lib/async.ts'
import type { BufferRelease } from '../lib/body-memory.ts'
import { errnoOf } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import type { Digest } from '../oci/digest.ts'
import { OciError, type OciErrorCode } from '../oci/errors.ts'
import { upstreamSetting } from '../oci/reference.ts'
import type { Provenance } from '../oci/registry.ts'
import type { Repository } from '../oci/route.ts'
import type { BlobStore } from '../store/blob-store.ts'
import type { HashPool } from '../store/hashing.ts'
import type { RefStore } from '../store/records.ts'
import type { UpstreamError } from '../upstream/upstream.ts'
import type { RangePolicy } from './download.ts'
import type { Stats } from './stats.ts'

/** What the caches of manifests and blobs stand on. */
export interface CacheDependencies {
  readonly blobs: BlobStore
  readonly refs: RefStore
  /** How large blobs are fetched. */
  readonly ranges: RangePolicy
  readonly hashes: Pick<HashPool, 'follow'>
  readonly release: BufferRelease
  /** Fetches of blobs under way: each holds a file open, and connections. */
  readonly fills: Slots
  /** Bytes at most of a blob whose size nobody has said. */
  readonly mostUnsized: number
  readonly stats: Stats
  /** Running time in ms, for eviction. */
  readonly runningTime: () => number
  /** Frees disk space; resolves when what could be done was done. */
  readonly makeRoom: (bytes: number) => Promise<void>
  /** Called when something new was stored. */
  readonly onStored: () => void
  readonly logger: Logger
}

type Publishing = Pick<CacheDependencies, 'blobs' | 'makeRoom' | 'onStored' | 'logger'>

/** Keeps a manifest or a list. A disk that takes no more costs the next client a question, and this one nothing. */
export async function publishSmall(parts: Publishing, digest: Digest, bytes: Uint8Array<ArrayBuffer>): Promise<void> {
  for (const lastTry of [false, true]) {
    try {
      await parts.blobs.put(digest, bytes)
      return parts.onStored()
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
      parts.logger.warn({ digest, error: String(error) }, 'the disk takes no manifest')
      if (!lastTry) await parts.makeRoom(bytes.length)
    }
  }
}

const cacheStatuses: Record<Provenance['outcome'], string | undefined> = {
  hit: 'mirror; hit',
  revalidated: 'mirror; hit; fwd=stale; fwd-status=200',
  stale: 'mirror; hit; detail=stale-on-error',
  miss: 'mirror; fwd=miss; stored',
  collapsed: 'mirror; fwd=miss; collapsed',
  passed: 'mirror; fwd=miss; fwd-status=200',
  own: undefined,
}

/** Where an answer came from, in RFC 9211's words. */
export function toProvenance(registry: string, outcome: Provenance['outcome']): Provenance {
  return { registry, outcome, cacheStatus: cacheStatuses[outcome] }
}

/**
 * What a client is told when an upstream did not deliver. An outage is never a 404: clients take that for "does not exist".
 * 401 and 403 come without a challenge, so that clients go to the origin with their own credentials.
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
      // Of all refusals clients know these two best; `Cache-Status` has the upstream's own.
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

/** What a client is told of a registry that may not be asked. */
export function toUnknownRegistryError({ registry, name }: Repository): OciError {
  const host = registry ?? 'the default upstream'
  return new OciError(
    'NAME_UNKNOWN',
    404,
    `${host} is not mirrored (asked for ${name}). To mirror it, add "${upstreamSetting(host)}" to mirror.yaml.`,
  )
}
