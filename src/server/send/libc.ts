import { statfsSync } from 'node:fs'
import type { LibraryHandle } from 'koffi'

/** Distance between the pages that `isInMemory` samples. */
const strideBytes = 256 * 1024
/** Architectures on which `off_t` has 64 bits in every C library. */
const wideArchitectures = new Set(['x64', 'arm64', 'riscv64', 'loong64', 'ppc64', 's390x'])
/** The `f_type` of tmpfs. https://man7.org/linux/man-pages/man2/statfs.2.html */
const tmpfs = 0x0102_1994
const rwfNoWait = 8
const protocolTcp = 6
const tcpCongestion = 13

/** System calls that Node does not offer, by way of the C library. */
export interface Libc {
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

interface AsyncCall {
  async(value: number, done: (error: unknown) => void): void
}

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
    const trim = bindTrim(library)
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
      trimMemory: trim && (() => new Promise((resolve) => trim.async(0, () => resolve()))),
    }
  } catch {
    return undefined // koffi throws plain errors for a missing library or call; the portable path does the same work.
  }
}

function bindTrim(library: LibraryHandle): AsyncCall | undefined {
  try {
    return library.func('int malloc_trim(size_t pad)')
  } catch {
    return undefined // musl has no such call; koffi throws a plain error.
  }
}

/** Checks whether the file's file system keeps everything in memory, so that no read waits for a disk. */
function isMemoryOnly(file: number): boolean {
  return statfsSync(`/proc/self/fd/${file}`).type === tmpfs
}
