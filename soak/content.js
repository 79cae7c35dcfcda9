// Makes the images to pull and push. The bytes of a blob are made from its seed whenever they are needed.
import { digestOf, makeManifest } from '../bench/manifest.js'
import { between, noise } from './random.js'

export { digestOf } from '../bench/manifest.js'

export const manifestType = 'application/vnd.oci.image.manifest.v1+json'
const types = {
  manifest: manifestType,
  config: 'application/vnd.oci.image.config.v1+json',
  layer: 'application/vnd.oci.image.layer.v1.tar',
}

/**
 * @typedef {{ digest: string, size: number, seed: number }} Blob
 * @typedef {{ digest: string, bytes: Buffer, blobs: readonly Blob[] }} Image
 */

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
  const [config, ...layers] = blobs
  return { ...makeManifest(types, config, layers, annotations), blobs }
}

/** Returns the size of a layer: most are small, some are large. @param {() => number} random @returns {number} bytes */
export function layerSize(random) {
  const kind = random()
  if (kind < 0.6) return between(random, 1, 50_000)
  if (kind < 0.9) return between(random, 100_000, 2_000_000)
  return between(random, 5_000_000, 24_000_000)
}
