import { once } from 'node:events'
import type { ServerResponse } from 'node:http'
import type { ByteRange } from '../../oci/headers.ts'
import type { OpenBlob } from '../../oci/registry.ts'

/** Sends a part of a stored blob as the body of a response whose head is written. Rejects when the client leaves. */
export type SendBlob = (
  response: ServerResponse,
  blob: OpenBlob,
  range: ByteRange,
  signal: AbortSignal,
) => Promise<void>

/** Bytes copied at a time: larger ones cost memory with many clients, smaller ones time. */
const bufferBytes = 128 * 1024

/**
 * Copies a body into a response chunk by chunk, at the client's pace: a chunk is read once the kernel has taken the one
 * before, so a client costs one buffer however slow it is. A client that takes nothing for `idle` ms is cut off.
 */
async function copyBody(
  response: ServerResponse,
  length: number,
  read: (buffer: Uint8Array) => Promise<number>,
  options: { readonly signal: AbortSignal; readonly idle: number; readonly buffers: BufferPool },
): Promise<void> {
  await waitForTurn(response, options.signal)
  const buffer = options.buffers.take()
  try {
    for (let left = length; left > 0;) {
      const count = await read(left < buffer.length ? buffer.subarray(0, left) : buffer)
      if (count === 0) throw new Error('a body ended before its announced length')
      await writeChunk(response, buffer.subarray(0, count), options)
      left -= count
    }
  } finally {
    // A chunk that was not flushed may still be read by the socket: only a finished copy gives its buffer back.
    if (!options.signal.aborted && !response.destroyed) options.buffers.give(buffer)
  }
}

/** Resolves when the answers to requests before it on its connection are out: a body that waited for them would lie in memory. */
export async function waitForTurn(response: ServerResponse, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted()
  if (response.socket) return
  // Node reads no further requests from a connection whose waiting answers have come to so many bytes.
  response.flushHeaders()
  await once(response, 'socket', { signal })
}

/** Resolves when the kernel has taken the chunk. Rejects when the client leaves, or takes nothing for `idle` ms. */
export function writeChunk(
  response: ServerResponse,
  chunk: Uint8Array,
  options: { signal: AbortSignal; idle: number },
): Promise<void> {
  const { signal, idle } = options
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(signal.reason)
    const onAbort = () => reject(signal.reason)
    signal.addEventListener('abort', onAbort, { once: true })
    // The socket's own timer counts progress, not completion: a slow client lives, a stuck one does not.
    response.socket?.setTimeout(idle)
    response.write(chunk, (error) => {
      response.socket?.setTimeout(0)
      signal.removeEventListener('abort', onAbort)
      if (error) reject(error)
      else resolve()
    })
  })
}

/** Buffers used again instead of being collected. */
export class BufferPool {
  readonly #free: Uint8Array[] = []

  take(): Uint8Array {
    return this.#free.pop() ?? Buffer.allocUnsafeSlow(bufferBytes)
  }

  give(buffer: Uint8Array): void {
    if (this.#free.length < 64) this.#free.push(buffer)
  }
}

/** Sending by reading the file: works everywhere. */
export function createPortableSendBlob(options: { readonly idle: number; readonly buffers: BufferPool }): SendBlob {
  return async (response, blob, { start, end }, signal) => {
    let position = start
    const read = async (buffer: Uint8Array) => {
      const count = await blob.read(buffer, position)
      position += count
      return count
    }
    await copyBody(response, end - start + 1, read, { ...options, signal })
  }
}
