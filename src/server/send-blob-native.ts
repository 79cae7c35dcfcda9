import { readSync } from 'node:fs'
import type { Socket } from 'node:net'
import { setImmediate as nextTurn } from 'node:timers/promises'
import type { Kernel } from './send/sendfile.ts'
import { writeChunk, type SendBlob } from './send/send-blob.ts'

export interface NativeSendingOptions {
  /** A client that takes nothing for so long is cut off; ms. */
  readonly idle: number
  /** Sends what the kernel is not to send. */
  readonly portable: SendBlob
  readonly kernel: Kernel
}

/** Bytes sent in one go before others get their turn: about a quarter of a millisecond. */
const turnBytes = 1024 * 1024
/** Bytes that go through a full socket itself: their callback is the kernel saying that there is room again. */
const probeBytes = 16 * 1024

/**
 * Sending by `sendfile(2)`: the kernel moves the file's pages to the socket, and no byte passes through this process.
 */
export function createNativeSendBlob({ kernel, portable, idle }: NativeSendingOptions): SendBlob {
  return async (response, blob, range, signal) => {
    const { socket } = response
    // A response that waits for its turn on a pipelined connection has no socket yet, one with TLS no plain one, and one
    // without a length says before each chunk how long it is.
    if (!socket || response.chunkedEncoding || descriptorOf(socket) === undefined)
      return portable(response, blob, range, signal)
    response.flushHeaders()
    let { start } = range
    while (start <= range.end) {
      signal.throwIfAborted()
      const end = Math.min(start + turnBytes - 1, range.end)
      // A page that has to come from the disk would keep everybody waiting here; a thread of its own reads it.
      if (!kernel.isInMemory(blob.fd, start, end)) {
        await portable(response, blob, { start, end }, signal)
        start = end + 1
        continue
      }
      const descriptor = socket.writableLength === 0 ? descriptorOf(socket) : undefined
      const sent = descriptor === undefined ? 0 : kernel.sendfile(descriptor, blob.fd, start, end + 1 - start)
      if (sent === undefined) return portable(response, blob, { start, end: range.end }, signal)
      start += sent
      if (start > end) {
        if (start <= range.end) await nextTurn()
        continue
      }
      const probe = Buffer.allocUnsafe(Math.min(probeBytes, end + 1 - start))
      const count = readSync(blob.fd, probe, 0, probe.length, start)
      if (count === 0) throw new Error('a stored blob ended before its size')
      await writeChunk(response, probe.subarray(0, count), { signal, idle })
      start += count
    }
  }
}

/** The descriptor of a plain, living socket. One that was destroyed has none: its number may be another's by now. */
function descriptorOf(socket: Socket): number | undefined {
  const { _handle: handle } = socket as { _handle?: { fd?: unknown } | null }
  if (socket.destroyed || 'encrypted' in socket) return undefined
  const descriptor = handle?.fd
  return typeof descriptor === 'number' && descriptor >= 0 ? descriptor : undefined
}
