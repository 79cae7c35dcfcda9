// Makes the content to pull: files with a layout that a static web server can serve as a registry.
import { randomFillSync } from 'node:crypto'
import { closeSync, mkdirSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { digestOf, makeManifest } from './manifest.js'

export const repository = 'bench/app'
export const manifestType = 'application/vnd.docker.distribution.manifest.v2+json'
const types = {
  manifest: manifestType,
  config: 'application/vnd.docker.container.image.v1+json',
  layer: 'application/vnd.docker.image.rootfs.diff.tar.gzip',
}
const MB = 1_000_000

/**
 * Writes the blobs and the images below `folder`. `coldBlobs`: number of blobs of 60 MB that are pulled once each.
 * @param {string} folder
 * @param {{ coldBlobs: number, layerBytes: number }} sizes
 */
export function makeContent(folder, { coldBlobs, layerBytes }) {
  const home = join(folder, 'v2', repository)
  for (const kind of ['blobs', 'manifests']) mkdirSync(join(home, kind), { recursive: true })
  const noise = Buffer.allocUnsafe(60 * MB)
  randomFillSync(noise)

  const blob = (bytes) => {
    // Replace only the first bytes for each blob, because new noise would take longer than most measurements.
    randomFillSync(bytes, 0, 64)
    const digest = digestOf(bytes)
    writeFileSync(join(home, 'blobs', digest), bytes)
    return { digest, size: bytes.length }
  }
  const image = (tag, layers) => {
    const config = blob(Buffer.alloc(1500, 'c'))
    const { bytes, digest } = makeManifest(types, config, layers)
    for (const name of [tag, digest]) writeFileSync(join(home, 'manifests', name), bytes)
    return { tag, digest, size: bytes.length, config, layers }
  }

  const large = blob(noise)
  const medium = blob(noise.subarray(0, 5 * MB))
  const cold = Array.from({ length: coldBlobs }, () => blob(noise))
  const app = image('latest', [large, medium, ...cold])
  const layered = image(
    'layered',
    Array.from({ length: 10 }, () => blob(noise.subarray(0, layerBytes))),
  )
  const small = Array.from({ length: 20 }, () => blob(noise.subarray(0, 5 * MB)))
  const crowd = image('crowd', small)
  return { large, medium, tiny: app.config, cold, app, layered, crowd }
}

/**
 * Makes a virtual machine provide the memory that file caches will need. The first use of memory costs several times as much as
 * the next one, and would slow the subject that runs first.
 * @param {string} folder @param {number} bytes
 */
export function touchMemory(folder, bytes) {
  const file = join(folder, 'touched')
  const chunk = Buffer.alloc(8 * MB)
  const descriptor = openSync(file, 'w')
  for (let written = 0; written < bytes; written += chunk.length) writeSync(descriptor, chunk)
  closeSync(descriptor)
  rmSync(file)
}
