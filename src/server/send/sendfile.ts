import { statfsSync } from 'node:fs'
import type { LibraryHandle } from 'koffi'

/** The calls that Node has no words for. */
export interface Kernel {
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
export async function loadKernel({
  platform,
  arch,
}: Pick<NodeJS.Process, 'platform' | 'arch'>): Promise<Kernel | undefined> {
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
