import { readFileSync, readSync, statfsSync } from 'node:fs'
import type { Server } from 'node:http'
import type { Socket } from 'node:net'
import { setImmediate as nextTurn } from 'node:timers/promises'
import type { LibraryHandle } from 'koffi'
import { isSet } from '../../lib/process.ts'
import { type BlobSender, BufferPool, createPortableSendBlob, type SendBlob, writeChunk } from './send-blob.ts'

/** Bytes sent at once before other requests get their turn: about a quarter of a millisecond. */
const turnBytes = 1024 * 1024
/** Bytes written to a full socket by the event loop: their callback reports that the socket has room again. */
const probeBytes = 16 * 1024

export interface SendBlobChoice {
  /** Names the way in which stored blobs are sent. */
  readonly kind: 'sendfile' | 'portable'
  readonly sending: BlobSender
  /** Sets the congestion control of a listener whose clients are on this machine; undefined where it would change nothing. */
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

interface NativeSendingOptions {
  /** Limits the time without an accepted byte, after which the client is disconnected, ms. */
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
    if (!socket || response.chunkedEncoding || getDescriptor(socket) === undefined)
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
      const descriptor = socket.writableLength === 0 ? getDescriptor(socket) : undefined
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

/** Returns the descriptor of a plain, open socket; undefined for a destroyed socket, whose number another file may have by now. */
function getDescriptor(socket: Socket): number | undefined {
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
    // Reno is always there and needs no privilege. A connection that has begun to pace would continue, so the listener sets it.
    if (typeof handle?.fd === 'number') libc.setCongestionControl(handle.fd, 'reno')
  }
}

/** Returns true if the default congestion control paces. https://docs.kernel.org/networking/ip-sysctl.html#tcp-variables */
function isPaced(): boolean {
  try {
    return readFileSync('/proc/sys/net/ipv4/tcp_congestion_control', 'utf8').startsWith('bbr')
  } catch {
    return false // The setting cannot be read, so it stays as it is.
  }
}

/** Sets the distance between the pages that `isInMemory` samples. */
const strideBytes = 256 * 1024
/** Architectures on which `off_t` has 64 bits in every C library. */
const wideArchitectures = new Set(['x64', 'arm64', 'riscv64', 'loong64', 'ppc64', 's390x'])
/** Is the `f_type` of tmpfs. https://man7.org/linux/man-pages/man2/statfs.2.html */
const tmpfs = 0x0102_1994
const rwfNoWait = 8
const protocolTcp = 6
const tcpCongestion = 13

/** Offers system calls that Node does not have, through the C library. */
interface Libc {
  /** Returns the bytes that the socket took, 0 when it is full; undefined when this file or socket does not support the call. */
  sendfile(socket: number, file: number, position: number, length: number): number | undefined
  /** Checks whether these bytes of a file can be read without waiting for a disk; samples one page in each 256 KiB. */
  isInMemory(file: number, first: number, last: number): boolean
  /**
   * Sets the congestion control algorithm (`reno`) of a socket; a listening socket passes it to the connections that it accepts.
   * Returns whether the kernel agreed.
   */
  setCongestionControl(socket: number, algorithm: string): boolean
  /** Duplicates the descriptor `from` to `to`. Returns whether the kernel agreed. https://man7.org/linux/man-pages/man2/dup2.2.html */
  readonly duplicate: (this: void, from: number, to: number) => boolean
  /**
   * Returns freed memory from the C library to the system, on a thread of its own; undefined where the library is not GNU's.
   * https://man7.org/linux/man-pages/man3/malloc_trim.3.html
   */
  readonly trimMemory: (() => Promise<void>) | undefined
}

type Call = (...values: (number | ArrayBufferView)[]) => number

/**
 * Binds the calls. Undefined on another system than Linux, and where the library or one of the calls is missing.
 * https://man7.org/linux/man-pages/man2/sendfile.2.html, …/man2/readv.2.html for RWF_NOWAIT, …/man7/tcp.7.html
 */
export async function loadLibc({
  platform,
  arch,
}: Pick<NodeJS.Process, 'platform' | 'arch'>): Promise<Libc | undefined> {
  if (platform !== 'linux' || !wideArchitectures.has(arch)) return undefined
  try {
    const { default: koffi } = await import('koffi')
    // Resolves to the C library that this process is linked to, whatever its file name.
    const library = koffi.load(null)
    const sendfile = library.func('int64_t sendfile(int to, int from, void *offset, size_t count)') as Call
    const preadv2 = library.func('int64_t preadv2(int file, void *parts, int count, int64_t offset, int flags)') as Call
    const setsockopt = library.func(
      'int setsockopt(int socket, int level, int name, const void *value, uint32_t length)',
    ) as Call
    const dup2 = library.func('int dup2(int from, int to)') as Call
    const trimMemory = bindTrim(library)
    const { EAGAIN, EINTR, EOPNOTSUPP } = koffi.os.errno
    const offset = new BigInt64Array(1)
    // Receives the sampled byte: an iovec with one part.
    const parts = new BigUint64Array([koffi.alloc('uint8_t', 1), 1n])

    return {
      sendfile(socket, file, position, length) {
        offset[0] = BigInt(position)
        const sent = sendfile(socket, file, offset, length)
        if (sent >= 0) return sent
        const reason = koffi.errno()
        return reason === EAGAIN || reason === EINTR ? 0 : undefined
      },
      isInMemory(file, first, last) {
        const isCached = (at: number) => preadv2(file, parts, 1, at, rwfNoWait) >= 0
        for (let at = first; at < last; at += strideBytes) {
          if (!isCached(at)) return koffi.errno() === EOPNOTSUPP && isMemoryOnly(file)
        }
        return isCached(last)
      },
      setCongestionControl(socket, algorithm) {
        const name = Buffer.from(algorithm)
        return setsockopt(socket, protocolTcp, tcpCongestion, name, name.length) === 0
      },
      duplicate: (from, to) => dup2(from, to) === to,
      trimMemory,
    }
  } catch {
    return undefined // koffi throws plain errors for a missing library or call; the portable path does the same work.
  }
}

function bindTrim(library: LibraryHandle): Libc['trimMemory'] {
  try {
    const trim = library.func('int malloc_trim(size_t pad)')
    return () => new Promise((resolve) => void trim.async(0, () => resolve()))
  } catch {
    return undefined // musl has no such call; koffi throws a plain error.
  }
}

/** Checks whether the file's file system keeps everything in memory, so that no read waits for a disk. */
function isMemoryOnly(file: number): boolean {
  return statfsSync(`/proc/self/fd/${file}`).type === tmpfs
}
