import { gzipSync } from 'node:zlib'
import { tarFile } from '../lib/tar.ts'
import { ImageContents, mediaType } from '../oci/content.ts'
import { type Digest, digestOf } from '../oci/digest.ts'

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
  const contents = new ImageContents()
  const tar = tarFile('mirror-check', Buffer.from(`${unique}\n`))
  const layer = contents.addBlob(mediaType.ociLayerGzip, gzipSync(tar))
  const rootfs = { type: 'layers', diff_ids: [digestOf(tar)] }
  const config = { Cmd: ['/mirror-check'] }
  const children = platforms.map((platform) => {
    const description = Buffer.from(JSON.stringify({ os: 'linux', ...platform, config, rootfs }))
    const descriptor = { config: contents.addBlob(mediaType.ociConfig, description), layers: [layer] }
    return { ...contents.addManifest(mediaType.ociManifest, descriptor), platform: { os: 'linux', ...platform } }
  })
  const { digest } = contents.addManifest(mediaType.ociIndex, { manifests: children })
  return { digest, manifests: contents.manifests, blobs: contents.blobs }
}
