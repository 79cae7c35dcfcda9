import type { Logger } from '../lib/logger.ts'
import { type Clock, logFailure, runEvery } from '../lib/time.ts'
import type { ManifestLink } from '../oci/content.ts'
import type { Digest } from '../oci/reference.ts'
import type { Provenance } from '../oci/registry.ts'
import type { ImageSavings } from '../stats/savings.ts'
import { OpenPulls, type Pull, type Transfer } from './open-pulls.ts'

/** Sets the interval at which quiet transfers are looked for. */
const pollMs = 250
/** Limits the clients and repositories that are remembered at a time. */
const maxActivities = 1000
/** Tags by HEAD that are remembered per activity. */
const maxHeads = 20
/** Digests and pulls that all activities remember, about 20 MB. They are limited, because a manifest may name any number. */
const maxRemembered = 200_000
/** Ends a pull whose client sends no request for so long, ms: clients skip the layers that they have. */
const idleMs = 3000
/** Ends, in the same way, a pull whose blobs were all sent. */
const completeIdleMs = 250

/** Describes a client and the repository that it pulls from or pushes to. */
interface Peer {
  readonly listener: 'cache' | 'registry'
  /** Holds the client's address. */
  readonly client: string
  readonly agent: string | undefined
  /** `docker.io/library/redis`, or `app` on the registry. */
  readonly repository: string
}

/** Describes the contribution of a finished request to a pull or push. */
export type Transferred =
  | { readonly kind: 'head'; readonly tag: string; readonly digest: Digest }
  | {
      readonly kind: 'manifest'
      /** Is undefined for a request by digest. */
      readonly tag: string | undefined
      readonly digest: Digest
      readonly links: readonly ManifestLink[]
      readonly bytes: number
      readonly outcome: Provenance['outcome']
    }
  | { readonly kind: 'blob'; readonly digest: Digest; readonly bytes: number; readonly outcome: Provenance['outcome'] }
  | { readonly kind: 'failed'; readonly digest: Digest | undefined }
  /** Means that the client sent a part of a blob. */
  | { readonly kind: 'received'; readonly bytes: number }
  | { readonly kind: 'pushed-blob'; readonly digest: Digest; readonly bytes: number }
  /** Means that the registry has the blob already: the client sent a HEAD, or mounted it. */
  | { readonly kind: 'existing-blob'; readonly digest: Digest }
  | {
      readonly kind: 'pushed-manifest'
      readonly tag: string | undefined
      readonly digest: Digest
      readonly bytes: number
    }
  | { readonly kind: 'other' }

interface Push extends Transfer {
  readonly blobs: Set<Digest>
  readonly existing: Set<Digest>
  /** Counts the manifests that arrived; without any, this is not the push of an image. */
  manifests: number
}

/** Describes the current pulls and the push of one client in one repository. */
interface Activity {
  readonly peer: Peer
  lastAt: number
  /** Counts the requests under way. */
  running: number
  /** Tags that the client requested by HEAD, by the digest in the response. */
  readonly heads: Map<Digest, { readonly tag: string; readonly at: number }>
  readonly pulls: OpenPulls
  push: Push | undefined
  /** Counts the pulls and digests that it remembers, since the last `#resize`. */
  size: number
}

/** Returns the pull that a manifest belongs to: by its digest, by its index, or a new pull. */
function getPull(
  { pulls, heads }: Activity,
  { tag, digest }: Extract<Transferred, { kind: 'manifest' }>,
  startedAt: number,
): Pull {
  const same = pulls.of(digest).findLast((pull) => tag === undefined || (pull.tag ?? tag) === tag)
  if (same) {
    same.tag ??= tag
    return same
  }
  const parent = tag === undefined ? pulls.findNaming(digest, 'children') : undefined
  if (parent) return parent
  const head = heads.get(digest)
  return pulls.create(tag ?? head?.tag, digest, head?.at ?? startedAt)
}

function recordTransfer(
  pull: Pull,
  { bytes, outcome }: { readonly bytes: number; readonly outcome: Provenance['outcome'] },
  now: number,
): void {
  pull.endedAt = now
  pull.bytes += bytes
  const isMiss = outcome === 'miss' || outcome === 'collapsed' || outcome === 'passed'
  if (isMiss) pull.misses += 1
  else pull.hits += 1
  // A request that joins a download costs no bytes from the upstream.
  if (outcome === 'miss' || outcome === 'passed') pull.bytesFromUpstream += bytes
}

/** Checks whether every blob in the manifests was sent. */
function isPullComplete({ expected, sent }: Pull): boolean {
  for (const digest of expected) if (!sent.has(digest)) return false
  return expected.size > 0
}

function isPullOver(pull: Pull, now: number): boolean {
  return now - pull.endedAt >= (isPullComplete(pull) ? completeIdleMs : idleMs)
}

function getPush(activity: Activity, startedAt: number): Push {
  const times = { startedAt, endedAt: startedAt }
  const sets = { blobs: new Set<Digest>(), existing: new Set<Digest>() }
  return (activity.push ??= { tag: undefined, digest: undefined, ...times, ...sets, bytes: 0, manifests: 0 })
}

function toImageName({ repository }: Peer, { tag, digest }: Transfer): string {
  if (tag !== undefined) return `${repository}:${tag}`
  return digest === undefined ? repository : `${repository}@${digest}`
}

interface TransferLogOptions {
  readonly logger: Logger
  readonly clock: Clock
  /** Counts what the pulls of each image from the cache saved; undefined to count nothing. */
  readonly savings?: Pick<ImageSavings, 'record'>
}

/**
 * Writes one line to the log for each pull and push of an image, which is many requests. A client does not announce the end of a pull,
 * so it ends with its last blob, or when the client sends no more requests.
 */
export class TransferLog {
  readonly #activities = new Map<string, Activity>()
  readonly #options: TransferLogOptions
  #stopPolling: (() => void) | undefined
  #remembered = 0

  constructor(options: TransferLogOptions) {
    this.#options = options
  }

  /** Records the start of a request. The caller calls the returned function once, when the request has ended. */
  begin(peer: Peer): (transferred: Transferred) => void {
    const now = this.#options.clock.monotonic()
    const key = `${peer.listener} ${peer.client} ${peer.agent ?? ''} ${peer.repository}`
    let activity = this.#activities.get(key)
    if (!activity) {
      activity = { peer, lastAt: now, running: 0, heads: new Map(), pulls: new OpenPulls(), push: undefined, size: 0 }
      if (this.#activities.size >= maxActivities) this.#dropOldest()
      this.#activities.set(key, activity)
    }
    const known = activity
    known.running += 1
    known.lastAt = now
    this.#startPolling()
    return (transferred) => {
      known.running -= 1
      known.lastAt = this.#options.clock.monotonic()
      // Ignores an activity that was removed to make room: its transfers are logged already.
      if (this.#activities.get(key) !== known) return
      this.#add(known, transferred, now)
      this.#resize(known)
      this.#finishOldest()
    }
  }

  /** Logs the transfers that are still open. */
  close(): void {
    this.#stopPolling?.()
    for (const activity of this.#activities.values()) this.#finish(activity)
    this.#activities.clear()
  }

  #add(activity: Activity, transferred: Transferred, startedAt: number): void {
    const now = activity.lastAt
    switch (transferred.kind) {
      case 'head': {
        const { heads } = activity
        const [oldest] = heads.keys()
        if (heads.size >= maxHeads && oldest !== undefined) heads.delete(oldest)
        heads.set(transferred.digest, { tag: transferred.tag, at: startedAt })
        return
      }
      case 'manifest': {
        // A client that requests the manifest of a complete pull again pulls it again.
        for (const pull of activity.pulls.of(transferred.digest))
          if (isPullComplete(pull)) this.#finishPull(activity, pull)
        const pull = getPull(activity, transferred, startedAt)
        for (const { kind, digest } of transferred.links)
          activity.pulls.add(pull, kind === 'manifest' ? 'children' : 'expected', digest)
        return recordTransfer(pull, transferred, now)
      }
      case 'blob': {
        const { pulls } = activity
        const pull = pulls.findForBlob(transferred.digest) ?? pulls.create(undefined, undefined, startedAt)
        pulls.add(pull, 'sent', transferred.digest)
        return recordTransfer(pull, transferred, now)
      }
      case 'failed': {
        const pull = activity.pulls.findForBlob(transferred.digest)
        if (pull) {
          pull.failed += 1
          pull.endedAt = now
        }
        return
      }
      case 'received':
        getPush(activity, startedAt).bytes += transferred.bytes
        return
      case 'pushed-blob': {
        const push = getPush(activity, startedAt)
        push.blobs.add(transferred.digest)
        push.bytes += transferred.bytes
        return
      }
      case 'existing-blob':
        getPush(activity, startedAt).existing.add(transferred.digest)
        return
      case 'pushed-manifest': {
        const push = getPush(activity, startedAt)
        push.tag ??= transferred.tag
        push.digest = transferred.digest
        push.bytes += transferred.bytes
        push.manifests += 1
        push.endedAt = now
        // Ends the push, because the manifest with the tag comes last.
        if (transferred.tag !== undefined) this.#logPush(activity)
        return
      }
      case 'other':
    }
  }

  #resize(activity: Activity): void {
    const { pulls, push } = activity
    const size = pulls.size + (push ? push.blobs.size + push.existing.size : 0)
    this.#remembered += size - activity.size
    activity.size = size
  }

  /** Finishes activities, the oldest first, until the rest is within the limit. */
  #finishOldest(): void {
    for (const activity of this.#activities.values()) {
      if (this.#remembered <= maxRemembered) return
      if (activity.size > 0) this.#finish(activity)
    }
  }

  #startPolling(): void {
    const onFailure = logFailure(this.#options.logger, 'could not sum up transfers')
    this.#stopPolling ??= runEvery(pollMs, () => this.#endQuiet(), onFailure)
  }

  #endQuiet(): void {
    const now = this.#options.clock.monotonic()
    for (const [key, activity] of this.#activities) {
      if (activity.running > 0) continue
      for (const pull of activity.pulls.all) if (isPullOver(pull, now)) this.#finishPull(activity, pull)
      this.#resize(activity)
      if (now - activity.lastAt < idleMs) continue
      this.#finish(activity)
      this.#activities.delete(key)
    }
    if (this.#activities.size > 0) return
    this.#stopPolling?.()
    this.#stopPolling = undefined
  }

  #dropOldest(): void {
    const [oldest] = this.#activities
    if (!oldest) return
    const [key, activity] = oldest
    this.#finish(activity)
    this.#activities.delete(key)
  }

  #finish(activity: Activity): void {
    for (const pull of activity.pulls.all) this.#finishPull(activity, pull)
    this.#logPush(activity)
    this.#resize(activity)
  }

  #finishPull({ peer, pulls }: Activity, pull: Pull): void {
    pulls.delete(pull)
    const { hits, misses, bytes, bytesFromUpstream, failed } = pull
    if (peer.listener === 'cache' && pull.digest !== undefined)
      this.#options.savings?.record(toImageName(peer, pull), bytes - bytesFromUpstream)
    this.#log('pull', peer, pull, {
      ...(peer.listener === 'cache' && { hits, misses, bytesFromUpstream }),
      ...(failed > 0 && { failed }),
    })
  }

  #logPush(activity: Activity): void {
    const { peer, push } = activity
    activity.push = undefined
    if (push === undefined || push.manifests === 0) return
    this.#log('push', peer, push, { blobs: push.blobs.size, held: push.existing.size })
  }

  #log(message: 'pull' | 'push', peer: Peer, transfer: Transfer, counts: Record<string, number>): void {
    const { listener, client, agent } = peer
    const { digest, bytes, startedAt, endedAt } = transfer
    const ms = Math.round(endedAt - startedAt)
    const image = toImageName(peer, transfer)
    this.#options.logger.info({ listener, image, digest, bytes, ...counts, ms, client, agent }, message)
  }
}
