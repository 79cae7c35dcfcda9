import { readSync, statfsSync } from 'node:fs'
import type { Socket } from 'node:net'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { writeChunk, type SendBlob } from './send-blob.ts'

export interface NativeSendingOptions {
  /** A client that takes nothing for so long is cut off; ms. */
  readonly idle: number
  /** Sends what the kernel is not to send. */
  readonly portable: SendBlob
  readonly platform: NodeJS.Platform
  readonly arch: string
}

/** Bytes sent in one go before others get their turn: about a quarter of a millisecond. */
const turnBytes = 1024 * 1024
/** Bytes that go through a full socket itself: their callback is the kernel saying that there is room again. */
const probeBytes = 16 * 1024
/** How far apart the pages lie that are looked for in memory. */
const strideBytes = 256 * 1024
/** Where `off_t` has 64 bits in every C library. */
const wideArchitectures = new Set(['x64', 'arm64', 'riscv64', 'loong64', 'ppc64', 's390x'])

/**
 * Sending by `sendfile(2)`: the kernel moves the file's pages to the socket, and no byte passes through this process.
 * Undefined where there is no Linux, no library to call it by, or no such call.
 */
export async function createNativeSendBlob(options: NativeSendingOptions): Promise<SendBlob | undefined> {
  const { platform, arch, portable, idle } = options
  const kernel = platform === 'linux' && wideArchitectures.has(arch) ? await loadKernel() : undefined
  if (!kernel) return undefined
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

/** The calls that Node has no words for. */
interface Kernel {
  /** The bytes that the socket took, 0 when it is full; undefined when this file or socket is not to be had in this way. */
  sendfile(socket: number, file: number, position: number, length: number): number | undefined
  /** Whether these bytes of a file can be had without waiting for a disk; looks at a page here and there. */
  isInMemory(file: number, first: number, last: number): boolean
}

/** https://man7.org/linux/man-pages/man2/sendfile.2.html, …/readv.2.html for RWF_NOWAIT */
async function loadKernel(): Promise<Kernel | undefined> {
  try {
    const { default: koffi } = await import('koffi')
    // The C library that this process stands on, whatever its name.
    const library = koffi.load(null)
    const sendfile = library.func('int64_t sendfile(int to, int from, void *offset, size_t count)') as Call
    const preadv2 = library.func('int64_t preadv2(int file, void *parts, int count, int64_t offset, int flags)') as Call
    const { EAGAIN, EINTR, EOPNOTSUPP } = koffi.os.errno
    const offset = new BigInt64Array(1)
    // Where the byte that is looked at goes: an iovec of one.
    const parts = new BigUint64Array([koffi.alloc('uint8_t', 1), 1n])
    const rwfNoWait = 8

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
    }
  } catch {
    return undefined // A library or a call that is not there, in words that are koffi's own; the portable way does the same.
  }
}

type Call = (...values: (number | ArrayBufferView)[]) => number

const tmpfs = 0x0102_1994

/** Whether the file system has no disk that could keep one waiting. */
function isMemoryOnly(file: number): boolean {
  return statfsSync(`/proc/self/fd/${file}`).type === tmpfs
}

/** The descriptor of a plain, living socket. One that was destroyed has none: its number may be another's by now. */
function descriptorOf(socket: Socket): number | undefined {
  const { _handle: handle } = socket as { _handle?: { fd?: unknown } | null }
  if (socket.destroyed || 'encrypted' in socket) return undefined
  const descriptor = handle?.fd
  return typeof descriptor === 'number' && descriptor >= 0 ? descriptor : undefined
}
