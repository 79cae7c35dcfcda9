import type { Logger } from '../lib/logger.ts'
import type { Clock } from '../lib/time.ts'
import type { ManifestLink } from '../oci/content.ts'
import type { Digest } from '../oci/digest.ts'
import type { Provenance } from '../oci/registry.ts'

/** A client and the repository that it pulls from or pushes to. */
export interface Peer {
  readonly listener: 'cache' | 'registry'
  /** The client's address. */
  readonly client: string
  readonly agent: string | undefined
  /** `docker.io/library/redis`, or `app` on the registry. */
  readonly repository: string
}

/** A request that ended. */
export type Transferred =
  | { readonly kind: 'head'; readonly tag: string; readonly digest: Digest }
  | {
      readonly kind: 'manifest'
      /** Undefined for a manifest that was asked for by digest. */
      readonly tag: string | undefined
      readonly digest: Digest
      readonly links: readonly ManifestLink[]
      readonly bytes: number
      readonly outcome: Provenance['outcome']
    }
  | { readonly kind: 'blob'; readonly digest: Digest; readonly bytes: number; readonly outcome: Provenance['outcome'] }
  | { readonly kind: 'failed'; readonly digest: Digest | undefined }
  /** A part of a blob arrived. */
  | { readonly kind: 'received'; readonly bytes: number }
  | { readonly kind: 'pushed-blob'; readonly digest: Digest; readonly bytes: number }
  /** The registry holds the blob already: the client asked by HEAD, or mounted it. */
  | { readonly kind: 'held-blob'; readonly digest: Digest }
  | {
      readonly kind: 'pushed-manifest'
      readonly tag: string | undefined
      readonly digest: Digest
      readonly bytes: number
    }
  | { readonly kind: 'other' }

/** The requests of one pull. */
export interface Pull {
  tag: string | undefined
  digest: Digest | undefined
  readonly startedAt: number
  endedAt: number
  /** Manifests that the index of this pull names. */
  readonly children: Set<Digest>
  /** Blobs that its manifests name, and those that were sent. */
  readonly wanted: Set<Digest>
  readonly sent: Set<Digest>
  bytes: number
  bytesFromUpstream: number
  hits: number
  misses: number
  failed: number
}

/** The requests of one push. */
export interface Push {
  tag: string | undefined
  digest: Digest | undefined
  readonly startedAt: number
  endedAt: number
  readonly blobs: Set<Digest>
  readonly held: Set<Digest>
  bytes: number
  /** A manifest arrived: without one this was no push of an image. */
  manifests: number
}

/** What one client does in one repository. */
export interface Activity {
  readonly peer: Peer
  readonly startedAt: number
  lastAt: number
  /** Requests under way. */
  running: number
  /** Tags that the client asked for by HEAD. */
  readonly heads: Map<Digest, { readonly tag: string; readonly at: number }>
  pulls: Pull[]
  push: Push | undefined
  /** What `sizeOf` said of it the last time. */
  size: number
}

/** How much is remembered of an activity: digests, and pulls. */
export function sizeOf({ pulls, push }: Activity): number {
  const sizes = pulls.map(({ children, wanted, sent }) => 1 + children.size + wanted.size + sent.size)
  return sizes.reduce((sum, size) => sum + size, push ? push.blobs.size + push.held.size : 0)
}

/** A pull ends when its client asks for nothing more for so long: clients skip the layers that they have. */
export const quietMs = 3000
/** The same when everything that its manifest names was sent. */
const completeQuietMs = 250

/** The pull that a manifest belongs to: the one of its tag, of its index, or a new one. */
export function pullOf(
  activity: Activity,
  { tag, digest }: Extract<Transferred, { kind: 'manifest' }>,
  startedAt: number,
): Pull {
  const { pulls, heads } = activity
  const same = pulls.findLast((pull) => pull.digest === digest && (tag === undefined || (pull.tag ?? tag) === tag))
  if (same) {
    same.tag ??= tag
    return same
  }
  const parent = tag === undefined ? pulls.findLast(({ children }) => children.has(digest)) : undefined
  if (parent) return parent
  const head = heads.get(digest)
  return newPull(activity, tag ?? head?.tag, digest, head?.at ?? startedAt)
}

/** The pull that a blob belongs to. */
export function findPull({ pulls }: Activity, digest: Digest | undefined): Pull | undefined {
  return pulls.findLast(({ wanted }) => digest !== undefined && wanted.has(digest)) ?? pulls.at(-1)
}

export function newPull(
  activity: Activity,
  tag: string | undefined,
  digest: Digest | undefined,
  startedAt: number,
): Pull {
  const pull: Pull = {
    tag,
    digest,
    startedAt,
    endedAt: startedAt,
    children: new Set(),
    wanted: new Set(),
    sent: new Set(),
    bytes: 0,
    bytesFromUpstream: 0,
    hits: 0,
    misses: 0,
    failed: 0,
  }
  activity.pulls.push(pull)
  return pull
}

export function count(
  pull: Pull,
  { bytes, outcome }: { readonly bytes: number; readonly outcome: Provenance['outcome'] },
  now: number,
): void {
  pull.endedAt = now
  pull.bytes += bytes
  const isMiss = outcome === 'miss' || outcome === 'collapsed' || outcome === 'passed'
  if (isMiss) pull.misses += 1
  else pull.hits += 1
  // Who joins a fetch takes nothing more from the upstream.
  if (outcome === 'miss' || outcome === 'passed') pull.bytesFromUpstream += bytes
}

/** Whether everything that the manifests name was sent. */
export function isComplete({ wanted, sent }: Pull): boolean {
  for (const digest of wanted) if (!sent.has(digest)) return false
  return wanted.size > 0
}

export function isOver(pull: Pull, now: number): boolean {
  return now - pull.endedAt >= (isComplete(pull) ? completeQuietMs : quietMs)
}

export function pushOf(activity: Activity, startedAt: number): Push {
  return (activity.push ??= {
    tag: undefined,
    digest: undefined,
    startedAt,
    endedAt: startedAt,
    blobs: new Set(),
    held: new Set(),
    bytes: 0,
    manifests: 0,
  })
}

export function transferName(
  repository: string,
  { tag, digest }: { readonly tag: string | undefined; readonly digest: Digest | undefined },
): string {
  if (tag !== undefined) return `${repository}:${tag}`
  return digest === undefined ? repository : `${repository}@${digest}`
}

const lookMs = 250
const mostActivities = 1000
const mostHeads = 20
/** Digests and pulls that are remembered at a time, of all activities: some 10 MB. Manifests may name as many as they like. */
const mostRemembered = 200_000

/**
 * Sums up what belongs together: the requests by which a client pulls, or pushes, an image become one line of the log. A
 * client does not say when it is done, so a pull ends with its last blob, or when the client falls silent.
 */
export class TransferLog {
  readonly #activities = new Map<string, Activity>()
  readonly #logger: Logger
  readonly #clock: Clock
  readonly #closing = new AbortController()
  #isLooking = false
  #remembered = 0

  constructor({ logger, clock }: { logger: Logger; clock: Clock }) {
    this.#logger = logger
    this.#clock = clock
  }

  /** Notes that a request began; call the result once, when it has ended. */
  begin(peer: Peer): (transferred: Transferred) => void {
    const now = this.#clock.monotonic()
    const key = `${peer.listener} ${peer.client} ${peer.agent ?? ''} ${peer.repository}`
    let activity = this.#activities.get(key)
    if (!activity) {
      activity = {
        peer,
        startedAt: now,
        lastAt: now,
        running: 0,
        heads: new Map(),
        pulls: [],
        push: undefined,
        size: 0,
      }
      if (this.#activities.size >= mostActivities) this.#dropOldest()
      this.#activities.set(key, activity)
    }
    const known = activity
    known.running += 1
    known.lastAt = now
    this.#look()
    return (transferred) => {
      known.running -= 1
      known.lastAt = this.#clock.monotonic()
      // One that had to make room for others is summed up already.
      if (this.#activities.get(key) !== known) return
      this.#add(known, transferred, now)
      this.#resize(known)
      this.#sumUpOldest()
    }
  }

  /** Sums up what is still open. */
  close(): void {
    this.#closing.abort()
    for (const activity of this.#activities.values()) this.#finish(activity)
    this.#activities.clear()
  }

  #add(activity: Activity, transferred: Transferred, startedAt: number): void {
    const now = activity.lastAt
    switch (transferred.kind) {
      case 'head': {
        const { heads } = activity
        const [oldest] = heads.keys()
        if (heads.size >= mostHeads && oldest !== undefined) heads.delete(oldest)
        heads.set(transferred.digest, { tag: transferred.tag, at: startedAt })
        return
      }
      case 'manifest': {
        this.#sumUpComplete(activity, transferred.digest)
        const pull = pullOf(activity, transferred, startedAt)
        for (const { kind, digest } of transferred.links)
          (kind === 'manifest' ? pull.children : pull.wanted).add(digest)
        return count(pull, transferred, now)
      }
      case 'blob': {
        const pull = findPull(activity, transferred.digest) ?? newPull(activity, undefined, undefined, startedAt)
        pull.sent.add(transferred.digest)
        return count(pull, transferred, now)
      }
      case 'failed': {
        const pull = findPull(activity, transferred.digest)
        if (pull) {
          pull.failed += 1
          pull.endedAt = now
        }
        return
      }
      case 'received':
        pushOf(activity, startedAt).bytes += transferred.bytes
        return
      case 'pushed-blob': {
        const push = pushOf(activity, startedAt)
        push.blobs.add(transferred.digest)
        push.bytes += transferred.bytes
        return
      }
      case 'held-blob':
        pushOf(activity, startedAt).held.add(transferred.digest)
        return
      case 'pushed-manifest': {
        const push = pushOf(activity, startedAt)
        push.tag ??= transferred.tag
        push.digest = transferred.digest
        push.bytes += transferred.bytes
        push.manifests += 1
        push.endedAt = now
        // The manifest with the tag comes last.
        if (transferred.tag !== undefined) this.#sumUpPush(activity)
        return
      }
      case 'other':
    }
  }

  #resize(activity: Activity): void {
    const size = sizeOf(activity)
    this.#remembered += size - activity.size
    activity.size = size
  }

  /** Sums up what is still going on, the oldest activity first, until no more is remembered than may be. */
  #sumUpOldest(): void {
    for (const activity of this.#activities.values()) {
      if (this.#remembered <= mostRemembered) return
      if (activity.size > 0) this.#finish(activity)
    }
  }

  /** A client that has got all of an image and asks for it again pulls it again. */
  #sumUpComplete(activity: Activity, digest: Digest): void {
    const complete = activity.pulls.filter((pull) => pull.digest === digest && isComplete(pull))
    activity.pulls = activity.pulls.filter((pull) => !complete.includes(pull))
    for (const pull of complete) this.#sumUpPull(activity, pull)
  }

  #look(): void {
    if (this.#isLooking) return
    this.#isLooking = true
    void this.#lookUntilIdle()
  }

  async #lookUntilIdle(): Promise<void> {
    const { signal } = this.#closing
    try {
      while (this.#activities.size > 0) {
        await this.#clock.sleep(lookMs, signal)
        this.#endQuiet()
      }
    } catch (error) {
      if (!signal.aborted) throw error
    } finally {
      this.#isLooking = false
    }
  }

  #endQuiet(): void {
    const now = this.#clock.monotonic()
    for (const [key, activity] of this.#activities) {
      if (activity.running > 0) continue
      const over = activity.pulls.filter((pull) => isOver(pull, now))
      activity.pulls = activity.pulls.filter((pull) => !over.includes(pull))
      for (const pull of over) this.#sumUpPull(activity, pull)
      if (over.length > 0) this.#resize(activity)
      if (now - activity.lastAt < quietMs) continue
      this.#finish(activity)
      this.#activities.delete(key)
    }
  }

  #dropOldest(): void {
    const [oldest] = this.#activities
    if (!oldest) return
    const [key, activity] = oldest
    this.#finish(activity)
    this.#activities.delete(key)
  }

  #finish(activity: Activity): void {
    for (const pull of activity.pulls.splice(0)) this.#sumUpPull(activity, pull)
    this.#sumUpPush(activity)
    this.#resize(activity)
  }

  #sumUpPull({ peer }: Activity, pull: Pull): void {
    const isCached = peer.listener === 'cache'
    this.#logger.info(
      {
        listener: peer.listener,
        image: transferName(peer.repository, pull),
        digest: pull.digest,
        bytes: pull.bytes,
        ...(isCached && { hits: pull.hits, misses: pull.misses, bytesFromUpstream: pull.bytesFromUpstream }),
        ...(pull.failed > 0 && { failed: pull.failed }),
        ms: Math.round(pull.endedAt - pull.startedAt),
        client: peer.client,
        agent: peer.agent,
      },
      'pull',
    )
  }

  #sumUpPush(activity: Activity): void {
    const { peer, push } = activity
    activity.push = undefined
    if (push === undefined || push.manifests === 0) return
    this.#logger.info(
      {
        listener: peer.listener,
        image: transferName(peer.repository, push),
        digest: push.digest,
        bytes: push.bytes,
        blobs: push.blobs.size,
        held: push.held.size,
        ms: Math.round(push.endedAt - push.startedAt),
        client: peer.client,
        agent: peer.agent,
      },
      'push',
    )
  }
}
