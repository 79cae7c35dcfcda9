import { KeyedQueue } from '../lib/async.ts'
import type { Manifest, Operation } from '../metadata/metadata.ts'
import {
  toArtifactTypeKey,
  isForeignLayer,
  maxManifestBytes,
  mediaType,
  type ReadManifest,
  readPushedManifest,
} from '../oci/content.ts'
import { type Digest, getDigestAlgorithm, computeDigest, type Reference } from '../oci/reference.ts'
import { OciError } from '../oci/errors.ts'
import { toReferrersTag } from '../oci/lists.ts'
import { anonymousIdentity, type ManifestPushed, type PushedBody } from '../oci/registry.ts'
import type { Repository } from '../oci/route.ts'
import { changeReferrersList, toReferrerEntry, type ReferrerEntry } from './referrers.ts'
import type { PushedRepository, PushedStore } from './repositories.ts'
import { commitBytes, type MakeRoom, withRoom } from './uploads.ts'

/** Pushes and deletes manifests in the local registry. */
export class LocalManifests {
  readonly #store: PushedStore
  readonly #makeRoom: MakeRoom
  readonly #wallClock: () => number
  /** Changes lists of referrers one at a time, because each may be as large as a manifest and is read as a whole. */
  readonly #lists = new KeyedQueue<'all'>()
  /** Queues by repository and digest: a delete removes all tags of a push of the same manifest, or none of them. */
  readonly #queues = new KeyedQueue<string>()

  constructor(store: PushedStore, makeRoom: MakeRoom, wallClock: () => number) {
    this.#store = store
    this.#makeRoom = makeRoom
    this.#wallClock = wallClock
  }

  /** Stores a manifest and sets its tags. Throws an OciError for one that is invalid, or that names missing content. */
  async put({ name }: Repository, reference: Reference, body: PushedBody): Promise<ManifestPushed> {
    const read = await readPushedManifest(body.bytes, body.mediaType)
    const digest = computeDigest(
      body.bytes,
      reference.kind === 'digest' ? getDigestAlgorithm(reference.digest) : 'sha256',
    )
    if (reference.kind === 'digest' && reference.digest !== digest)
      throw new OciError('DIGEST_INVALID', 400, `The manifest does not hash to ${reference.digest}.`)
    const tags = reference.kind === 'tag' ? [reference.tag] : body.tags
    await this.#queues.run(`${name}@${digest}`, () => this.#put(name, digest, read, tags, body.bytes))
    return { digest, subject: read.subject }
  }

  async #put(
    name: string,
    digest: Digest,
    read: ReadManifest,
    tags: readonly string[],
    bytes: PushedBody['bytes'],
  ): Promise<void> {
    const { repositories, runningClock } = this.#store
    const release = repositories.claim([digest, ...read.links.map((link) => link.digest)])
    try {
      checkLinks(repositories.get(name), read)
      const updatedAt = this.#wallClock()
      const { subject } = read
      const manifest = toManifestEntry(read, bytes.length, updatedAt, runningClock.now())
      await withRoom(this.#makeRoom, bytes.length * 2, async () => {
        await this.#store.blobs.put(digest, bytes)
        await repositories.commit(name, [
          { op: 'manifest', digest, ...manifest },
          ...tags.map((tag) => toTagOperation(tag, digest, updatedAt)),
        ])
        if (subject === undefined) return
        await this.#updateReferrersList(name, subject, digest, toReferrerEntry(digest, bytes.length, read))
      })
    } finally {
      release()
    }
  }

  /** Deletes a tag, or a manifest with all its tags. Throws an OciError 404 when there is none. */
  async delete({ name }: Repository, reference: Reference): Promise<void> {
    if (reference.kind === 'digest') {
      const { digest } = reference
      return this.#queues.run(`${name}@${digest}`, () => this.#delete(name, digest))
    }
    const { tag } = reference
    if (!this.#store.repositories.get(name)?.tags.has(tag))
      throw new OciError('MANIFEST_UNKNOWN', 404, `There is no tag ${tag} in ${name}.`)
    await this.#commit(name, [{ op: 'untag', tag }])
  }

  async #delete(name: string, digest: Digest): Promise<void> {
    const repository = this.#store.repositories.get(name)
    const manifest = repository?.manifests.get(digest)
    if (!repository || !manifest)
      throw new OciError('MANIFEST_UNKNOWN', 404, `There is no manifest ${digest} in ${name}.`)
    const operations: Operation[] = [{ op: 'drop-manifest', digest }]
    for (const [tag, { digest: tagged, updatedAt }] of repository.tags)
      if (tagged === digest) operations.push({ op: 'untag', tag, updatedAt })
    await this.#commit(name, operations)
    await this.removeUnheld(digest)
    const { subject } = manifest
    if (subject === undefined) return
    await withRoom(this.#makeRoom, maxManifestBytes * 2, () =>
      this.#updateReferrersList(name, subject, digest, undefined),
    )
  }

  #commit(name: string, operations: readonly Operation[]): Promise<void> {
    return withRoom(this.#makeRoom, commitBytes, () => this.#store.repositories.commit(name, operations))
  }

  /** Removes the bytes from the disk if no repository holds them. */
  async removeUnheld(digest: Digest): Promise<void> {
    if (!this.#store.repositories.isHeld(digest)) await this.#store.blobs.remove(digest)
  }

  /**
   * Updates the list under the referrers tag, if a client has pushed one, because old clients read it instead of the API.
   * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#referrers-tag-schema
   */
  async #updateReferrersList(
    name: string,
    subject: Digest,
    digest: Digest,
    entry: ReferrerEntry | undefined,
  ): Promise<void> {
    const tag = toReferrersTag(subject)
    // Return at once for a subject without such a list, as most are: it must not wait for the others.
    if (!this.#store.repositories.get(name)?.tags.has(tag)) return
    await this.#lists.run('all', async () => {
      const { repositories, blobs, runningClock } = this.#store
      const repository = repositories.get(name)
      const old = repository?.tags.get(tag)?.digest
      const known = old === undefined ? undefined : repository!.manifests.get(old)
      if (old === undefined || known?.mediaType !== mediaType.ociIndex) return
      const before = await blobs.read(old, maxManifestBytes)
      const bytes = before && (await changeReferrersList(before, digest, entry))
      if (!bytes || bytes.length > maxManifestBytes) return
      const updated = computeDigest(bytes)
      const release = repositories.claim([updated])
      try {
        await blobs.put(updated, bytes)
        const updatedAt = this.#wallClock()
        const read = await readPushedManifest(bytes, known.mediaType)
        const isShared = repositories.isClaimed(old) || hasOtherTag(repositories.get(name), old, tag)
        await repositories.commit(name, [
          { op: 'manifest', digest: updated, ...toManifestEntry(read, bytes.length, updatedAt, runningClock.now()) },
          toTagOperation(tag, updated, updatedAt),
          ...(isShared ? [] : [{ op: 'drop-manifest' as const, digest: old }]),
        ])
        await this.removeUnheld(old)
      } finally {
        release()
      }
    })
  }
}

function hasOtherTag(repository: PushedRepository | undefined, digest: Digest, tag: string): boolean {
  for (const [other, tagged] of repository?.tags ?? []) if (tagged.digest === digest && other !== tag) return true
  return false
}

function toTagOperation(tag: string, digest: Digest, updatedAt: number): Operation {
  return { op: 'tag', tag, digest, identity: anonymousIdentity, updatedAt, pulls: 0, lastPulled: 0 }
}

/** Converts a manifest to the repository's entry for it. */
function toManifestEntry(
  { mediaType: type, subject, artifactType }: ReadManifest,
  size: number,
  updatedAt: number,
  usedAt: number,
): Manifest {
  const referrer = subject !== undefined && {
    subject,
    ...(artifactType !== undefined && { artifactType: toArtifactTypeKey(artifactType) }),
  }
  return { mediaType: type, size, identity: anonymousIdentity, updatedAt, pulls: 0, lastPulled: 0, usedAt, ...referrer }
}

/** Throws an OciError 400 for a manifest that names content that the repository does not have. */
function checkLinks(repository: PushedRepository | undefined, { links }: ReadManifest): void {
  for (const { kind, digest, size, mediaType: type } of links) {
    if (kind === 'blob' && isForeignLayer(type)) continue
    const blob = repository?.blobs.get(digest)
    // Accept a blob in place of a manifest: a build cache is an index that names layers as if they were manifests.
    const known = kind === 'blob' ? blob : (repository?.manifests.get(digest) ?? blob)
    if (!known)
      throw new OciError('MANIFEST_BLOB_UNKNOWN', 400, `The manifest names ${digest}, which was not pushed before it.`)
    if (known.size !== size)
      throw new OciError('MANIFEST_INVALID', 400, `The manifest gives ${digest} ${size} bytes; it has ${known.size}.`)
  }
}
