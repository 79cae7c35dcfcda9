// Makes the images that are pulled and pushed. A blob's bytes are made again from its seed whenever they are needed.
import { createHash } from 'node:crypto'
import { between, noise } from './random.js'

export const manifestType = 'application/vnd.oci.image.manifest.v1+json'

/**
 * @typedef {{ digest: string, size: number, seed: number }} Blob
 * @typedef {{ digest: string, bytes: Buffer, blobs: readonly Blob[] }} Image
 */

/** @param {Uint8Array} bytes */
export function digestOf(bytes) {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`
}

/** @param {number} size @param {number} seed @returns {Blob} */
export function makeBlob(size, seed) {
  return { digest: digestOf(noise(size, seed)), size, seed }
}

/** @param {Blob} blob */
export function bytesOf(blob) {
  return noise(blob.size, blob.seed)
}

/** @param {readonly Blob[]} blobs the configuration, then the layers @param {Record<string, string>} [annotations] @returns {Image} */
export function makeImage(blobs, annotations) {
  const [config, ...layers] = blobs.map(({ digest, size }) => ({ digest, size }))
  const bytes = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: manifestType,
      config: { mediaType: 'application/vnd.oci.image.config.v1+json', ...config },
      layers: layers.map((layer) => ({ mediaType: 'application/vnd.oci.image.layer.v1.tar', ...layer })),
      ...(annotations ? { annotations } : {}),
    }),
  )
  return { digest: digestOf(bytes), bytes, blobs }
}

/** Most layers are small, some are large. @param {() => number} random @returns {number} bytes */
export function layerSize(random) {
  const kind = random()
  if (kind < 0.6) return between(random, 1, 50_000)
  if (kind < 0.9) return between(random, 100_000, 2_000_000)
  return between(random, 5_000_000, 24_000_000)
}
