import { readFileSync, readSync, statfsSync } from 'node:fs'
import type { Server } from 'node:http'
import type { Socket } from 'node:net'
import { setImmediate as nextTurn } from 'node:timers/promises'
import type { LibraryHandle } from 'koffi'
import type { BlobSending } from '../pull.ts'
import { BufferPool, createPortableSendBlob, type SendBlob, writeChunk } from './send-blob.ts'

interface NativeSendingOptions {
  /** A client that takes nothing for so long is cut off; ms. */
  readonly idle: number
  /** Sends what the kernel is not to send. */
  readonly portable: SendBlob
  readonly libc: Libc
}

/** Bytes sent in one go before others get their turn: about a quarter of a millisecond. */
const turnBytes = 1024 * 1024
/** Bytes that go through a full socket itself: their callback is the kernel saying that there is room again. */
const probeBytes = 16 * 1024

/**
 * Sending by `sendfile(2)`: the kernel moves the file's pages to the socket, and no byte passes through this process.
 */
export function createNativeSendBlob({ libc: kernel, portable, idle }: NativeSendingOptions): SendBlob {
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

/**
 * Has the connections that a listener takes on sent as fast as they are taken, where this machine paces what it sends (BBR
 * does). That is made for long ways: on one that does not leave the machine each timer costs more than the packet it holds
 * back. Undefined where nothing is paced, or nothing can be done about it.
 */
function createCongestionControl(kernel: Libc | undefined): ((server: Server) => void) | undefined {
  if (!kernel || !isPaced()) return undefined
  return (server) => {
    const { _handle: handle } = server as { _handle?: { fd?: unknown } | null }
    // Always there, and allowed to everybody. A connection that has begun to pace would go on: hence the listener.
    if (typeof handle?.fd === 'number') kernel.setCongestionControl(handle.fd, 'reno')
  }
}

/** https://docs.kernel.org/networking/ip-sysctl.html#tcp-variables */
function isPaced(): boolean {
  try {
    return readFileSync('/proc/sys/net/ipv4/tcp_congestion_control', 'utf8').startsWith('bbr')
  } catch {
    return false // Hidden from us; what it is then stays as it is.
  }
}

/** The calls that Node has no words for. */
interface Libc {
  /** The bytes that the socket took, 0 when it is full; undefined when this file or socket is not to be had in this way. */
  sendfile(socket: number, file: number, position: number, length: number): number | undefined
  /** Whether these bytes of a file can be had without waiting for a disk; looks at a page here and there. */
  isInMemory(file: number, first: number, last: number): boolean
  /** How a socket, and those a listening one takes on, sends: `reno`. Whether the kernel agreed. */
  setCongestionControl(socket: number, algorithm: string): boolean
  /** Makes the descriptor `to` mean what `from` means. Whether the kernel agreed. https://man7.org/linux/man-pages/man2/dup2.2.html */
  readonly duplicate: (this: void, from: number, to: number) => boolean
  /**
   * Gives the system back what the C library keeps of freed memory, in a thread of its own; undefined where the library is not
   * GNU's. https://man7.org/linux/man-pages/man3/malloc_trim.3.html
   */
  readonly trimMemory: (() => Promise<void>) | undefined
}

/** How far apart the pages lie that are looked for in memory. */
const strideBytes = 256 * 1024
/** Where `off_t` has 64 bits in every C library. */
const wideArchitectures = new Set(['x64', 'arm64', 'riscv64', 'loong64', 'ppc64', 's390x'])

/**
 * Undefined where there is no Linux, no library to call it by, or no such call.
 * https://man7.org/linux/man-pages/man2/sendfile.2.html, …/man2/readv.2.html for RWF_NOWAIT, …/man7/tcp.7.html
 */
export async function loadLibc({
  platform,
  arch,
}: Pick<NodeJS.Process, 'platform' | 'arch'>): Promise<Libc | undefined> {
  if (platform !== 'linux' || !wideArchitectures.has(arch)) return undefined
  try {
    const { default: koffi } = await import('koffi')
    // The C library that this process stands on, whatever its name.
    const library = koffi.load(null)
    const sendfile = library.func('int64_t sendfile(int to, int from, void *offset, size_t count)') as Call
    const preadv2 = library.func('int64_t preadv2(int file, void *parts, int count, int64_t offset, int flags)') as Call
    const setsockopt = library.func(
      'int setsockopt(int socket, int level, int name, const void *value, uint32_t length)',
    ) as Call
    const dup2 = library.func('int dup2(int from, int to)') as Call
    const trim = trimOf(library)
    const { EAGAIN, EINTR, EOPNOTSUPP } = koffi.os.errno
    const offset = new BigInt64Array(1)
    // Where the byte that is looked at goes: an iovec of one.
    const parts = new BigUint64Array([koffi.alloc('uint8_t', 1), 1n])
    const rwfNoWait = 8
    const protocolTcp = 6
    const tcpCongestion = 13

    return {
      sendfile(socket, file, position, length) {
        offset[0] = BigInt(position)
        const sent = sendfile(socket, file, offset, length)
        if (sent >= 0) return sent
        const reason = koffi.errno()
        return reason === EAGAIN || reason === EINTR ? 0 : undefined
      },
      isInMemory(file, first, last) {
        const isThere = (at: number) => preadv2(file, parts, 1, at, rwfNoWait) >= 0
        for (let at = first; at < last; at += strideBytes) {
          if (!isThere(at)) return koffi.errno() === EOPNOTSUPP && isMemoryOnly(file)
        }
        return isThere(last)
      },
      setCongestionControl(socket, algorithm) {
        const name = Buffer.from(algorithm)
        return setsockopt(socket, protocolTcp, tcpCongestion, name, name.length) === 0
      },
      duplicate: (from, to) => dup2(from, to) === to,
      trimMemory: trim && (() => new Promise((resolve) => trim.async(0, () => resolve()))),
    }
  } catch {
    return undefined // A library or a call that is not there, in words that are koffi's own; the portable way does the same.
  }
}

function trimOf(library: LibraryHandle): AsyncCall | undefined {
  try {
    return library.func('int malloc_trim(size_t pad)')
  } catch {
    return undefined // musl has none, in words that are koffi's own.
  }
}

interface AsyncCall {
  async(value: number, done: (error: unknown) => void): void
}

type Call = (...values: (number | ArrayBufferView)[]) => number

const tmpfs = 0x0102_1994

/** Whether the file system has no disk that could keep one waiting. */
function isMemoryOnly(file: number): boolean {
  return statfsSync(`/proc/self/fd/${file}`).type === tmpfs
}

export interface SendBlobChoice {
  /** How stored blobs leave. */
  readonly kind: 'sendfile' | 'portable'
  readonly sending: BlobSending
  /** For a listener whose clients are on this machine; undefined where there is nothing to be done. */
  readonly setCongestionControl: ((server: Server) => void) | undefined
  /** Gives memory back to the system; undefined where there is no such call. */
  readonly trimMemory: Libc['trimMemory']
}

/**
 * The fastest way to send blobs that there is here. `idle`: a client that takes nothing for so long is cut off, ms.
 * `plain`: clients come without TLS, so that the kernel can write to them by itself.
 */
export async function chooseSendBlob(options: {
  readonly idle: number
  readonly plain: boolean
  readonly env: Readonly<Record<string, string | undefined>>
}): Promise<SendBlobChoice> {
  const { idle, plain, env } = options
  const buffers = new BufferPool()
  const portable = createPortableSendBlob({ idle, buffers })
  const kernel = isSet(env['MIRROR_NO_SENDFILE']) ? undefined : await loadLibc(process)
  const native = kernel && plain ? createNativeSendBlob({ idle, portable, libc: kernel }) : undefined
  return {
    kind: native ? 'sendfile' : 'portable',
    sending: { idle, sendBlob: native ?? portable },
    setCongestionControl: createCongestionControl(kernel),
    trimMemory: kernel?.trimMemory,
  }
}

function isSet(value: string | undefined): boolean {
  return value !== undefined && value !== '' && value !== '0' && value !== 'false'
}
