import { gzipSync } from 'node:zlib'
import { tarFile } from '../lib/tar.ts'
import { digestOf, type Digest } from '../oci/digest.ts'
import { mediaType } from '../oci/media-types.ts'

/** An image as an upstream serves it. */
export interface CanaryImage {
  /** Of the index. */
  readonly digest: Digest
  readonly manifests: ReadonlyMap<Digest, { readonly mediaType: string; readonly bytes: Uint8Array<ArrayBuffer> }>
  readonly blobs: ReadonlyMap<Digest, Uint8Array>
}

/** Every platform that clients pull for. */
const platforms = [
  { architecture: 'amd64' },
  { architecture: 'arm64', variant: 'v8' },
  { architecture: 'arm', variant: 'v7' },
  { architecture: '386' },
  { architecture: 'ppc64le' },
  { architecture: 's390x' },
  { architecture: 'riscv64' },
]

/** A tiny image that no client can have: its content holds the given text. It is never run. */
export function makeCanaryImage(unique: string): CanaryImage {
  const blobs = new Map<Digest, Uint8Array>()
  const manifests = new Map<Digest, { mediaType: string; bytes: Uint8Array<ArrayBuffer> }>()
  const addBlob = (type: string, bytes: Uint8Array) => {
    const digest = digestOf(bytes)
    blobs.set(digest, bytes)
    return { mediaType: type, digest, size: bytes.length }
  }
  const addManifest = (type: string, content: object) => {
    const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: type, ...content }))
    const digest = digestOf(bytes)
    manifests.set(digest, { mediaType: type, bytes })
    return { mediaType: type, digest, size: bytes.length }
  }

  const tar = tarFile('mirror-check', Buffer.from(`${unique}\n`))
  const layer = addBlob(mediaType.ociLayerGzip, gzipSync(tar))
  const rootfs = { type: 'layers', diff_ids: [digestOf(tar)] }
  const config = { Cmd: ['/mirror-check'] }
  const children = platforms.map((platform) => {
    const description = Buffer.from(JSON.stringify({ os: 'linux', ...platform, config, rootfs }))
    const descriptor = { config: addBlob(mediaType.ociConfig, description), layers: [layer] }
    return { ...addManifest(mediaType.ociManifest, descriptor), platform: { os: 'linux', ...platform } }
  })
  return { digest: addManifest(mediaType.ociIndex, { manifests: children }).digest, manifests, blobs }
}
