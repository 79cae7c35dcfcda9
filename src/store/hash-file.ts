import type { FileHandle } from 'node:fs/promises'
import { errnoOf } from '../lib/errors.ts'
import { createDigester, digestAlgorithm, type Digest, type DigestAlgorithm } from '../oci/digest.ts'

// Hashing one takes about a millisecond: other work comes in between.
const chunkBytes = 256 * 1024

/**
 * Hashes a file from its start; yields the bytes of every step, so that a caller can count, pace or stop it. Undefined
 * when the disk cannot give all bytes back.
 */
export async function* hashFile(
  handle: FileHandle,
  algorithm: DigestAlgorithm,
): AsyncGenerator<number, Digest | undefined> {
  const digester = createDigester(algorithm)
  const buffer = new Uint8Array(chunkBytes)
  let position = 0
  for (;;) {
    let bytesRead: number
    try {
      bytesRead = (await handle.read(buffer, 0, chunkBytes, position)).bytesRead
    } catch (error) {
      if (isUnreadable(error)) return undefined
      throw error
    }
    if (bytesRead === 0) return digester.digest()
    digester.update(buffer.subarray(0, bytesRead))
    position += bytesRead
    yield bytesRead
  }
}

/** Whether the file holds the bytes of this digest. */
export async function hashesTo(digest: Digest, handle: FileHandle): Promise<boolean> {
  const steps = hashFile(handle, digestAlgorithm(digest))
  for (;;) {
    const { done, value } = await steps.next()
    if (done) return value === digest
  }
}

/** All bytes of a small file, or undefined when the disk cannot give them back. */
export async function readWhole(handle: FileHandle): Promise<Uint8Array<ArrayBuffer> | undefined> {
  try {
    return new Uint8Array(await handle.readFile())
  } catch (error) {
    if (isUnreadable(error)) return undefined
    throw error
  }
}

/** A broken disk, or a folder in the place of a file: the content is lost, whatever it was. */
function isUnreadable(error: unknown): boolean {
  return errnoOf(error) === 'EIO' || errnoOf(error) === 'EISDIR'
}
