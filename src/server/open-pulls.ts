import type { Digest } from '../oci/reference.ts'

/** Describes the requests of one pull or push. */
export interface Transfer {
  tag: string | undefined
  digest: Digest | undefined
  readonly startedAt: number
  endedAt: number
  bytes: number
}

export interface Pull extends Transfer {
  /** Holds the manifests in the index of this pull. */
  readonly children: Set<Digest>
  /** Holds the blobs in the manifests of this pull. */
  readonly expected: Set<Digest>
  /** Holds the blobs that were sent. */
  readonly sent: Set<Digest>
  bytesFromUpstream: number
  hits: number
  misses: number
  failed: number
}

/** Holds the pulls that have not ended, by their start, and finds them by digest: a client may have thousands. */
export class OpenPulls {
  readonly all = new Set<Pull>()
  /** Holds the pulls of a manifest, and those that name a manifest or blob. */
  readonly #byDigest = new Map<Digest, Pull[]>()
  /** Holds the last pull; undefined after its end, until the next one is looked for. */
  #last: Pull | undefined
  /** Counts the pulls and the digests that they remember. */
  size = 0

  /** Returns the pulls of a manifest, one for each tag. */
  of(digest: Digest): Pull[] {
    return (this.#byDigest.get(digest) ?? []).filter((pull) => pull.digest === digest)
  }

  /** Finds the last pull that names this digest. */
  findNaming(digest: Digest, kind: 'children' | 'expected'): Pull | undefined {
    return this.#byDigest.get(digest)?.findLast((pull) => pull[kind].has(digest))
  }

  /** Returns the pull that a blob belongs to: the last one that names it, otherwise the last one. */
  findForBlob(digest: Digest | undefined): Pull | undefined {
    const naming = digest === undefined ? undefined : this.findNaming(digest, 'expected')
    return naming ?? (this.#last ??= [...this.all].at(-1))
  }

  create(tag: string | undefined, digest: Digest | undefined, startedAt: number): Pull {
    const sets = { children: new Set<Digest>(), expected: new Set<Digest>(), sent: new Set<Digest>() }
    const counts = { bytes: 0, bytesFromUpstream: 0, hits: 0, misses: 0, failed: 0 }
    const pull: Pull = { tag, digest, startedAt, endedAt: startedAt, ...sets, ...counts }
    this.all.add(pull)
    this.#last = pull
    this.size += 1
    if (digest !== undefined) this.#index(digest, pull)
    return pull
  }

  add(pull: Pull, kind: 'children' | 'expected' | 'sent', digest: Digest): void {
    if (pull[kind].has(digest)) return
    pull[kind].add(digest)
    this.size += 1
    if (kind !== 'sent') this.#index(digest, pull)
  }

  delete(pull: Pull): void {
    const { digest: own, children, expected, sent } = pull
    this.all.delete(pull)
    if (this.#last === pull) this.#last = undefined
    this.size -= 1 + children.size + expected.size + sent.size
    for (const digest of [...(own === undefined ? [] : [own]), ...children, ...expected]) {
      const known = this.#byDigest.get(digest)!
      // Nearly always, the oldest pull ends first, and `shift` is fast.
      if (known[0] === pull) known.shift()
      else known.splice(known.indexOf(pull), 1)
      if (known.length === 0) this.#byDigest.delete(digest)
    }
  }

  #index(digest: Digest, pull: Pull): void {
    const known = this.#byDigest.get(digest)
    if (known) known.push(pull)
    else this.#byDigest.set(digest, [pull])
  }
}
