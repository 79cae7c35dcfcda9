import type { Digest } from '../oci/digest.ts'
import type { FileRefStore } from './record-files.ts'
import type { RepositoryRecord } from './records.ts'

/** What records have come to name, or been asked for, since a plan was begun: it is wanted again. */
export class FreshClaims {
  readonly #refs: FileRefStore
  readonly #claimed = new Set<Digest>()
  readonly #touched = new Set<RepositoryRecord>()
  readonly #stop: () => void
  #isOurs = false

  constructor(refs: FileRefStore) {
    this.#refs = refs
    this.#stop = refs.onTouch((record) => {
      if (!this.#isOurs) this.#touched.add(record)
    })
  }

  has(digest: Digest): boolean {
    for (const record of this.#touched) this.#claimAll(record)
    this.#touched.clear()
    return this.#claimed.has(digest)
  }

  add(digests: Iterable<Digest>): void {
    for (const digest of digests) this.#claimed.add(digest)
  }

  /** Says that a record was changed, by the plan itself. */
  touchAsOurs(record: RepositoryRecord): void {
    this.#isOurs = true
    this.#refs.touch(record)
    this.#isOurs = false
  }

  close(): void {
    this.#stop()
  }

  #claimAll(record: RepositoryRecord): void {
    for (const { digest } of record.tags.values()) this.#claimed.add(digest)
    for (const digest of record.blobs.keys()) this.#claimed.add(digest)
    for (const { digest } of record.referrers.values()) this.#claimed.add(digest)
    for (const [digest, { links }] of record.manifests) {
      this.#claimed.add(digest)
      for (const link of links) this.#claimed.add(link.digest)
    }
  }
}
