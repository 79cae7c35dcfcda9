import { LargeListQueue } from '../lib/body-memory.ts'
import type { Clock } from '../lib/time.ts'
import type { Operation } from '../metadata/metadata.ts'
import { toBytes, maxStringBytes, mediaType } from '../oci/content.ts'
import {
  type Digest,
  getDigestAlgorithm,
  type DigestAlgorithm,
  type Reference,
  formatReference,
} from '../oci/reference.ts'
import { OciError } from '../oci/errors.ts'
import { paginate } from '../oci/lists.ts'
import {
  anonymousIdentity,
  type BlobResponse,
  type Caller,
  type ListResponse,
  type ManifestResponse,
  type ManifestPushed,
  type Provenance,
  type PushedBody,
  type PushRegistry,
  type UploadChunk,
  type UploadName,
  type UploadState,
  type User,
} from '../oci/registry.ts'
import type { Page, Repository } from '../oci/route.ts'
import { isStored, SmallContents, openStoredManifest } from '../store/contents.ts'
import { LocalManifests } from './manifests.ts'
import { ReferrersLists } from './referrers.ts'
import type { PushedRepository, PushedStore } from './repositories.ts'
import { commitBytes, LocalUploads, type MakeRoom, type UploadSessions, withRoom } from './uploads.ts'

interface LocalRegistryOptions {
  readonly store: PushedStore
  readonly sessions: UploadSessions
  readonly makeRoom: MakeRoom
  readonly clock: Clock
}

const provenance: Provenance = { registry: undefined, outcome: 'own', cacheStatus: undefined }

/** Sets the interval between records of requests for the same content, running time ms; a fraction of the garbage collector's grace. */
const recordUseMs = 3_600_000
/** Limits the blobs that are served from memory, as manifests are; mostly configs. */
const smallBytes = 64 * 1024
/** Limits the memory for manifests and configs, bytes. */
const smallContentBytes = 8 * 1024 * 1024

/**
 * Implements the push registry. A pushed blob goes through an upload session to the disk; a pushed manifest may name only content
 * of its repository. Each push is a synced commit of the metadata before the client gets its 201. Repositories share
 * bytes on disk, and nothing else.
 */
export class LocalRegistry implements PushRegistry {
  readonly #store: PushedStore
  readonly #makeRoom: MakeRoom
  readonly #uploads: LocalUploads
  readonly #manifests: LocalManifests
  readonly #contents: SmallContents
  readonly #referrers = new ReferrersLists()
  readonly #lists = new LargeListQueue()

  constructor(options: LocalRegistryOptions) {
    this.#store = options.store
    this.#contents = new SmallContents(options.store.blobs, smallContentBytes)
    this.#makeRoom = options.makeRoom
    this.#uploads = new LocalUploads(options)
    this.#manifests = new LocalManifests(options.store, options.makeRoom, () => options.clock.wall())
  }

  async manifest({ name }: Repository, reference: Reference, { head }: Caller): Promise<ManifestResponse> {
    const repository = this.#getKnown(name)
    const digest = reference.kind === 'digest' ? reference.digest : repository.tags.get(reference.tag)?.digest
    const record = digest && repository.manifests.get(digest)
    if (record) {
      const { mediaType: type, size } = record
      // Count only a pull by digest, because a tagged manifest is never garbage.
      if (reference.kind === 'digest' && this.#isUseDue(record)) {
        const { pulls, lastPulled } = record
        this.#store.repositories.recordUse(name, { op: 'use-manifest', digest, pulls, lastPulled, usedAt: this.#now() })
      }
      const answer = { digest, mediaType: type, size, provenance }
      if (head && (await this.#store.blobs.stat(digest)) === size) return { ...answer, body: undefined }
      if (size > maxStringBytes) {
        const { blobs } = this.#store
        const isOnDisk = await isStored(blobs, digest, size)
        if (isOnDisk) return { ...answer, body: undefined, stored: openStoredManifest(blobs, digest, size) }
      } else {
        const body = await this.#contents.loadStored(digest, size)
        if (body) return { ...answer, body }
      }
    }
    throw new OciError('MANIFEST_UNKNOWN', 404, `There is no ${formatReference(reference)} in ${name}.`)
  }

  async blob({ name }: Repository, digest: Digest, { head }: Caller): Promise<BlobResponse> {
    const record = this.#getKnown(name).blobs.get(digest)
    if (record) {
      const { size } = record
      if (this.#isUseDue(record))
        this.#store.repositories.recordUse(name, { op: 'use-blob', digest, usedAt: this.#now() })
      if (head && (await this.#store.blobs.stat(digest)) === size)
        return { digest, size, body: { kind: 'none' }, provenance }
      const content = size <= smallBytes && (await this.#contents.loadStored(digest, size))
      if (content) return { digest, size, body: { kind: 'whole', content }, provenance }
      const blob = await this.#store.blobs.open(digest, size)
      if (blob) return { digest, size, body: { kind: 'stored', blob }, provenance }
    }
    throw createUnknownBlobError(name, digest)
  }

  tags({ name }: Repository, page: Page): Promise<ListResponse> {
    const { entries, next } = paginate([...this.#getKnown(name).tags.keys()].toSorted(), page)
    return Promise.resolve(toListResponse({ name, tags: entries }, next))
  }

  async referrers(
    { name }: Repository,
    subject: Digest,
    artifactType: string | undefined,
    { clientAbort }: Caller,
    page: Page,
  ): Promise<ListResponse> {
    const repository = this.#store.repositories.get(name)
    const read = async (digest: Digest, size: number) => {
      // Read large manifests past the memory cache, because they would displace frequently requested content.
      if (size > smallBytes) return this.#store.blobs.read(digest, size)
      const content = await this.#contents.loadStored(digest, size)
      return content && toBytes(content)
    }
    // Build one page at a time: it may be as large as a manifest, and so may each of the manifests that it reads.
    const { index, next } = await this.#lists.run(
      () => this.#referrers.list(repository, { subject, artifactType, page }, read),
      clientAbort?.signal,
    )
    return {
      contentType: mediaType.ociIndex,
      bytes: index,
      next,
      filtersApplied: artifactType === undefined ? undefined : 'artifactType',
      provenance,
    }
  }

  catalog(_registry: string | undefined, page: Page): Promise<ListResponse> {
    const names = [...this.#store.repositories.all()].filter(({ manifests }) => manifests.size > 0)
    const { entries, next } = paginate(names.map(({ name }) => name).toSorted(), page)
    return Promise.resolve(toListResponse({ repositories: entries }, next))
  }

  async startUpload(repository: Repository, user: User, algorithm: DigestAlgorithm | undefined): Promise<UploadState> {
    await this.#store.blobs.checkWritable()
    return this.#uploads.start(repository, user, algorithm)
  }

  uploadState(repository: Repository, upload: UploadName): UploadState {
    return this.#uploads.find(repository, upload)
  }

  async appendUpload(repository: Repository, upload: UploadName, chunk: UploadChunk): Promise<UploadState> {
    return this.#uploads.append(this.#uploads.find(repository, upload), chunk)
  }

  async finishUpload(
    repository: Repository,
    upload: UploadName,
    digest: Digest,
    chunk: UploadChunk | undefined,
  ): Promise<void> {
    await this.#uploads.finish(this.#uploads.find(repository, upload), digest, chunk)
  }

  async cancelUpload(repository: Repository, upload: UploadName): Promise<void> {
    await this.#uploads.find(repository, upload).cancel()
  }

  async putBlob(repository: Repository, digest: Digest, chunk: UploadChunk): Promise<void> {
    const session = this.#uploads.start(repository, undefined, getDigestAlgorithm(digest))
    try {
      await this.#uploads.finish(session, digest, chunk)
    } finally {
      await session.cancel()
    }
  }

  async mountBlob({ name }: Repository, digest: Digest, from: string | undefined): Promise<boolean> {
    const { repositories, blobs } = this.#store
    const release = repositories.claim([digest])
    try {
      const size = from === undefined ? this.#findSize(digest) : repositories.get(from)?.blobs.get(digest)?.size
      if (size === undefined || (await blobs.stat(digest)) !== size) return false
      await this.#commit(name, [{ op: 'blob', digest, size, identity: anonymousIdentity, usedAt: this.#now() }])
      return true
    } finally {
      release()
    }
  }

  putManifest(repository: Repository, reference: Reference, body: PushedBody): Promise<ManifestPushed> {
    return this.#manifests.put(repository, reference, body)
  }

  async deleteManifest(repository: Repository, reference: Reference): Promise<void> {
    this.#getKnown(repository.name)
    // Check first: a removal is visible before the disk has accepted it.
    await this.#store.blobs.checkWritable()
    await this.#manifests.delete(repository, reference)
  }

  async deleteBlob({ name }: Repository, digest: Digest): Promise<void> {
    if (!this.#getKnown(name).blobs.has(digest)) throw createUnknownBlobError(name, digest)
    await this.#store.blobs.checkWritable()
    await this.#commit(name, [{ op: 'drop-blob', digest }])
    await this.#manifests.removeUnheld(digest)
  }

  #getKnown(name: string): PushedRepository {
    const repository = this.#store.repositories.get(name)
    if (repository) return repository
    throw new OciError('NAME_UNKNOWN', 404, `There is no repository ${name}.`)
  }

  /** Finds the size of a blob of any repository. */
  #findSize(digest: Digest): number | undefined {
    const { repositories } = this.#store
    if (!repositories.has(digest)) return undefined
    for (const { blobs } of repositories.all()) {
      const size = blobs.get(digest)?.size
      if (size !== undefined) return size
    }
    return undefined
  }

  #commit(name: string, operations: readonly Operation[]): Promise<void> {
    return withRoom(this.#makeRoom, commitBytes, () => this.#store.repositories.commit(name, operations))
  }

  /** Reports whether to record a request: a client that has seen content may skip its push, so it must not be garbage for a while. */
  #isUseDue({ usedAt }: { readonly usedAt: number }): boolean {
    return this.#now() - usedAt >= recordUseMs
  }

  #now(): number {
    return this.#store.runningClock.now()
  }
}

function toListResponse(value: unknown, next: string | undefined): ListResponse {
  const bytes = new TextEncoder().encode(JSON.stringify(value))
  return { contentType: 'application/json', bytes, next, provenance }
}

function createUnknownBlobError(name: string, digest: Digest): OciError {
  return new OciError('BLOB_UNKNOWN', 404, `There is no blob ${digest} in ${name}.`)
}
