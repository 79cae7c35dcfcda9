import { randomBytes } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, describe, expect, test } from 'vitest'
import { Downloads } from '../../../src/cache/downloads.ts'
import { type Download, type DownloadOptions, startDownload } from '../../../src/cache/download/download.ts'
import { createDeferred } from '../../../src/lib/async.ts'
import { createBufferRelease, upstreamBodies } from '../../../src/lib/body-memory.ts'
import { createSystemError } from '../../../src/lib/errors.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { type Clock, systemClock } from '../../../src/lib/time.ts'
import { computeDigest } from '../../../src/oci/reference.ts'
import { anonymousIdentity, type Follower, type Piece, type Portion } from '../../../src/oci/registry.ts'
import type { BlobStore, BlobWriter } from '../../../src/store/blob-store.ts'
import { createHashPool } from '../../../src/store/hashing.ts'
import { type FetchedBlob, UpstreamError } from '../../../src/upstream/upstream.ts'
import { withStore } from '../../support/temporary-store.ts'

const blob = randomBytes(400_000)
const digest = computeDigest(blob)
const hashes = createHashPool(2)
afterAll(() => hashes.close())
/** Shortens the pauses between attempts. */
const hasty: Clock = { ...systemClock, sleep: () => Promise.resolve() }

async function* chunks(bytes: Uint8Array, size = 50_000): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) {
    yield bytes.subarray(at, at + size)
    await sleep(1)
  }
}

function answer(body: AsyncIterable<Uint8Array>, size: number | undefined = blob.length): FetchedBlob {
  return { size, isPart: false, identity: anonymousIdentity, body }
}

function start(
  store: Pick<BlobStore, 'create'>,
  open: DownloadOptions['open'],
  extra: Partial<DownloadOptions> = {},
): Download {
  return startDownload({ ...usual(store, open), ...extra })
}

function usual(store: Pick<BlobStore, 'create'>, open: DownloadOptions['open']): DownloadOptions {
  return {
    digest,
    expectedSize: undefined,
    open,
    store,
    hashes,
    release: createBufferRelease(),
    makeRoom: () => Promise.resolve(),
    onBytes() {},
    onMismatch() {},
    onSettled() {},
    signal: new AbortController().signal,
    logger: silentLogger,
    clock: hasty,
  }
}

/** Returns the bytes of a piece. */
async function bytesOf(piece: Piece): Promise<Buffer> {
  if (piece.kind === 'memory') return Buffer.from(piece.bytes)
  const { start, end } = piece.range
  const buffer = Buffer.alloc(end + 1 - start)
  expect(await piece.file.read(buffer, start)).toBe(buffer.length)
  return buffer
}

/** Reads all bytes of a follower; returns them, and the error that ended it. */
async function readAll(
  download: Download,
  from = 0,
  pause = 0,
  portion: Portion = {},
): Promise<{ bytes: Buffer; error?: unknown }> {
  return readOn(download.follow(from, portion), async () => void (pause > 0 && (await sleep(pause))))
}

/** Reads the rest of a follower. Awaits `taken` after each piece. */
async function readOn(
  follower: Follower,
  taken: (length: number) => Promise<void>,
): Promise<{ bytes: Buffer; error?: unknown }> {
  const parts: Buffer[] = []
  try {
    for (;;) {
      const piece = await follower.next()
      if (!piece) return { bytes: Buffer.concat(parts) }
      const pause = taken(piece.kind === 'file' ? piece.range.end + 1 - piece.range.start : piece.bytes.length)
      parts.push(await bytesOf(piece))
      await pause
    }
  } catch (error) {
    return { bytes: Buffer.concat(parts), error }
  } finally {
    follower.close()
  }
}

describe('a download', () => {
  test('gives all followers the same bytes, whenever and wherever they start', () =>
    withStore(async ({ blobs }) => {
      const download = start(blobs, () => Promise.resolve(answer(chunks(blob))))
      const early = [readAll(download), readAll(download, 0, 2), readAll(download, 123_456)]
      await sleep(10)
      const [first, slow, part, late] = await Promise.all([early[0]!, early[1]!, early[2]!, readAll(download)])
      expect(first.bytes.equals(blob)).toBe(true)
      expect(slow.bytes.equals(blob)).toBe(true)
      expect(part.bytes.equals(blob.subarray(123_456))).toBe(true)
      expect(late.bytes.equals(blob)).toBe(true)
      expect(await download.settled).toBe(true)
      expect(await blobs.stat(digest)).toBe(blob.length)
    }))

  test('finishes after all followers have left', () =>
    withStore(async ({ blobs }) => {
      const download = start(blobs, () => Promise.resolve(answer(chunks(blob))))
      await download.started
      download.follow(0).close()
      expect(await download.settled).toBe(true)
    }))

  test('withholds the last bytes until the digest is verified, and stores no wrong bytes', () =>
    withStore(async ({ blobs }) => {
      const wrong = Buffer.from(blob)
      wrong[0] = wrong[0]! ^ 1
      let mismatches = 0
      const download = start(blobs, () => Promise.resolve(answer(chunks(wrong))), { onMismatch: () => mismatches++ })
      const readers = await Promise.all([readAll(download), readAll(download)])
      for (const { bytes, error } of readers) {
        expect(bytes.length).toBeLessThanOrEqual(blob.length - 32 * 1024)
        expect(error).toMatchObject({ failure: 'invalid' })
      }
      expect(mismatches).toBe(1)
      expect(await download.settled).toBe(false)
      expect(await blobs.stat(digest)).toBeUndefined()
    }))

  test('withholds the end of a range until the digest of the whole blob is verified', () =>
    withStore(async ({ blobs }) => {
      const wrong = Buffer.from(blob)
      wrong[399_999]! ^= 1
      const download = start(blobs, () => Promise.resolve(answer(chunks(wrong))))
      const readers = await Promise.all([
        readAll(download, 0, 0, { end: 100_000 }),
        readAll(download, 150_000, 2, { end: 250_000 }),
        readAll(download, 200_000, 0, { end: 201_000 }),
      ])
      expect(readers.map(({ bytes }) => bytes.length)).toEqual([100_000 - 32 * 1024, 100_000 - 32 * 1024, 0])
      for (const { error } of readers) expect(error).toMatchObject({ failure: 'invalid' })
    }))

  test('sends no byte of an all-or-nothing answer before the digest is verified', () =>
    withStore(async ({ blobs }) => {
      const wrong = Buffer.from(blob)
      wrong[399_999]! ^= 1
      for (const body of [wrong, blob]) {
        const download = start(blobs, () => Promise.resolve({ ...answer(chunks(body)), size: undefined }))
        const { bytes } = await readAll(download, 0, 0, { isAllOrNothing: true })
        expect(bytes.equals(body === blob ? blob : Buffer.alloc(0))).toBe(true)
        expect(download.size).toBe(body === blob ? blob.length : undefined)
      }
    }))

  test('resumes a broken body where it broke', () =>
    withStore(async ({ blobs }) => {
      const asked: number[] = []
      async function* broken(from: number, upTo: number): AsyncGenerator<Uint8Array> {
        yield* chunks(blob.subarray(from, upTo))
        throw new UpstreamError('unavailable', 502, 'cut')
      }
      const download = start(blobs, (from) => {
        asked.push(from)
        return Promise.resolve(answer(asked.length < 3 ? broken(from, from + 100_000) : chunks(blob.subarray(from))))
      })
      expect((await readAll(download)).bytes.equals(blob)).toBe(true)
      expect(asked).toEqual([0, 100_000, 200_000])
    }))

  test('sends no further request when all bytes have arrived and only the end of the body is missing', () =>
    withStore(async ({ blobs }) => {
      const asked: number[] = []
      async function* endless(): AsyncGenerator<Uint8Array> {
        yield* chunks(blob)
        throw new UpstreamError('unavailable', 502, 'cut')
      }
      const download = start(blobs, (from) => {
        asked.push(from)
        return Promise.resolve(answer(endless()))
      })
      expect((await readAll(download)).bytes.equals(blob)).toBe(true)
      expect(asked).toEqual([0])
      expect(await download.settled).toBe(true)
    }))

  test('fails for all followers after three resumptions', () =>
    withStore(async ({ blobs }) => {
      let asked = 0
      const dead: AsyncIterable<Uint8Array> = {
        [Symbol.asyncIterator]: () => ({
          next: () => Promise.reject(new UpstreamError('unavailable', 502, 'cut')),
        }),
      }
      const download = start(blobs, () => {
        asked += 1
        return Promise.resolve(answer(dead))
      })
      const readers = await Promise.all([readAll(download), readAll(download)])
      for (const { error } of readers) expect(error).toMatchObject({ failure: 'unavailable' })
      expect(asked).toBe(4)
      expect(await download.settled).toBe(false)
    }))

  test('refuses a size that differs from the descriptor', () =>
    withStore(async ({ blobs }) => {
      const download = start(blobs, () => Promise.resolve(answer(chunks(blob), blob.length + 1)), {
        expectedSize: blob.length,
      })
      await expect(download.started).rejects.toMatchObject({ failure: 'invalid', status: 502 })
    }))

  test('refuses a body that is longer or shorter than announced', () =>
    withStore(async ({ blobs }) => {
      for (const size of [blob.length - 1, blob.length + 1]) {
        const download = start(blobs, () => Promise.resolve(answer(chunks(blob), size)))
        expect((await readAll(download)).error).toMatchObject({ failure: 'invalid' })
      }
    }))

  test('takes no new followers once it is aborted, and sends no request if it was aborted before its start', () =>
    withStore(async ({ blobs }) => {
      const ending = new AbortController()
      let asked = 0
      const open = () => {
        asked += 1
        return Promise.resolve(answer(chunks(blob)))
      }
      const download = start(blobs, open, { signal: ending.signal })
      await download.started
      expect(download.canFollowFrom(0)).toBe(true)
      ending.abort(new UpstreamError('unavailable', 503, 'ended'))
      expect(download.canFollowFrom(0)).toBe(false)
      await download.settled
      await expect(start(blobs, open, { signal: ending.signal }).started).rejects.toThrow('ended')
      expect(asked).toBe(1)
    }))

  test('serves an empty blob', () =>
    withStore(async ({ blobs }) => {
      const empty = computeDigest(Buffer.alloc(0))
      const download = start(blobs, () => Promise.resolve(answer(chunks(Buffer.alloc(0)), 0)), { digest: empty })
      expect(await readAll(download)).toEqual({ bytes: Buffer.alloc(0) })
      expect(await download.settled).toBe(true)
    }))

  test('reads a body of unknown size to its end', () =>
    withStore(async ({ blobs }) => {
      const download = start(blobs, () =>
        Promise.resolve({ size: undefined, isPart: false, identity: anonymousIdentity, body: chunks(blob) }),
      )
      expect((await readAll(download)).bytes.equals(blob)).toBe(true)
    }))
})

describe('a download on a full disk', () => {
  /** Returns a store whose disk is full after this number of bytes. */
  function fullAfter(store: Pick<BlobStore, 'create'>, limit: number): Pick<BlobStore, 'create'> {
    return {
      async create() {
        const writer = await store.create()
        const write = async (chunk: Uint8Array) => {
          if (writer.size + chunk.length > limit) throw createSystemError('ENOSPC', 'write', 'no space left on device')
          await writer.write(chunk)
        }
        return new Proxy(writer, { get: (target, key) => (key === 'write' ? write : bound(target, key)) })
      },
    }
  }
  function bound(target: BlobWriter, key: string | symbol): unknown {
    const value: unknown = Reflect.get(target, key, target)
    return typeof value === 'function' ? (value.bind(target) as unknown) : value
  }

  test('fails for all followers on a bug, unlike on a full disk', () =>
    withStore(async ({ blobs }) => {
      const broken = {
        async create() {
          const writer = await blobs.create()
          // Throws Node's ERR_INVALID_ARG_TYPE, which has a code like a system error.
          const write = async () => void Buffer.from(undefined as unknown as string)
          return new Proxy(writer, { get: (target, key) => (key === 'write' ? write : bound(target, key)) })
        },
      }
      const download = start(broken, () => Promise.resolve(answer(chunks(blob))))
      expect((await readAll(download)).error).toBeInstanceOf(TypeError)
      expect(await download.settled).toBe(false)
    }))

  test.each([0, 120_000])('serves all followers and stores nothing (room for %i bytes)', (limit) =>
    withStore(async ({ blobs }) => {
      const asked: number[] = []
      const download = start(fullAfter(blobs, limit), () => Promise.resolve(answer(chunks(blob))), {
        makeRoom: (bytes) => {
          asked.push(bytes)
          return Promise.resolve()
        },
      })
      const readers = await Promise.all([readAll(download), readAll(download, 0, 1), readAll(download, 200_000)])
      expect(readers[0].bytes.equals(blob)).toBe(true)
      expect(readers[1].bytes.equals(blob)).toBe(true)
      expect(readers[2].bytes.equals(blob.subarray(200_000))).toBe(true)
      expect(asked).toHaveLength(1)
      expect(await download.settled).toBe(false)
      expect(await blobs.stat(digest)).toBeUndefined()
    }),
  )

  describe('when the blob is larger than the spill buffer', () => {
    const large = randomBytes(24 * 1024 * 1024)
    const largeDigest = computeDigest(large)
    const part = { digest: largeDigest }
    const body = (bytes: Uint8Array) => () => Promise.resolve(answer(chunks(bytes, 1024 * 1024), bytes.length))

    test.each([
      ['on the disk', 0, 100_000],
      ['partly on the disk', 900_000, 1_100_000],
      ['partly on the disk, within the withheld end', 1_048_000, 1_050_000],
      ['in memory', 3_000_000, 3_500_000],
      ['in memory, smaller than what is withheld', 3_000_000, 3_001_000],
    ])('a reader of a range that is %s gets its range and does not block the download', (_, from, end) =>
      withStore(async ({ blobs }) => {
        const download = start(fullAfter(blobs, 1_048_576), body(large), part)
        const { bytes, error } = await readAll(download, from, 0, { end })
        expect(error).toBeUndefined()
        expect(bytes.equals(large.subarray(from, end))).toBe(true)
        expect(await download.settled).toBe(false)
      }),
    )

    test('readers of ranges and of the whole blob get what they requested', () =>
      withStore(async ({ blobs }) => {
        const download = start(fullAfter(blobs, 1_048_576), body(large), part)
        const [whole, slow, late] = await Promise.all([
          readAll(download),
          readAll(download, 500_000, 1, { end: 2_000_000 }),
          readAll(download, 20_000_000, 0, { end: 20_000_100 }),
        ])
        expect(whole.bytes.equals(large)).toBe(true)
        expect(slow.bytes.equals(large.subarray(500_000, 2_000_000))).toBe(true)
        expect(late.bytes.equals(large.subarray(20_000_000, 20_000_100))).toBe(true)
      }))

    test('a reader that stops reading is cut off, and the others get everything', () =>
      withStore(async ({ blobs }) => {
        const download = start(fullAfter(blobs, 1_048_576), body(large), { ...part, maxLagMs: 500 })
        const stuck = download.follow(0)
        await stuck.next()
        const readers = await Promise.all([readAll(download), readAll(download, 0, 0, { end: 2_000_000 })])
        expect(readers[0].bytes.equals(large)).toBe(true)
        expect(readers[1].bytes.equals(large.subarray(0, 2_000_000))).toBe(true)
        await expect(stuck.next()).rejects.toMatchObject({ failure: 'unavailable', status: 503 })
        stuck.close()
        expect(await download.settled).toBe(false)
      }))

    /** Reads the whole blob, and can wait until no more bytes come. */
    function readAhead(download: Download) {
      const taken = { bytes: 0, isNew: false }
      const all = readOn(download.follow(0), async (length) => {
        taken.bytes += length
        taken.isNew = true
      })
      const untilStalled = async () => {
        do {
          taken.isNew = false
          await sleep(300)
        } while (taken.bytes === 0 || taken.isNew)
        expect(taken.bytes).toBeLessThan(large.length - 1_048_576)
        return taken.bytes
      }
      return { all, untilStalled }
    }

    test('a reader that pauses and continues gets everything, like the others', () =>
      withStore(async ({ blobs }) => {
        const download = start(fullAfter(blobs, 1_048_576), body(large), part)
        const pausing = download.follow(0)
        const { all, untilStalled } = readAhead(download)
        await untilStalled()
        const late = await readOn(pausing, async () => {})
        expect(late.bytes.equals(large)).toBe(true)
        expect((await all).bytes.equals(large)).toBe(true)
      }))

    test.each([
      ['three quarters of the pace of the other is waited for', 0.75],
      ['a quarter of the pace of the other is cut off', 0.25],
    ])('of two readers the one at %s', (_, share) =>
      withStore(async ({ blobs }) => {
        // Advances the clock with the first bytes, before the memory is full; then only the slow reader advances it.
        let now = 0
        async function* paced() {
          for await (const chunk of chunks(large, 1_048_576)) {
            if (now < 100) now += 20
            yield chunk
          }
        }
        const clock = { ...hasty, monotonic: () => now }
        const open = () => Promise.resolve(answer(paced(), large.length))
        const download = start(fullAfter(blobs, 1_048_576), open, { ...part, clock, maxLagMs: 20 })
        const follower = download.follow(0)
        const { all, untilStalled } = readAhead(download)
        const pace = (await untilStalled()) / now
        const slow = await readOn(follower, async (length) => {
          now += length / (pace * share)
          await sleep(5)
        })
        expect((await all).bytes.equals(large)).toBe(true)
        if (share > 0.5) expect(slow.bytes.equals(large)).toBe(true)
        else expect(slow.error).toMatchObject({ failure: 'unavailable', status: 503 })
      }),
    )

    test('makes progress beside many others, when its share of memory is smaller than a chunk', () =>
      withStore(async ({ blobs }) => {
        // Makes the last chunk smaller than the withheld end.
        const bytes = large.subarray(0, 2_820_000)
        const count = Math.ceil(upstreamBodies.bytes / (512 * 1024)) + 1
        const open = () => Promise.resolve(answer(chunks(bytes, 700_000), bytes.length))
        const downloads = Array.from({ length: count }, () =>
          start(fullAfter(blobs, 0), open, { digest: computeDigest(bytes) }),
        )
        const readers = await Promise.all(downloads.map((download) => readAll(download)))
        for (const reader of readers) expect(reader.bytes.equals(bytes)).toBe(true)
      }))

    test('an all-or-nothing reader gets an error', () =>
      withStore(async ({ blobs }) => {
        const download = start(fullAfter(blobs, 1_048_576), body(large), part)
        const { bytes, error } = await readAll(download, 0, 0, { isAllOrNothing: true })
        expect(bytes.length).toBe(0)
        expect(error).toMatchObject({ failure: 'unavailable', status: 503 })
      }))
  })

  test('is awaited by settle(), even if a later download of the same blob has started', () =>
    withStore(async ({ blobs }) => {
      const downloads = new Downloads(systemClock)
      const origin = { host: 'registry.example', name: 'app', identity: anonymousIdentity, miss: {} }
      const ended: string[] = []
      const begin = (name: string, bytes: AsyncIterable<Uint8Array>) => {
        const download = downloads.start(
          origin,
          usual(fullAfter(blobs, 0), () => Promise.resolve(answer(bytes))),
        )
        void download.settled.then(() => ended.push(name))
        return download
      }
      const gate = createDeferred()
      async function* held() {
        yield blob.subarray(0, 300_000)
        await gate.promise
        yield blob.subarray(300_000)
      }
      const first = begin('first', held())
      const follower = first.follow(0)
      while (downloads.get(digest)) await follower.next()
      const second = begin('second', chunks(blob))
      const reader = readAll(second)
      const settled = downloads.settle().then(() => ended.push('all'))
      expect((await reader).bytes.equals(blob)).toBe(true)
      gate.resolve()
      follower.close()
      await settled
      expect(ended).toEqual(['second', 'first', 'all'])
    }))

  test('ends when it has no followers any more', () =>
    withStore(async ({ blobs }) => {
      const download = start(fullAfter(blobs, 100_000), () => Promise.resolve(answer(chunks(blob))))
      const follower = download.follow(0)
      await follower.next()
      await sleep(10)
      follower.close()
      expect(await download.settled).toBe(false)
      expect(download.canFollowFrom(0)).toBe(false)
    }))

  test('ends at once, and sends no further request, when no client has ever requested the blob', () =>
    withStore(async ({ blobs }) => {
      let asked = 0
      let arrived = 0
      const counted = async function* () {
        for await (const chunk of chunks(blob, 1000)) {
          arrived += chunk.length
          yield chunk
        }
      }
      const open = () => {
        asked += 1
        return Promise.resolve(answer(counted()))
      }
      const download = start(fullAfter(blobs, 10_000), open)
      expect(await download.settled).toBe(false)
      expect(asked).toBe(1)
      expect(arrived).toBeLessThan(blob.length)
    }))
})
