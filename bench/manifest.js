// Makes manifests of images.
import { createHash } from 'node:crypto'

/**
 * @typedef {{ digest: string, size: number }} Content
 * @typedef {{ manifest: string, config: string, layer: string }} Types media types
 */

/** @param {Uint8Array} bytes */
export function digestOf(bytes) {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`
}

/**
 * @param {Types} types @param {Content} config @param {readonly Content[]} layers @param {Record<string, string>} [annotations]
 * @returns {{ bytes: Buffer, digest: string }}
 */
export function makeManifest(types, config, layers, annotations) {
  const bytes = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: types.manifest,
      config: descriptor(types.config, config),
      layers: layers.map((layer) => descriptor(types.layer, layer)),
      ...(annotations ? { annotations } : {}),
    }),
  )
  return { bytes, digest: digestOf(bytes) }
}

function descriptor(mediaType, { digest, size }) {
  return { mediaType, digest, size }
}
