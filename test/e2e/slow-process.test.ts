import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { getCode } from '../../src/lib/errors.ts'
import { temporaryFiles } from '../support/blob-file.ts'
import { expectContent } from '../support/expect-content.ts'
import { slow } from '../support/faults.ts'
import { makeImage } from '../support/images.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'
import { noise } from '../support/noise.ts'
import { pull } from '../support/pull.ts'
import { app } from '../support/scene.ts'
import { anyBlob, startUpstream } from '../support/upstream.ts'

const MB = 1_000_000

describe('a server that is killed during a download', () => {
  test('a server killed during a download leaves no temporary file and no partial blob after a restart', async () => {
    const image = makeImage({ layers: [noise(30 * MB)] })
    const layer = image.layers[0]!
    const upstream = await startUpstream({ images: { 'library/app': { v1: image } } })
    const upstreams = { 'docker.io': upstream.url }
    const first = await startMirrorProcess({ upstreams })
    upstream.on(anyBlob, slow(20 * MB))
    const running = pull(first.url, `${app}/blobs/${layer}`, image.blobs.get(layer)!)
    await expect.poll(() => temporaryFiles(first)).toHaveLength(1)
    await sleep(500)
    first.kill('SIGKILL')
    expect((await running).right).toBe(false)
    expect(await first.ended).toBe('SIGKILL')

    upstream.heal()
    const second = await startMirrorProcess({ upstreams, home: first.home })
    expect(await temporaryFiles(second)).toEqual([])
    expect((await second.status()).storage.blobs).toBe(0)
    expectContent(await second.get(`${app}/manifests/v1`), image.digest)
    expectContent(await second.get(`${app}/blobs/${layer}`), layer)
  })

  test('a server killed ten times never serves a wrong byte afterwards', async () => {
    const images = Array.from({ length: 5 }, (_, seed) => makeImage({ layers: [noise(2 * MB, seed)], seed }))
    const upstream = await startUpstream()
    for (const [at, image] of images.entries()) upstream.push('library/app', `t${at}`, image)
    const upstreams = { 'docker.io': upstream.url }
    let home: string | undefined
    for (let round = 0; round < 10; round++) {
      const mirror = await startMirrorProcess({ upstreams, ...(home === undefined ? {} : { home }) })
      home = mirror.home
      const visits = images.map(async (image, at) => {
        const manifest = await mirror.get(`${app}/manifests/t${at}`)
        if (manifest.complete) expectContent(manifest, image.digest)
        const [layer] = image.layers
        const blob = await mirror.get(`${app}/blobs/${layer}`)
        if (blob.complete) expectContent(blob, layer!)
      })
      const ends = Promise.allSettled(visits)
      await sleep(20 + round * 15)
      mirror.kill('SIGKILL')
      await mirror.ended
      const failures = (await ends).flatMap((end): unknown[] => (end.status === 'rejected' ? [end.reason] : []))
      // Allows connections that the kill cut off; a wrong answer would be an assertion error.
      for (const failure of failures) expect(['ECONNRESET', 'ECONNREFUSED', 'EPIPE']).toContain(getCode(failure))
    }
  })
})

describe('a server that gets a signal to stop', () => {
  test('a server that gets SIGTERM lets a download of 60 MB finish, and ends with exit code 0', async () => {
    const image = makeImage({ layers: [noise(60 * MB)] })
    const layer = image.layers[0]!
    const upstream = await startUpstream({ images: { 'library/app': { v1: image } } })
    const mirror = await startMirrorProcess({ upstreams: { 'docker.io': upstream.url } })
    upstream.on(anyBlob, slow(15 * MB))
    const running = pull(mirror.url, `${app}/blobs/${layer}`, image.blobs.get(layer)!)
    await expect.poll(() => upstream.count(anyBlob)).toBe(1)
    await sleep(500)
    const begun = performance.now()
    mirror.kill('SIGTERM')
    expect((await running).right).toBe(true)
    expect(await mirror.ended).toBe(0)
    expect(performance.now() - begun).toBeLessThan(30_000)
  })

  test('a server that gets SIGINT ends at once if no client pulls', async () => {
    const upstream = await startUpstream()
    const mirror = await startMirrorProcess({ upstreams: { 'docker.io': upstream.url } })
    await mirror.get('/v2/')
    mirror.kill('SIGINT')
    expect([0, 130]).toContain(await mirror.ended)
  })
})

test('a second server on the same home names the first one, and does not start', async () => {
  const upstream = await startUpstream()
  const upstreams = { 'docker.io': upstream.url }
  const first = await startMirrorProcess({ upstreams })
  await expect(startMirrorProcess({ upstreams, home: first.home })).rejects.toThrow(String(first.pid))
  expect((await first.get('/v2/')).status).toBe(200)
})
