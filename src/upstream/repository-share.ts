import { Slots } from '../lib/async.ts'
import type { ConnectionPool } from './undici.ts'
import { UpstreamError } from './upstream.ts'

/** Returns the slots of a request. */
export type Release = () => void

/** Bounds the concurrent requests of each repository. */
interface RepositoryShare {
  /** Waits for a slot. Throws an UpstreamError (503) when none is free in time, or the signal's reason. */
  enter(request: ShareRequest): Promise<Release>
  /** Records progress of a body, so that blobs behind it keep waiting. */
  recordBytes(request: ShareRequest, bytes: number): void
}

interface ShareRequest {
  readonly repository?: string | undefined
  readonly pool: ConnectionPool
  readonly signal?: AbortSignal | undefined
}

interface RepositoryShareOptions {
  /** The upstream's name; also the owner of its slots. */
  readonly host: string
  /** Maximum wait of a metadata request for a slot, ms. */
  readonly maxWaitMs: number
  /** Maximum wait of a blob while the blobs before it make no progress, ms. */
  readonly maxBlobWaitMs: number
  /** Requests of all upstreams together, because each holds a connection. No upstream gets all of them. */
  readonly requests: Slots
  /** Connections to one origin, per pool. */
  readonly connections: number
}

/**
 * Bounds the concurrent requests of an upstream and of each of its repositories, so that one that hangs cannot occupy all
 * connections. An upstream gets at most half of them (see `Slots`). A repository gets a quarter of its upstream's share for metadata,
 * and three quarters for blobs, because a pull fetches many.
 */
export function createRepositoryShare(options: RepositoryShareOptions): RepositoryShare {
  const { host, requests, connections } = options
  const getLimit = (pool: ConnectionPool) => {
    const part = pool === 'metadata' ? 1 / 4 : 3 / 4
    return Math.max(1, Math.floor(Math.min(connections, requests.maxPerOwner) * part))
  }
  /** Slots by pool and repository. */
  const shares = new Map<string, Slots>()

  const take = (slots: Slots, { pool, signal }: ShareRequest, owner?: string) =>
    pool === 'blobs'
      ? slots.take(Math.max(options.maxWaitMs, options.maxBlobWaitMs), { signal, owner, extendOnProgress: true })
      : slots.take(options.maxWaitMs, { signal, owner })

  async function enterShare(key: string, request: ShareRequest): Promise<Release> {
    const slots = shares.get(key) ?? new Slots(getLimit(request.pool))
    shares.set(key, slots)
    const release = await take(slots, request)
    if (!release) throw tooManyRequests(`Too many requests for this repository are waiting for ${host}.`)
    return () => {
      release()
      if (slots.isUnused && shares.get(key) === slots) shares.delete(key)
    }
  }

  return {
    async enter(request) {
      const key = keyOf(request)
      const leaveShare = key === undefined ? undefined : await enterShare(key, request)
      try {
        const leave = await take(requests, request, host)
        if (!leave) throw tooManyRequests(`Too many requests to ${host} are under way.`)
        return () => {
          leave()
          leaveShare?.()
        }
      } catch (error) {
        leaveShare?.()
        throw error
      }
    },
    recordBytes(request, bytes) {
      const key = keyOf(request)
      if (key !== undefined) shares.get(key)?.recordProgress(bytes)
      requests.recordProgress(bytes, host)
    },
  }
}

function keyOf({ repository, pool }: ShareRequest): string | undefined {
  return repository && `${pool} ${repository}`
}

function tooManyRequests(message: string): UpstreamError {
  return new UpstreamError('unavailable', 503, message, { retryAfterSeconds: 1 })
}
