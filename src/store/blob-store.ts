import type { Digest } from '../oci/digest.ts'

/** Content-addressed bytes. Absent is `undefined`, never thrown; disk failures are thrown as Node's system errors. */
export interface BlobStore {
  /** Size in bytes of a published blob. */
  stat(digest: Digest): Promise<number | undefined>
  /**
   * Opens a blob for reading. `expectedSize`: what its descriptor says; a blob of another size is damaged: it is quarantined
   * and counts as absent. When reads are to be verified (see `FileBlobStore`) a blob whose hash differs is treated the same.
   */
  open(digest: Digest, expectedSize?: number): Promise<OpenBlob | undefined>
  /** All bytes of a small blob (a manifest), hashed on every load; damaged or absent is undefined. */
  read(digest: Digest, limit: number): Promise<Uint8Array<ArrayBuffer> | undefined>
  /** Throws what the system says where no blob can be written: a read-only disk, no permission. */
  checkWritable(): Promise<void>
  /** A new, unpublished blob. */
  create(): Promise<BlobWriter>
  /** Publishes small bytes whose digest the caller has computed. */
  put(digest: Digest, bytes: Uint8Array): Promise<void>
  /** Takes a blob away; readers that hold it open finish. */
  remove(digest: Digest): Promise<void>
  /** Moves a damaged blob aside, so that it is fetched again; one that was published in its place since it was opened stays. */
  quarantine(blob: OpenBlob): Promise<void>
  /** What is published: digest and bytes. Complete once `ready` has resolved. */
  entries(): Iterable<readonly [Digest, number]>
  /** Resolves when the look through the disk at start is done. */
  readonly ready: Promise<void>
  /** Sum and number of published blobs. */
  readonly usage: { readonly bytes: number; readonly blobs: number }
}

export interface OpenBlob {
  readonly digest: Digest
  /** Bytes. */
  readonly size: number
  /** The descriptor, for senders that hand the file to the kernel. */
  readonly fd: number
  /** Reads at a position into the buffer; the number of bytes read, 0 at the end. */
  read(buffer: Uint8Array, position: number): Promise<number>
  close(): Promise<void>
}

/** A blob being written to a temp file that others may read while it grows. */
export interface BlobWriter {
  /** Bytes written so far, without a gap. */
  readonly size: number
  /** The descriptor, for those that read along by themselves. */
  readonly fd: number
  /** Appends. ENOSPC and other failures are thrown as they come; the file then holds exactly `size` bytes. */
  write(chunk: Uint8Array): Promise<void>
  /** Writes ahead, at a position beyond `size`; `extend` makes it count. A failure is a failure of `write`. */
  writeAt(position: number, chunk: Uint8Array): Promise<void>
  /** Says that everything up to this size has been written by `writeAt`. */
  extend(size: number): void
  /** Reads back what was written, also after commit and abort, until `close`. */
  read(buffer: Uint8Array, position: number): Promise<number>
  /** fsync, rename into place, fsync of the folder. The caller has checked that the bytes hash to this digest. */
  commit(digest: Digest): Promise<void>
  /** Unlinks the temp file; what was written can still be read until `close`. */
  abort(): Promise<void>
  /** Lets go of the file; an uncommitted one is unlinked. */
  close(): Promise<void>
}
