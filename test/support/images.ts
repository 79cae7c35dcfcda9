import { gunzipSync, gzipSync } from 'node:zlib'
import { computeDigest, type Digest } from '../../src/oci/reference.ts'
import { mediaType } from '../../src/oci/content.ts'
import { noise } from './noise.ts'

/** An image or an index, with all its content. */
export interface TestImage {
  readonly digest: Digest
  readonly mediaType: string
  /** The bytes of the manifest. */
  readonly bytes: Buffer
  /** The configs and layers. */
  readonly blobs: ReadonlyMap<Digest, Buffer>
  /** The manifest and, for an index, those that it names. */
  readonly manifests: ReadonlyMap<Digest, { readonly mediaType: string; readonly bytes: Buffer }>
  /** Digests of the layers, in order; none for an index. */
  readonly layers: readonly Digest[]
}

export interface ImageOptions {
  /** A number makes a gzipped tar of one file of so many bytes; a Buffer is used as the layer. */
  readonly layers?: readonly (number | Buffer)[]
  readonly mediaTypes?: 'oci' | 'docker'
  readonly platform?: { readonly architecture: string; readonly os: string; readonly variant?: string }
  /** Compression level of the layers made from numbers, 0 to 9. */
  readonly level?: number
  /** Selects the bytes: other seeds give other bytes. */
  readonly seed?: number
  /** Members that are added to the manifest or replace its own. */
  readonly manifest?: Record<string, unknown>
}

const types = {
  oci: { manifest: mediaType.ociManifest, config: mediaType.ociConfig, layer: mediaType.ociLayerGzip },
  docker: { manifest: mediaType.dockerManifest, config: mediaType.dockerConfig, layer: mediaType.dockerLayer },
}

/** Makes an image; the same options make the same bytes. https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md */
export function makeImage(options: ImageOptions = {}): TestImage {
  const { layers = [1000], mediaTypes = 'oci', level = 1, seed = 0 } = options
  const type = types[mediaTypes]
  const made = layers.map((layer, at) => {
    if (typeof layer !== 'number')
      return { blob: layer, diffId: computeDigest(isGzip(layer) ? gunzipSync(layer) : layer) }
    const tar = tarOf(`layer-${at}`, noise(layer, seed * 1000 + at))
    return { blob: gzipSync(tar, { level }), diffId: computeDigest(tar) }
  })
  const config = json({
    created: '2024-01-01T00:00:00Z',
    architecture: 'amd64',
    os: 'linux',
    ...options.platform,
    config: { Labels: { seed: String(seed) } },
    rootfs: { type: 'layers', diff_ids: made.map(({ diffId }) => diffId) },
  })
  const bytes = json({
    schemaVersion: 2,
    mediaType: type.manifest,
    config: { mediaType: type.config, digest: computeDigest(config), size: config.length },
    layers: made.map(({ blob }) => ({ mediaType: type.layer, digest: computeDigest(blob), size: blob.length })),
    ...options.manifest,
  })
  const blobs = [config, ...made.map(({ blob }) => blob)]
  return {
    ...manifestOf(bytes, type.manifest),
    blobs: new Map(blobs.map((blob) => [computeDigest(blob), blob])),
    layers: made.map(({ blob }) => computeDigest(blob)),
  }
}

/** Makes an index of images, each for a platform. https://github.com/opencontainers/image-spec/blob/v1.1.1/image-index.md */
export function makeIndex(images: readonly TestImage[], options: { mediaTypes?: 'oci' | 'docker' } = {}): TestImage {
  const type = options.mediaTypes === 'docker' ? mediaType.dockerList : mediaType.ociIndex
  const architectures = ['amd64', 'arm64', 's390x', 'ppc64le']
  const bytes = json({
    schemaVersion: 2,
    mediaType: type,
    manifests: images.map((image, at) => ({
      mediaType: image.mediaType,
      digest: image.digest,
      size: image.bytes.length,
      platform: { architecture: architectures[at % architectures.length], os: 'linux' },
    })),
  })
  const index = manifestOf(bytes, type)
  return {
    ...index,
    blobs: new Map(images.flatMap(({ blobs }) => [...blobs])),
    manifests: new Map([...index.manifests, ...images.flatMap(({ manifests }) => [...manifests])]),
    layers: [],
  }
}

/** Makes a manifest of any type from any bytes. */
export function manifestOf(bytes: Buffer, type: string): TestImage {
  const digest = computeDigest(bytes)
  const manifest = { mediaType: type, bytes }
  return { ...manifest, digest, blobs: new Map(), manifests: new Map([[digest, manifest]]), layers: [] }
}

function isGzip(bytes: Buffer): boolean {
  return bytes[0] === 0x1f && bytes[1] === 0x8b
}

function json(value: unknown): Buffer {
  return Buffer.from(JSON.stringify(value))
}

/** Makes a tar archive of one file, in the ustar format of POSIX. */
function tarOf(name: string, content: Buffer): Buffer {
  const header = Buffer.alloc(512)
  header.write(name, 0)
  header.write('0000644\0' + '0000000\0'.repeat(2), 100)
  header.write(content.length.toString(8).padStart(11, '0') + '\0', 124)
  header.write('0'.repeat(11) + '\0', 136)
  header.write(' '.repeat(8) + '0', 148)
  header.write('ustar\u000000', 257)
  const sum = header.reduce((total, byte) => total + byte, 0)
  header.write(sum.toString(8).padStart(6, '0') + '\0 ', 148)
  return Buffer.concat([header, content, Buffer.alloc((512 - (content.length % 512)) % 512), Buffer.alloc(1024)])
}
