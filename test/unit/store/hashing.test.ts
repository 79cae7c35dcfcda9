import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { computeDigest, type DigestAlgorithm } from '../../../src/oci/reference.ts'
import { createHashPool, type HashPool } from '../../../src/store/hashing.ts'
import { noise } from '../../support/noise.ts'
import { temporaryFolder } from '../../support/store/store.ts'

function pool(): HashPool {
  const hashes = createHashPool(3)
  onTestFinished(() => hashes.close())
  return hashes
}

interface HashOptions {
  readonly step: number
  readonly inFile?: number
  readonly algorithm?: DigestAlgorithm
}

/** Hashes bytes while they are written into a file in steps. `inFile`: the number of bytes that the file gets. */
async function hash(hashes: HashPool, bytes: Buffer, options: HashOptions) {
  const { step, inFile = bytes.length, algorithm = 'sha256' } = options
  const file = await open(join(await temporaryFolder(), 'file'), 'w+')
  const following = hashes.follow(algorithm, file.fd)
  for (let at = 0; at < bytes.length; at += step) {
    const chunk = bytes.subarray(at, at + step)
    if (at + step <= inFile) {
      await file.write(chunk)
      following.advance(at + chunk.length)
    } else following.append(chunk)
  }
  const digest = await following.digest()
  await following.close()
  await file.close()
  return digest
}

describe('hashing on other threads', () => {
  const bytes = noise(3_000_001)

  test.each<[string, HashOptions]>([
    ['of a file', { step: 100_000 }],
    ['of what is only partly in the file', { step: 50_000, inFile: 1_000_000 }],
    ['of what the file has nothing of', { step: 50_000, inFile: 0 }],
    ['of the other algorithm', { step: 1_000_000, algorithm: 'sha512' }],
  ])('gives the digest %s', async (_, options) => {
    expect(await hash(pool(), bytes, options)).toBe(computeDigest(bytes, options.algorithm))
  })

  test('of many files at once gives each file its own digest', async () => {
    const hashes = pool()
    const files = Array.from({ length: 20 }, (_, seed) => noise(500_000 + seed, seed))
    const digests = await Promise.all(files.map((file) => hash(hashes, file, { step: 70_000 })))
    expect(digests).toEqual(files.map((file) => computeDigest(file)))
  })

  test('does not transfer the buffer of the caller', async () => {
    const before = Buffer.from(bytes)
    await hash(pool(), bytes, { step: 1_000_000 })
    expect(bytes.equals(before)).toBe(true)
  })

  test('of nothing is the digest of nothing', async () => {
    expect(await hash(pool(), Buffer.alloc(0), { step: 1 })).toBe(computeDigest(Buffer.alloc(0)))
  })

  test('fails when the file is shorter than announced', async () => {
    const file = await open(join(await temporaryFolder(), 'file'), 'w+')
    onTestFinished(() => file.close())
    const following = pool().follow('sha256', file.fd)
    following.advance(10)
    await expect(following.digest()).rejects.toThrow('shorter')
  })

  test('starts again on another thread when its thread dies', async () => {
    const hashes = createHashPool(2)
    onTestFinished(() => hashes.close())
    const file = await open(join(await temporaryFolder(), 'file'), 'w+')
    onTestFinished(() => file.close())
    await file.write(bytes)
    const following = hashes.follow('sha256', file.fd)
    following.advance(1_000_000)
    // Uses an unknown algorithm, which must not stop the only thread.
    await hashes.follow('none' as DigestAlgorithm, file.fd).close()
    following.advance(bytes.length)
    expect(await following.digest()).toBe(computeDigest(bytes))
  })

  test('fails when its thread dies and not all bytes are in the file', async () => {
    const hashes = createHashPool(2)
    onTestFinished(() => hashes.close())
    const file = await open(join(await temporaryFolder(), 'file'), 'w+')
    onTestFinished(() => file.close())
    const following = hashes.follow('sha256', file.fd)
    following.append(bytes)
    await hashes.follow('none' as DigestAlgorithm, file.fd).close()
    await expect(following.digest()).rejects.toThrow()
  })

  test('can be cancelled, and fails when the pool is closed', async () => {
    const hashes = pool()
    const file = await open(join(await temporaryFolder(), 'file'), 'w+')
    onTestFinished(() => file.close())
    await hashes.follow('sha256', file.fd).close()
    const following = hashes.follow('sha256', file.fd)
    await hashes.close()
    await expect(following.digest()).rejects.toThrow('ended')
    await following.close()
  })
})
