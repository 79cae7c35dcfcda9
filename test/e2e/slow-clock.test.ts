import { existsSync } from 'node:fs'
import { readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { expectContent } from '../support/expect-content.ts'
import { makeImage } from '../support/images.ts'
import { temporaryHome } from '../support/mirror.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'
import { app } from '../support/scene.ts'
import { anyToken, startUpstream } from '../support/upstream.ts'

const library = await findLibrary()

/** Finds Debian's libfaketime. */
async function findLibrary(): Promise<string | undefined> {
  const folders = await readdir('/usr/lib').catch(() => [])
  return folders
    .map((folder) => join('/usr/lib', folder, 'faketime', 'libfaketimeMT.so.1'))
    .find((file) => existsSync(file))
}

describe.skipIf(library === undefined)('a wall clock that jumps', () => {
  test.each([
    ['back a day', '-1d'],
    ['ten years ahead', '+3650d'],
  ])('a clock that jumps %s and back evicts no image, and tokens are renewed', async (_, jump) => {
    const clock = join(await temporaryHome(), 'clock')
    await writeFile(clock, '+0')
    const env = {
      LD_PRELOAD: library!,
      FAKETIME_TIMESTAMP_FILE: clock,
      FAKETIME_NO_CACHE: '1',
      FAKETIME_DONT_FAKE_MONOTONIC: '1',
    }
    const images = [1, 2, 3, 4].map((seed) => makeImage({ layers: [1000], seed }))
    const upstream = await startUpstream({ auth: { scheme: 'bearer', expiresIn: 60, livesFor: 60_000 } })
    for (const [at, image] of images.entries()) upstream.push('library/app', `t${at}`, image)
    const upstreams = { 'docker.io': upstream.url }
    const pull = async (mirror: { get: Awaited<ReturnType<typeof startMirrorProcess>>['get'] }, at: number) => {
      const image = images[at]!
      expectContent(await mirror.get(`${app}/manifests/t${at}`), image.digest)
      for (const digest of image.blobs.keys()) expectContent(await mirror.get(`${app}/blobs/${digest}`), digest)
    }

    const first = await startMirrorProcess({ upstreams, env, cache: { maxAge: '1h' } })
    await pull(first, 0)
    await writeFile(clock, jump)
    await sleep(200)
    await pull(first, 0)
    await pull(first, 1)
    await sleep(1500)
    expect((await first.status()).images).toHaveLength(2)
    await writeFile(clock, '+0')
    await pull(first, 2)
    first.kill('SIGTERM')
    expect(await first.ended).toBe(0)

    await writeFile(clock, jump)
    const second = await startMirrorProcess({ upstreams, env, home: first.home, cache: { maxAge: '1h' } })
    expect((await second.status()).images).toHaveLength(3)
    await pull(second, 3)
    await pull(second, 0)
    expect((await second.status()).images).toHaveLength(4)
    expect(upstream.count(anyToken)).toBeLessThanOrEqual(6)
  })
})
