import { LargeListQueue } from '../lib/body-memory.ts'
import { getErrno } from '../lib/errors.ts'
import type { Clock } from '../lib/time.ts'
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
import type {
  BlobResponse,
  Caller,
  ListResponse,
  ManifestResponse,
  ManifestPushed,
  Provenance,
  PushedBody,
  PushRegistry,
  UploadChunk,
  UploadName,
  UploadState,
  User,
} from '../oci/registry.ts'
import type { Page, Repository } from '../oci/route.ts'
import { isStored, SmallContents, openStoredManifest } from '../store/contents.ts'
import { LocalManifests } from './manifests.ts'
import { listReferrers } from './referrers.ts'
import type { PushedStore } from './repositories.ts'
import type { PushedBlob, PushedChange, PushedManifest, PushedRepository } from './repository.ts'
import { journalBytes, LocalUploads, type MakeRoom, type UploadSessions, withRoom } from './uploads.ts'

interface LocalRegistryOptions {
  readonly store: PushedStore
  readonly sessions: UploadSessions
  readonly makeRoom: MakeRoom
  readonly clock: Clock
}

const provenance: Provenance = { registry: undefined, outcome: 'own', cacheStatus: undefined }

/**
 * Sets the interval between updates of `heldSince` of requested content, running time ms; a fraction of the garbage collector's
 * grace.
 */
const refreshHeldMs = 3_600_000
/** Limits the blobs that are served from memory, as manifests are; mostly configs. */
const smallBytes = 64 * 1024
/** Limits the memory for manifests and configs, bytes. */
const smallContentBytes = 8 * 1024 * 1024

/**
 * Implements the push registry. A pushed blob goes through an upload session to the disk; a pushed manifest may name only content
 * of its repository. Each push is a synced line in the repository's journal before the client gets its 201. Repositories share
 * bytes on disk, and nothing else.
 */
export class LocalRegistry implements PushRegistry {
  readonly #store: PushedStore
  readonly #makeRoom: MakeRoom
  readonly #uploads: LocalUploads
  readonly #manifests: LocalManifests
  readonly #contents: SmallContents
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
      if (reference.kind === 'digest')
        await this.#refreshHeld(name, digest, record, (heldSince) => ({ op: 'manifest', digest, ...record, heldSince }))
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
      await this.#refreshHeld(name, digest, record, (heldSince) => ({ op: 'blob', digest, size, heldSince }))
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
      () => listReferrers(repository, { subject, artifactType, page }, read),
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
    const { repositories, blobs, runningClock } = this.#store
    repositories.get(name)
    const release = repositories.claim([digest])
    try {
      const isUnknown = from === undefined || repositories.isDamaged(from)
      const sources = isUnknown ? repositories.all() : [repositories.get(from)]
      const size = findSize(sources, digest)
      if (size === undefined || (await blobs.stat(digest)) !== size) return false
      await this.#commit(name, [{ op: 'blob', digest, size, heldSince: runningClock.now() }])
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
    if (repository && repository.tags.size + repository.manifests.size + repository.blobs.size > 0) return repository
    throw new OciError('NAME_UNKNOWN', 404, `There is no repository ${name}.`)
  }

  #commit(name: string, changes: readonly PushedChange[]): Promise<void> {
    return withRoom(this.#makeRoom, journalBytes, () => this.#store.repositories.commit(name, changes))
  }

  /** Updates `heldSince`: a client that has seen the content may skip its push, so it must not be garbage for a while. */
  async #refreshHeld(
    name: string,
    digest: Digest,
    { heldSince }: PushedBlob | PushedManifest,
    toChange: (heldSince: number) => PushedChange,
  ): Promise<void> {
    const { repositories, runningClock } = this.#store
    const now = runningClock.now()
    if (now - heldSince < refreshHeldMs) return
    // Claim it: a garbage collection that starts before the commit would still see the old time.
    const release = repositories.claim([digest])
    try {
      await repositories.commit(name, [toChange(now)])
    } catch (error) {
      // Ignore a full disk, which must not prevent the pull.
      if (getErrno(error) === undefined) throw error
    } finally {
      release()
    }
  }
}

function findSize(sources: Iterable<PushedRepository | undefined>, digest: Digest): number | undefined {
  for (const source of sources) {
    const size = source?.blobs.get(digest)?.size
    if (size !== undefined) return size
  }
  return undefined
}

function toListResponse(value: unknown, next: string | undefined): ListResponse {
  const bytes = new TextEncoder().encode(JSON.stringify(value))
  return { contentType: 'application/json', bytes, next, provenance }
}

function createUnknownBlobError(name: string, digest: Digest): OciError {
  return new OciError('BLOB_UNKNOWN', 404, `There is no blob ${digest} in ${name}.`)
}
