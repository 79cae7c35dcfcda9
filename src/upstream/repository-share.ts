import { Slots } from '../lib/async.ts'
import type { ConnectionPool } from './undici.ts'
import { UpstreamError } from './upstream.ts'

/** Gives back what a request held. */
export type Release = () => void

/** Whose turn it is to ask an upstream. */
interface RepositoryShare {
  /** Waits for a turn. Throws an UpstreamError (503) when none comes in time, or the signal's reason. */
  enter(request: ShareRequest): Promise<Release>
  /** Notes bytes of a body, so that blobs that wait behind it wait on. */
  recordBytes(request: ShareRequest, bytes: number): void
}

interface ShareRequest {
  readonly repository?: string | undefined
  readonly pool: ConnectionPool
  readonly signal?: AbortSignal | undefined
}

interface RepositoryShareOptions {
  /** The upstream's name, which is also the one that its slots are counted for. */
  readonly host: string
  /** How long a question waits for its turn, ms. */
  readonly maxWaitMs: number
  /** How long a blob waits in which nothing comes of those before it, ms. */
  readonly maxBlobWaitMs: number
  /** Requests of all upstreams together: each holds a connection. No upstream gets all of them. */
  readonly requests: Slots
  /** Connections to one origin, of each pool. */
  readonly connections: number
}

/**
 * Bounds how many requests an upstream, and each of its repositories, has under way, so that one that hangs cannot hold all
 * connections. An upstream gets at most half of them (see `Slots`). A repository gets a quarter of its upstream's for questions,
 * and three quarters for blobs, of which a pull uses many.
 */
export function createRepositoryShare(options: RepositoryShareOptions): RepositoryShare {
  const { host, requests, connections } = options
  const getLimit = (pool: ConnectionPool) => {
    const part = pool === 'metadata' ? 1 / 4 : 3 / 4
    return Math.max(1, Math.floor(Math.min(connections, requests.mostOfOne) * part))
  }
  /** By pool and repository. */
  const shares = new Map<string, Slots>()

  const take = (slots: Slots, { pool, signal }: ShareRequest, owner?: string) =>
    pool === 'blobs'
      ? slots.take(Math.max(options.maxWaitMs, options.maxBlobWaitMs), { signal, owner, whileMoving: true })
      : slots.take(options.maxWaitMs, { signal, owner })

  async function enterShare(key: string, request: ShareRequest): Promise<Release> {
    const slots = shares.get(key) ?? new Slots(getLimit(request.pool))
    shares.set(key, slots)
    const release = await take(slots, request)
    if (!release) throw tooManyRequests(`As many requests for this repository as may be at a time wait for ${host}.`)
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
        if (!leave) throw tooManyRequests(`As many requests to ${host} are under way as may be at a time.`)
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
      if (key !== undefined) shares.get(key)?.moved(bytes)
      requests.moved(bytes, host)
    },
  }
}

function keyOf({ repository, pool }: ShareRequest): string | undefined {
  return repository && `${pool} ${repository}`
}

function tooManyRequests(message: string): UpstreamError {
  return new UpstreamError('unavailable', 503, message, { retryAfterSeconds: 1 })
}
