import { randomBytes } from 'node:crypto'
import { gzipSync } from 'node:zlib'
import { tarFile } from '../../lib/tar.ts'
import { ImageContents, mediaType } from '../../oci/content.ts'
import { type Digest, digestOf } from '../../oci/digest.ts'

/** A manifest and everything below it, as a registry serves it. */
export interface DemoImage {
  readonly digest: Digest
  readonly manifests: ReadonlyMap<Digest, { readonly mediaType: string; readonly bytes: Uint8Array }>
  readonly blobs: ReadonlyMap<Digest, Uint8Array>
}

const layerSizes = [12_000_000, 9_000_000, 5_000_000, 400_000]

/** A multi-arch image as real ones are: an index, two platforms that share their first layer, four layers each. */
export function makeDemoImage(): DemoImage {
  const contents = new ImageContents()
  const shared = makeLayer('shared', layerSizes[0]!)
  const platforms = ['amd64', 'arm64'].map((architecture) => {
    const tars = [shared, ...layerSizes.slice(1).map((size, at) => makeLayer(`${architecture}-${at}`, size))]
    const layers = tars.map((tar) => contents.addBlob(mediaType.ociLayerGzip, gzipSync(tar, { level: 0 })))
    const rootfs = { type: 'layers', diff_ids: tars.map((tar) => digestOf(tar)) }
    const config = contents.addBlob(
      mediaType.ociConfig,
      Buffer.from(JSON.stringify({ architecture, os: 'linux', config: {}, rootfs })),
    )
    return {
      ...contents.addManifest(mediaType.ociManifest, { config, layers }),
      platform: { os: 'linux', architecture },
    }
  })
  const { digest } = contents.addManifest(mediaType.ociIndex, { manifests: platforms })
  return { digest, manifests: contents.manifests, blobs: contents.blobs }
}

function makeLayer(name: string, size: number): Uint8Array {
  return tarFile(`demo/${name}`, randomBytes(size))
}
