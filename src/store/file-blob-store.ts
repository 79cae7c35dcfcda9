import { constants, fstat } from 'node:fs'
import { access, type FileHandle, open, rename, rm, stat, utimes } from 'node:fs/promises'
import { promisify } from 'node:util'
import { KeyedQueue } from '../lib/async.ts'
import { getErrno } from '../lib/errors.ts'
import { pathExists, syncFolder } from '../lib/fs.ts'
import type { Logger } from '../lib/logger.ts'
import { type Digest, getDigestAlgorithm, computeDigest } from '../oci/reference.ts'
import type { OpenBlob } from '../oci/registry.ts'
import { BlobIndex, type BlobStore, type BlobWriter } from './blob-store.ts'
import { FileBlobWriter, freeSpace } from './blob-writer.ts'
import { hasDigest, hashFile, readWhole } from './hashing.ts'
import { makeStoreFolders, type StoreLayout } from './layout.ts'

interface BlobTrustOptions {
  /** `always` verifies a blob on every open; `auto` only while it is suspect. */
  readonly verifyReads: 'auto' | 'always'
  /** Is true when the last stop was not clean. Then every blob is suspect until it has been verified once. */
  readonly suspect: boolean
}

interface FileBlobStoreOptions extends BlobTrustOptions {
  readonly layout: StoreLayout
  /** Bytes that writers leave free on the disk. */
  readonly minFree: number
  readonly logger: Logger
  /** Is called after a damaged blob was moved to the quarantine. */
  readonly onDamaged?: ((digest: Digest) => void) | undefined
  /** Leaves damaged blobs where they are. */
  readonly isReadOnly?: boolean
  readonly freeSpace?: (path: string) => Promise<number>
  readonly syncFolder?: (path: string) => Promise<void>
}

const fileStatus = promisify(fstat)

/** Stores blobs as files named by their digest. The folders must exist, and no other process may write to them. */
export class FileBlobStore implements BlobStore {
  readonly ready: Promise<void>
  readonly #options: FileBlobStoreOptions
  readonly #layout: StoreLayout
  readonly #index = new BlobIndex()
  /** Gives a live view of the sizes of the published blobs. */
  readonly sizes = this.#index.sizes
  readonly #closing = new AbortController()
  /** Serializes changes of the same digest, so that disk and index agree. */
  readonly #changes = new KeyedQueue<Digest>()
  readonly #trust: BlobTrust
  #isReady = false

  constructor(options: FileBlobStoreOptions) {
    this.#options = options
    this.#layout = options.layout
    this.#trust = new BlobTrust(options)
    this.ready = this.#scan()
  }

  get usage(): { readonly bytes: number; readonly blobs: number } {
    return { bytes: this.#index.bytes, blobs: this.sizes.size }
  }

  /** Is true when no blob is suspect: each was verified or written since the last unclean stop. */
  get isTrusted(): boolean {
    return (this.#isReady || !this.#options.suspect) && this.#trust.hasAll(this.sizes.keys())
  }

  entries(): Iterable<readonly [Digest, number]> {
    return this.sizes.entries()
  }

  async stat(digest: Digest): Promise<number | undefined> {
    const known = this.sizes.get(digest)
    if (known !== undefined || this.#isReady) return known
    try {
      const found = await stat(this.#layout.blob(digest))
      return found.isFile() ? found.size : undefined
    } catch (error) {
      if (getErrno(error) === 'ENOENT') return undefined
      throw error
    }
  }

  async open(digest: Digest, expectedSize?: number): Promise<OpenBlob | undefined> {
    const file = await this.#openSized(digest, expectedSize)
    if (!file) return undefined
    return this.#keepIf(digest, file, () => this.#trust.isSound(digest, file.handle, file.ino))
  }

  async read(digest: Digest, limit: number): Promise<Uint8Array<ArrayBuffer> | undefined> {
    const file = await this.#openSized(digest, undefined)
    if (!file) return undefined
    if (file.size > limit) {
      await file.handle.close()
      return undefined
    }
    let bytes = new Uint8Array(0)
    const blob = await this.#keepIf(digest, file, async () => {
      bytes = (await readWhole(file.handle)) ?? bytes
      return computeDigest(bytes, getDigestAlgorithm(digest)) === digest
    })
    if (!blob) return undefined
    await blob.close()
    this.#trust.add(digest)
    return bytes
  }

  async checkWritable(): Promise<void> {
    try {
      await access(this.#layout.temporary, constants.W_OK | constants.X_OK)
    } catch (error) {
      // Accept a missing folder, because the next write creates it.
      if (getErrno(error) !== 'ENOENT') throw error
    }
  }

  async create(): Promise<BlobWriter> {
    const options = {
      path: this.#layout.temporaryBlob(),
      minFree: this.#options.minFree,
      freeSpace: this.#options.freeSpace ?? freeSpace,
      publish: (path: string, digest: Digest, size: number) => this.#publish(path, digest, size),
    }
    try {
      return await FileBlobWriter.create(options)
    } catch (error) {
      if (getErrno(error) !== 'ENOENT') throw error
      // Create the folders again, because they were removed.
      await makeStoreFolders(this.#layout)
      return FileBlobWriter.create(options)
    }
  }

  async put(digest: Digest, bytes: Uint8Array): Promise<void> {
    const writer = await this.create()
    try {
      await writer.write(bytes)
      await writer.commit(digest)
    } finally {
      await writer.close()
    }
  }

  remove(digest: Digest): Promise<void> {
    return this.#changes.run(digest, async () => {
      await rm(this.#layout.blob(digest), { force: true })
      this.#removeFromIndex(digest)
    })
  }

  async quarantine({ digest, fd }: OpenBlob): Promise<void> {
    await this.#quarantine(digest, (await fileStatus(fd)).ino)
  }

  /**
   * Verifies a blob even if it is trusted; yields the bytes of each step. With `quarantine`, quarantines a damaged blob.
   */
  async *check(digest: Digest, quarantine: boolean): AsyncGenerator<number, 'sound' | 'damaged' | 'absent'> {
    const handle = await this.#openFile(digest)
    if (!handle) return 'absent'
    try {
      const { ino } = await handle.stat()
      if ((yield* hashFile(handle, getDigestAlgorithm(digest))) === digest) {
        this.#trust.add(digest)
        return 'sound'
      }
      if (quarantine) await this.#quarantine(digest, ino)
      return 'damaged'
    } finally {
      await handle.close()
    }
  }

  /** Stops the scan of the disk. Open blobs stay open. */
  async close(): Promise<void> {
    this.#closing.abort()
    await this.ready
  }

  async #scan(): Promise<void> {
    try {
      await this.#index.scan(this.#layout, this.#closing.signal)
      this.#isReady = !this.#closing.signal.aborted
    } catch (error) {
      if (getErrno(error) === undefined) throw error
      // Continue, because `stat` and `open` find blobs that the scan has missed.
      this.#options.logger.error({ error: String(error) }, 'could not scan the stored blobs')
    }
  }

  async #openFile(digest: Digest): Promise<FileHandle | undefined> {
    if (this.#isReady && !this.sizes.has(digest)) return undefined
    try {
      return await open(this.#layout.blob(digest), 'r')
    } catch (error) {
      if (getErrno(error) !== 'ENOENT') throw error
      if (this.sizes.has(digest)) await this.#removeIfAbsent(digest)
      return undefined
    }
  }

  /** Removes a blob from the index when its file was deleted from outside. Checks again, because it may just have been published. */
  #removeIfAbsent(digest: Digest): Promise<void> {
    return this.#changes.run(digest, async () => {
      if (!(await pathExists(this.#layout.blob(digest)))) this.#removeFromIndex(digest)
    })
  }

  async #openSized(digest: Digest, expectedSize: number | undefined): Promise<SizedFile | undefined> {
    const handle = await this.#openFile(digest)
    if (!handle) return undefined
    let isKept = false
    try {
      const { size, ino } = await handle.stat()
      const expected = expectedSize ?? this.sizes.get(digest) ?? size
      isKept = size === expected
      if (isKept) return { handle, size, ino }
      // Verify the hash first, because a descriptor may have a wrong size: a manifest must not remove blobs of other repositories.
      if (!(await hasDigest(digest, handle))) await this.#quarantine(digest, ino)
      return undefined
    } finally {
      if (!isKept) await handle.close()
    }
  }

  /** Returns the open blob when the test succeeds; else closes and quarantines it. */
  async #keepIf(digest: Digest, file: SizedFile, test: () => Promise<boolean>): Promise<OpenBlob | undefined> {
    let isKept = false
    try {
      isKept = await test()
      if (isKept) return new FileOpenBlob(digest, file.size, file.handle)
      await this.#quarantine(digest, file.ino)
      return undefined
    } finally {
      if (!isKept) await file.handle.close()
    }
  }

  #publish(temporary: string, digest: Digest, size: number): Promise<void> {
    return this.#changes.run(digest, async () => {
      const path = this.#layout.blob(digest)
      const before = await this.stat(digest)
      await rename(temporary, path).catch(async (error: unknown) => {
        const code = getErrno(error)
        // A folder is in the way.
        if (code === 'EISDIR') await this.#moveToQuarantine(digest, path)
        else if (code === 'ENOENT' && (await pathExists(temporary))) await makeStoreFolders(this.#layout)
        else throw error
        await rename(temporary, path)
      })
      try {
        await (this.#options.syncFolder ?? syncFolder)(this.#layout.blobFolder(getDigestAlgorithm(digest)))
      } catch (error) {
        if (before === undefined) {
          // Remove the blob, because it may be lost after a power failure.
          this.#removeFromIndex(digest)
          await rm(path, { force: true })
        } else this.#index.set(digest, size)
        // Keep a blob that existed before, because other images may need it: a power failure leaves the old file or the new one.
        throw error
      }
      this.#index.set(digest, size)
      this.#trust.add(digest)
    })
  }

  /** Quarantines the file with this inode only, because an intact one may have replaced it since it was read. */
  #quarantine(digest: Digest, inode: number): Promise<void> {
    if (this.#options.isReadOnly) return Promise.resolve()
    return this.#changes.run(digest, async () => {
      const path = this.#layout.blob(digest)
      try {
        if ((await stat(path)).ino !== inode) return
        await this.#moveToQuarantine(digest, path)
      } catch (error) {
        if (getErrno(error) !== 'ENOENT') throw error
      }
      this.#removeFromIndex(digest)
    })
  }

  async #moveToQuarantine(digest: Digest, path: string): Promise<void> {
    const target = this.#layout.quarantined(digest)
    await rename(path, target)
    const now = new Date()
    await utimes(target, now, now)
    this.#options.logger.warn({ digest, movedTo: target }, 'a stored blob is damaged; it will be fetched again')
    this.#options.onDamaged?.(digest)
  }

  #removeFromIndex(digest: Digest): void {
    this.#index.delete(digest)
    this.#trust.delete(digest)
  }
}

interface SizedFile {
  readonly handle: FileHandle
  readonly size: number
  readonly ino: number
}

/** Represents an open file of a published blob. It stays readable when the blob is removed meanwhile. */
export class FileOpenBlob implements OpenBlob {
  readonly digest: Digest
  readonly size: number
  readonly #handle: FileHandle

  constructor(digest: Digest, size: number, handle: FileHandle) {
    this.digest = digest
    this.size = size
    this.#handle = handle
  }

  get fd(): number {
    return this.#handle.fd
  }

  async read(buffer: Uint8Array, position: number): Promise<number> {
    const length = Math.min(buffer.length, this.size - position)
    if (length <= 0) return 0
    return (await this.#handle.read(buffer, 0, length, position)).bytesRead
  }

  close(): Promise<void> {
    return this.#handle.close()
  }
}

/** Decides whether a blob must be verified when it is opened, and verifies it. */
class BlobTrust {
  readonly #options: BlobTrustOptions
  /** Holds the blobs verified or written since the start. They are recorded only while the others are suspect. */
  readonly #sound = new Set<Digest>()
  readonly #checks = new Map<string, Promise<boolean>>()

  constructor(options: BlobTrustOptions) {
    this.#options = options
  }

  /** Records that a blob is intact. */
  add(digest: Digest): void {
    if (this.#options.suspect) this.#sound.add(digest)
  }

  delete(digest: Digest): void {
    this.#sound.delete(digest)
  }

  /** Checks that none of these blobs is suspect. */
  hasAll(digests: Iterable<Digest>): boolean {
    if (!this.#options.suspect) return true
    for (const digest of digests) if (!this.#sound.has(digest)) return false
    return true
  }

  /** Checks that the blob is intact, by its hash when it is suspect. */
  async isSound(digest: Digest, handle: FileHandle, inode: number): Promise<boolean> {
    if (this.#options.verifyReads === 'always') return hasDigest(digest, handle)
    if (this.hasAll([digest])) return true
    // Share one verification among all callers that open the same file meanwhile.
    const key = `${digest} ${inode}`
    const running = this.#checks.get(key)
    if (running) return running
    const check = hasDigest(digest, handle).finally(() => this.#checks.delete(key))
    this.#checks.set(key, check)
    const isSound = await check
    if (isSound) this.add(digest)
    return isSound
  }
}
