import type { ManifestLink } from '../oci/content.ts'
import type { Digest } from '../oci/digest.ts'
import type { Provenance } from '../oci/registry.ts'

/** The same for a pull whose blobs were all sent. */
const completeIdleMs = 250

/** A client and the repository that it pulls from or pushes to. */
export interface Peer {
  readonly listener: 'cache' | 'registry'
  /** The client's address. */
  readonly client: string
  readonly agent: string | undefined
  /** `docker.io/library/redis`, or `app` on the registry. */
  readonly repository: string
}

/** The contribution of a finished request to a pull or push. */
export type Transferred =
  | { readonly kind: 'head'; readonly tag: string; readonly digest: Digest }
  | {
      readonly kind: 'manifest'
      /** Undefined for a request by digest. */
      readonly tag: string | undefined
      readonly digest: Digest
      readonly links: readonly ManifestLink[]
      readonly bytes: number
      readonly outcome: Provenance['outcome']
    }
  | { readonly kind: 'blob'; readonly digest: Digest; readonly bytes: number; readonly outcome: Provenance['outcome'] }
  | { readonly kind: 'failed'; readonly digest: Digest | undefined }
  /** The client sent a part of a blob. */
  | { readonly kind: 'received'; readonly bytes: number }
  | { readonly kind: 'pushed-blob'; readonly digest: Digest; readonly bytes: number }
  /** The registry has the blob already: the client sent a HEAD, or mounted it. */
  | { readonly kind: 'existing-blob'; readonly digest: Digest }
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
  /** Manifests in the index of this pull. */
  readonly children: Set<Digest>
  /** Blobs in the manifests of this pull. */
  readonly expected: Set<Digest>
  /** Blobs that were sent. */
  readonly sent: Set<Digest>
  bytes: number
  bytesFromUpstream: number
  hits: number
  misses: number
  failed: number
}

/** The requests of one push. */
interface Push {
  tag: string | undefined
  digest: Digest | undefined
  readonly startedAt: number
  endedAt: number
  readonly blobs: Set<Digest>
  readonly existing: Set<Digest>
  bytes: number
  /** Manifests that arrived; without any, this is not the push of an image. */
  manifests: number
}

/** The current pulls and the push of one client in one repository. */
export interface Activity {
  readonly peer: Peer
  readonly startedAt: number
  lastAt: number
  /** Requests under way. */
  running: number
  /** Tags that the client requested by HEAD, by the digest in the response. */
  readonly heads: Map<Digest, { readonly tag: string; readonly at: number }>
  pulls: Pull[]
  push: Push | undefined
  /** The last result of `countRemembered`. */
  size: number
}

/** Counts the digests and pulls that an activity remembers. */
export function countRemembered({ pulls, push }: Activity): number {
  const sizes = pulls.map(({ children, expected, sent }) => 1 + children.size + expected.size + sent.size)
  return sizes.reduce((sum, size) => sum + size, push ? push.blobs.size + push.existing.size : 0)
}

/** A pull ends when its client sends no request for so long: clients skip the layers that they have. */
export const idleMs = 3000

/** Returns the pull that a manifest belongs to: by its digest, by its index, or a new pull. */
export function getPull(
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
  return createPull(activity, tag ?? head?.tag, digest, head?.at ?? startedAt)
}

/** Returns the pull that a blob belongs to: the last one that names it, otherwise the last one. */
export function findPull({ pulls }: Activity, digest: Digest | undefined): Pull | undefined {
  return pulls.findLast(({ expected }) => digest !== undefined && expected.has(digest)) ?? pulls.at(-1)
}

export function createPull(
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
    expected: new Set(),
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

export function recordTransfer(
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
export function isPullComplete({ expected, sent }: Pull): boolean {
  for (const digest of expected) if (!sent.has(digest)) return false
  return expected.size > 0
}

export function isPullOver(pull: Pull, now: number): boolean {
  return now - pull.endedAt >= (isPullComplete(pull) ? completeIdleMs : idleMs)
}

export function getPush(activity: Activity, startedAt: number): Push {
  return (activity.push ??= {
    tag: undefined,
    digest: undefined,
    startedAt,
    endedAt: startedAt,
    blobs: new Set(),
    existing: new Set(),
    bytes: 0,
    manifests: 0,
  })
}

export function getTransferName(
  repository: string,
  { tag, digest }: { readonly tag: string | undefined; readonly digest: Digest | undefined },
): string {
  if (tag !== undefined) return `${repository}:${tag}`
  return digest === undefined ? repository : `${repository}@${digest}`
}
