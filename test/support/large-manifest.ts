import { computeDigest } from '../../src/oci/reference.ts'
import { mediaType } from '../../src/oci/content.ts'
import type { FloodRequest } from './flood.ts'
import { manifestOf, type TestImage } from './images.ts'

export const emptyConfig = Buffer.from('{}')
const filler = Buffer.alloc(4_100_000, 'x')

/** Makes a manifest of 4.1 MB for each number, in pieces that share their memory; it names `emptyConfig`. */
export function largeManifest(number: number): Buffer[] {
  const fields = {
    schemaVersion: 2,
    mediaType: mediaType.ociManifest,
    config: { mediaType: mediaType.ociConfig, digest: computeDigest(emptyConfig), size: emptyConfig.length },
    layers: [],
    number,
    filler: '',
  }
  return [Buffer.from(JSON.stringify(fields).slice(0, -2)), filler, Buffer.from('"}')]
}

/** Makes the same manifest as an image of an upstream. */
export function largeImage(number: number): TestImage {
  const image = manifestOf(Buffer.concat(largeManifest(number)), mediaType.ociManifest)
  return { ...image, blobs: new Map([[computeDigest(emptyConfig), emptyConfig]]) }
}

/** Makes the requests that push so many different manifests of 4.1 MB. */
export function largePushes(count: number, repository = 'app'): FloodRequest[] {
  return Array.from({ length: count }, (_, number) => ({
    method: 'PUT',
    path: `/v2/${repository}/manifests/v${number}`,
    headers: { 'content-type': mediaType.ociManifest },
    body: largeManifest(number),
  }))
}
