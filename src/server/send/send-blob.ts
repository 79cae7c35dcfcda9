import { once } from 'node:events'
import type { ServerResponse } from 'node:http'
import type { ByteRange } from '../../oci/headers.ts'
import type { OpenBlob } from '../../oci/registry.ts'

/** Bytes copied at a time: larger buffers cost memory with many clients, smaller ones cost time. */
const bufferBytes = 128 * 1024

/** Sends a part of a stored blob as the body of a response whose head is written. Rejects when the client disconnects. */
export type SendBlob = (
  response: ServerResponse,
  blob: OpenBlob,
  range: ByteRange,
  signal: AbortSignal,
) => Promise<void>

export interface BlobSender {
  readonly sendBlob: SendBlob
  /** Limits the time without an accepted byte, after which the client is disconnected, ms. */
  readonly idle: number
}

/**
 * Copies a body to a response chunk by chunk, at the client's pace: the next chunk is read after the kernel accepted the one before, so
 * a slow client costs one buffer. A client that accepts no bytes for `idle` ms is disconnected.
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
    // Reuses the buffer only after a complete copy, because the socket may still read a chunk that was not flushed.
    if (!options.signal.aborted && !response.destroyed) options.buffers.give(buffer)
  }
}

/** Waits until the responses before it on its connection are sent, because its body would occupy memory meanwhile. */
export async function waitForTurn(response: ServerResponse, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted()
  if (response.socket) return
  // Writes the head, because Node counts it and stops reading a connection whose waiting responses have too many bytes.
  response.flushHeaders()
  await once(response, 'socket', { signal })
}

/** Writes a chunk, and resolves when the kernel accepted it. Rejects when the client disconnects, or accepts no bytes for `idle` ms. */
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
    // The socket's timer restarts with any progress: it ends a client that is stuck, not a slow one.
    response.socket?.setTimeout(idle)
    response.write(chunk, (error) => {
      response.socket?.setTimeout(0)
      signal.removeEventListener('abort', onAbort)
      if (error) reject(error)
      else resolve()
    })
  })
}

/** Reuses buffers, so that they are not garbage-collected. */
export class BufferPool {
  readonly #free: Uint8Array[] = []

  take(): Uint8Array {
    return this.#free.pop() ?? Buffer.allocUnsafeSlow(bufferBytes)
  }

  give(buffer: Uint8Array): void {
    if (this.#free.length < 64) this.#free.push(buffer)
  }
}

/** Creates the portable way to send a blob: it reads the file and writes to the socket. */
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
