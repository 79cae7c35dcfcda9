import type { IncomingMessage } from 'node:http'
import { type Logger, redact } from '../lib/logger.ts'
import { normalizeAddress } from '../lib/network.ts'
import type { Clock } from '../lib/time.ts'
import type { Digest } from '../oci/digest.ts'
import { referenceText } from '../oci/reference.ts'
import type { Provenance } from '../oci/registry.ts'
import type { Route } from '../oci/route.ts'
import { receivedBytes } from './request-body.ts'
import type { Activity, Peer, Pull, Transferred } from './transfer.ts'
import {
  recordTransfer,
  findPull,
  isPullComplete,
  isPullOver,
  createPull,
  getPull,
  getPush,
  idleMs,
  countRemembered,
  getTransferName,
} from './transfer.ts'

/** Interval at which quiet transfers are looked for. */
const pollMs = 250
/** Clients and repositories that are remembered at a time. */
const maxActivities = 1000
/** Tags by HEAD that are remembered per activity. */
const maxHeads = 20
/** Digests and pulls that all activities remember, about 10 MB. They are limited, because a manifest may name any number. */
const maxRemembered = 200_000

interface AccessLogEntry {
  readonly listener: 'cache' | 'registry'
  /** Undefined for a URL that is not part of the registry API. */
  readonly route: Route | undefined
  /** The result of `getRepositoryName`. */
  readonly repository: string | undefined
  readonly status: number
  readonly bytes: number
  readonly milliseconds: number
  readonly provenance?: Provenance | undefined
  readonly error?: string | undefined
}

/** Logs one line per request, which `mirror logs` shows. Successful reads without content, such as pings, are logged at debug level. */
export function logAccess(logger: Logger, request: IncomingMessage, access: AccessLogEntry): void {
  const { route } = access
  const received = receivedBytes(request)
  const fields = {
    listener: access.listener,
    method: request.method,
    url: redact(request.url ?? '').slice(0, 1024),
    kind: route?.kind,
    repository: access.repository,
    reference: route && getReferenceText(route),
    status: access.status,
    upstream: access.provenance?.registry,
    cache: access.provenance?.outcome,
    probe: access.provenance?.isProbe,
    bytes: access.bytes,
    received: received > 0 ? received : undefined,
    ms: Math.round(access.milliseconds),
    client: normalizeAddress(request.socket.remoteAddress ?? ''),
    agent: getUserAgent(request),
    error: access.error,
  }
  if (access.status >= 500) logger.warn(fields, 'request')
  else if (access.provenance || access.status >= 400 || !isRead(request)) logger.info(fields, 'request')
  else logger.debug(fields, 'request')
}

/** Returns the client's user agent, at most 200 characters. */
export function getUserAgent({ headers }: IncomingMessage): string | undefined {
  return headers['user-agent']?.slice(0, 200)
}

/**
 * Returns the repository of a request, with its registry where it belongs to an upstream: `docker.io/library/redis`.
 * `defaultRegistry`: the registry of a request that names none; undefined where repositories belong to no upstream.
 */
export function getRepositoryName(route: Route | undefined, defaultRegistry: string | undefined): string | undefined {
  if (route === undefined || !('name' in route)) return undefined
  const host = route.registry ?? defaultRegistry
  if (host === undefined) return route.name
  return `${host}/${host === 'docker.io' && !route.name.includes('/') ? 'library/' : ''}${route.name}`
}

/** Returns the tag or digest of a request. */
function getReferenceText(route: Route): string | undefined {
  switch (route.kind) {
    case 'manifest':
      return referenceText(route.reference)
    case 'blob':
    case 'referrers':
      return route.digest
    case 'uploads':
    case 'upload':
      return (route.wanted.digest ?? route.wanted.mount)?.slice(0, 200)
    default:
      return undefined
  }
}

function isRead({ method }: IncomingMessage): boolean {
  return method === 'GET' || method === 'HEAD'
}

/**
 * Writes one line to the log for each pull and push of an image, which is many requests. A client does not announce the end of a pull,
 * so it ends with its last blob, or when the client sends no more requests.
 */
export class TransferLog {
  readonly #activities = new Map<string, Activity>()
  readonly #logger: Logger
  readonly #clock: Clock
  readonly #closing = new AbortController()
  #isPolling = false
  #remembered = 0

  constructor({ logger, clock }: { logger: Logger; clock: Clock }) {
    this.#logger = logger
    this.#clock = clock
  }

  /** Records the start of a request. The caller calls the returned function once, when the request has ended. */
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
      if (this.#activities.size >= maxActivities) this.#dropOldest()
      this.#activities.set(key, activity)
    }
    const known = activity
    known.running += 1
    known.lastAt = now
    this.#startPolling()
    return (transferred) => {
      known.running -= 1
      known.lastAt = this.#clock.monotonic()
      // Ignores an activity that was removed to make room: its transfers are logged already.
      if (this.#activities.get(key) !== known) return
      this.#add(known, transferred, now)
      this.#resize(known)
      this.#finishOldest()
    }
  }

  /** Logs the transfers that are still open. */
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
        if (heads.size >= maxHeads && oldest !== undefined) heads.delete(oldest)
        heads.set(transferred.digest, { tag: transferred.tag, at: startedAt })
        return
      }
      case 'manifest': {
        this.#finishComplete(activity, transferred.digest)
        const pull = getPull(activity, transferred, startedAt)
        for (const { kind, digest } of transferred.links)
          (kind === 'manifest' ? pull.children : pull.expected).add(digest)
        return recordTransfer(pull, transferred, now)
      }
      case 'blob': {
        const pull = findPull(activity, transferred.digest) ?? createPull(activity, undefined, undefined, startedAt)
        pull.sent.add(transferred.digest)
        return recordTransfer(pull, transferred, now)
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
    const size = countRemembered(activity)
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

  /** Finishes complete pulls of a manifest, because a client that requests it again pulls it again. */
  #finishComplete(activity: Activity, digest: Digest): void {
    const complete = activity.pulls.filter((pull) => pull.digest === digest && isPullComplete(pull))
    activity.pulls = activity.pulls.filter((pull) => !complete.includes(pull))
    for (const pull of complete) this.#logPull(activity, pull)
  }

  #startPolling(): void {
    if (this.#isPolling) return
    this.#isPolling = true
    void this.#pollUntilIdle()
  }

  async #pollUntilIdle(): Promise<void> {
    const { signal } = this.#closing
    try {
      while (this.#activities.size > 0) {
        await this.#clock.sleep(pollMs, signal)
        this.#endQuiet()
      }
    } catch (error) {
      if (!signal.aborted) throw error
    } finally {
      this.#isPolling = false
    }
  }

  #endQuiet(): void {
    const now = this.#clock.monotonic()
    for (const [key, activity] of this.#activities) {
      if (activity.running > 0) continue
      const over = activity.pulls.filter((pull) => isPullOver(pull, now))
      activity.pulls = activity.pulls.filter((pull) => !over.includes(pull))
      for (const pull of over) this.#logPull(activity, pull)
      if (over.length > 0) this.#resize(activity)
      if (now - activity.lastAt < idleMs) continue
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
    for (const pull of activity.pulls.splice(0)) this.#logPull(activity, pull)
    this.#logPush(activity)
    this.#resize(activity)
  }

  #logPull({ peer }: Activity, pull: Pull): void {
    const isCached = peer.listener === 'cache'
    this.#logger.info(
      {
        listener: peer.listener,
        image: getTransferName(peer.repository, pull),
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

  #logPush(activity: Activity): void {
    const { peer, push } = activity
    activity.push = undefined
    if (push === undefined || push.manifests === 0) return
    this.#logger.info(
      {
        listener: peer.listener,
        image: getTransferName(peer.repository, push),
        digest: push.digest,
        bytes: push.bytes,
        blobs: push.blobs.size,
        held: push.existing.size,
        ms: Math.round(push.endedAt - push.startedAt),
        client: peer.client,
        agent: peer.agent,
      },
      'push',
    )
  }
}
