import { readFileSync, readSync } from 'node:fs'
import type { Server } from 'node:http'
import type { Socket } from 'node:net'
import { setImmediate as nextTurn } from 'node:timers/promises'
import type { BlobSender } from '../pull.ts'
import { type Libc, loadLibc } from './libc.ts'
import { BufferPool, createPortableSendBlob, type SendBlob, writeChunk } from './send-blob.ts'

/** Bytes sent at once before other requests get their turn: about a quarter of a millisecond. */
const turnBytes = 1024 * 1024
/** Bytes written to a full socket by the event loop: their callback reports that the socket has room again. */
const probeBytes = 16 * 1024

export interface SendBlobChoice {
  /** The way in which stored blobs are sent. */
  readonly kind: 'sendfile' | 'portable'
  readonly sending: BlobSender
  /** For a listener whose clients are on this machine; undefined where it would change nothing. */
  readonly setCongestionControl: ((server: Server) => void) | undefined
  /** Returns freed memory to the system; undefined where there is no such call. */
  readonly trimMemory: Libc['trimMemory']
}

/**
 * Chooses the fastest way to send blobs on this machine. `idle`: ms after which a client that accepts no bytes is disconnected.
 * `plain`: clients connect without TLS, so that the kernel can write to their sockets.
 */
export async function chooseSendBlob(options: {
  readonly idle: number
  readonly plain: boolean
  readonly env: Readonly<Record<string, string | undefined>>
}): Promise<SendBlobChoice> {
  const { idle, plain, env } = options
  const buffers = new BufferPool()
  const portable = createPortableSendBlob({ idle, buffers })
  const libc = isSet(env['MIRROR_NO_SENDFILE']) ? undefined : await loadLibc(process)
  const native = libc && plain ? createNativeSendBlob({ idle, portable, libc }) : undefined
  return {
    kind: native ? 'sendfile' : 'portable',
    sending: { idle, sendBlob: native ?? portable },
    setCongestionControl: createCongestionControl(libc),
    trimMemory: libc?.trimMemory,
  }
}

function isSet(value: string | undefined): boolean {
  return value !== undefined && value !== '' && value !== '0' && value !== 'false'
}

interface NativeSendingOptions {
  /** A client that accepts no bytes for so long is disconnected; ms. */
  readonly idle: number
  /** Sends what sendfile cannot. */
  readonly portable: SendBlob
  readonly libc: Libc
}

/** Sends with `sendfile(2)`: the kernel moves the file's pages to the socket, and no byte passes through this process. */
export function createNativeSendBlob({ libc, portable, idle }: NativeSendingOptions): SendBlob {
  return async (response, blob, range, signal) => {
    const { socket } = response
    // A response that waits for its turn on a pipelined connection has no socket yet, a TLS response has no plain socket, and a
    // response without a length announces the length of each chunk.
    if (!socket || response.chunkedEncoding || descriptorOf(socket) === undefined)
      return portable(response, blob, range, signal)
    response.flushHeaders()
    let { start } = range
    while (start <= range.end) {
      signal.throwIfAborted()
      const end = Math.min(start + turnBytes - 1, range.end)
      // A page that has to come from the disk would block the event loop here; the portable path reads it on a thread.
      if (!libc.isInMemory(blob.fd, start, end)) {
        await portable(response, blob, { start, end }, signal)
        start = end + 1
        continue
      }
      const descriptor = socket.writableLength === 0 ? descriptorOf(socket) : undefined
      const sent = descriptor === undefined ? 0 : libc.sendfile(descriptor, blob.fd, start, end + 1 - start)
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

/** The descriptor of a plain, open socket; undefined for a destroyed socket, whose number another file may have by now. */
function descriptorOf(socket: Socket): number | undefined {
  const { _handle: handle } = socket as { _handle?: { fd?: unknown } | null }
  if (socket.destroyed || 'encrypted' in socket) return undefined
  const descriptor = handle?.fd
  return typeof descriptor === 'number' && descriptor >= 0 ? descriptor : undefined
}

/**
 * Disables pacing for the connections that a listener accepts, where this machine paces what it sends (as BBR does). Pacing is
 * made for long paths: on a path that does not leave the machine, each timer costs more than the packet that it delays.
 * Undefined where nothing is paced, or the process cannot change it.
 */
function createCongestionControl(libc: Libc | undefined): ((server: Server) => void) | undefined {
  if (!libc || !isPaced()) return undefined
  return (server) => {
    const { _handle: handle } = server as { _handle?: { fd?: unknown } | null }
    // Reno is always there and needs no privilege. A connection that has begun to pace would go on, so the listener sets it.
    if (typeof handle?.fd === 'number') libc.setCongestionControl(handle.fd, 'reno')
  }
}

/** https://docs.kernel.org/networking/ip-sysctl.html#tcp-variables */
function isPaced(): boolean {
  try {
    return readFileSync('/proc/sys/net/ipv4/tcp_congestion_control', 'utf8').startsWith('bbr')
  } catch {
    return false // The setting cannot be read, so it stays as it is.
  }
}
