import { expect, test } from 'vitest'
import { temporaryFiles } from '../support/blob-file.ts'
import { endless } from '../support/faults.ts'
import { app, startScene } from '../support/scene.ts'
import { anyBlob } from '../support/upstream.ts'

const MiB = 1024 * 1024

test('an endless blob of unknown size is cut at the size limit of the cache, and not stored', async () => {
  const { mirror, upstream, layer } = await startScene({ cache: { maxSize: 8 * MiB } })
  upstream.on(anyBlob, endless)
  // Omits the manifest, so that the size of the blob is unknown.
  const answer = await mirror.get(`${app}/blobs/${layer}`)
  expect(answer.complete && answer.status === 200).toBe(false)
  expect(answer.body.length).toBeLessThanOrEqual(8 * MiB)
  await expect.poll(() => temporaryFiles(mirror)).toEqual([])
  expect((await mirror.status()).storage.blobs).toBe(0)
  await expect.poll(() => upstream.connections.open).toBe(0)
  expect(upstream.count(anyBlob)).toBe(1)
  expect(mirror.log.join('\n')).toContain('has more than 8388608 bytes')
})

test('a blob of known size with an endless body is cut at its size', async () => {
  const { mirror, upstream, layer, layerBytes } = await startScene()
  await mirror.get(`${app}/manifests/v1`)
  upstream.on(anyBlob, endless)
  const answer = await mirror.get(`${app}/blobs/${layer}`)
  expect(answer.complete && answer.status === 200).toBe(false)
  expect(answer.body.length).toBeLessThanOrEqual(layerBytes.length)
  await expect.poll(() => temporaryFiles(mirror)).toEqual([])
  // Expects only the connection of the manifest.
  await expect.poll(() => upstream.connections.open).toBe(1)
})
