import { Slots } from '../lib/slots.ts'
import type { Lane } from './agents.ts'
import { UpstreamError } from './upstream.ts'

/** Gives back what a request held. */
export type Release = () => void

/** Whose turn it is to ask an upstream. */
export interface RepositoryShare {
  /** Waits for a turn. Throws an UpstreamError (503) when none comes in time, or the signal's reason. */
  enter(request: { repository?: string | undefined; lane: Lane; signal?: AbortSignal | undefined }): Promise<Release>
}

export interface RepositoryShareOptions {
  /** The upstream's name, for messages. */
  readonly host: string
  /** How long a request waits for its turn, ms. */
  readonly patience: number
  /** Requests of all upstreams together: each holds a connection. */
  readonly requests: Slots
  /** Connections to one origin, of each lane. */
  readonly connections: number
}

/**
 * Bounds how many requests one repository of an upstream has under way, so that one that hangs cannot hold all connections: a
 * quarter of those for questions, three quarters of those for blobs, of which a pull uses many.
 */
export function createRepositoryShare(options: RepositoryShareOptions): RepositoryShare {
  const { host, patience, requests, connections } = options
  const most = (lane: Lane) => {
    const part = lane === 'questions' ? 1 / 4 : 3 / 4
    return Math.max(1, Math.floor(Math.min(connections, requests.limit) * part))
  }
  /** By lane and repository. */
  const shares = new Map<string, Slots>()

  async function enterShare(key: string, lane: Lane, signal: AbortSignal | undefined): Promise<Release> {
    const slots = shares.get(key) ?? new Slots(most(lane))
    shares.set(key, slots)
    const release = await slots.take(patience, signal)
    if (!release) throw busy(`as many requests for this repository as may be at a time wait for ${host}`)
    return () => {
      release()
      if (slots.isUnused && shares.get(key) === slots) shares.delete(key)
    }
  }

  return {
    async enter({ repository, lane, signal }) {
      const leaveShare = repository === undefined ? undefined : await enterShare(`${lane} ${repository}`, lane, signal)
      try {
        const leave = await requests.take(patience, signal)
        if (!leave) throw busy('as many requests to upstreams are under way as may be at a time')
        return () => {
          leave()
          leaveShare?.()
        }
      } catch (error) {
        leaveShare?.()
        throw error
      }
    },
  }
}

function busy(why: string): UpstreamError {
  return new UpstreamError('unavailable', 503, `${why[0]!.toUpperCase()}${why.slice(1)}.`, { retryAfterSeconds: 1 })
}
