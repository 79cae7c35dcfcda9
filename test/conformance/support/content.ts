import { computeDigest, type Digest, type DigestAlgorithm } from '../../../src/oci/reference.ts'
import { mediaType } from '../../../src/oci/content.ts'
import { noise } from '../../support/noise.ts'

/** ContentDescriptor is an entry of a manifest. https://github.com/opencontainers/image-spec/blob/v1.1.1/descriptor.md */
export interface ContentDescriptor {
  readonly mediaType: string
  readonly digest: Digest
  readonly size: number
  readonly data?: string
  readonly urls?: readonly string[]
  readonly platform?: object
  readonly annotations?: Readonly<Record<string, string>>
  readonly artifactType?: string
}

export interface ContentManifest {
  readonly mediaType: string
  readonly digest: Digest
  readonly bytes: Buffer
  readonly subject: Digest | undefined
  /** True when the push has the query parameter `tag` for each of its tags. */
  readonly tagsByParameter: boolean
}

export interface ManifestOptions {
  readonly tag?: string
  readonly artifactType?: string
  readonly annotations?: Readonly<Record<string, string>>
  readonly subject?: ContentDescriptor
}

export interface ImageOptions extends ManifestOptions {
  readonly platform?: object
  readonly config?: { readonly mediaType: string; readonly bytes: Buffer }
  /** The size or the bytes of each layer, or the descriptor of one that is not pushed. */
  readonly layers?: readonly (number | Buffer | ContentDescriptor)[]
  readonly layerType?: string
}

export interface ContentOptions {
  readonly algorithm?: DigestAlgorithm
  /** True when descriptors have their content as `data`. */
  readonly data?: boolean
  /** True when each JSON document has an additional field. */
  readonly extraField?: boolean
  readonly tagsByParameter?: boolean
  /** The seed of the bytes. */
  readonly seed?: number
}

/** Content is a set of data of the suite: blobs, manifests in the order of their push, and tags. */
export class Content {
  readonly blobs = new Map<Digest, Buffer>()
  readonly manifests: ContentManifest[] = []
  readonly tags = new Map<string, Digest>()
  /** The referrers by the digest of their subject. */
  readonly referrers = new Map<Digest, ContentDescriptor[]>()
  readonly #options: ContentOptions
  #made = 0

  constructor(options: ContentOptions = {}) {
    this.#options = options
  }

  /** Creates bytes that differ from those of all other calls. */
  bytes(size: number): Buffer {
    this.#made += 1
    return noise(size, (this.#options.seed ?? 0) * 1000 + this.#made)
  }

  blob(bytes: Buffer, type: string = mediaType.octetStream): ContentDescriptor {
    const digest = computeDigest(bytes, this.#options.algorithm)
    this.blobs.set(digest, bytes)
    return { mediaType: type, digest, size: bytes.length, ...this.#dataOf(bytes) }
  }

  image(options: ImageOptions = {}): ContentDescriptor {
    const { layers = [300, 300], layerType = mediaType.ociLayerGzip } = options
    const { artifactType, annotations, subject, platform = { os: 'linux', architecture: 'amd64' } } = options
    const config = options.config ?? {
      mediaType: mediaType.ociConfig,
      bytes: this.#json({ author: String((this.#made += 1)), ...platform, rootfs: { type: 'layers', diff_ids: [] } }),
    }
    return this.#manifest(mediaType.ociManifest, options, config.mediaType, {
      artifactType,
      config: this.blob(config.bytes, config.mediaType),
      layers: layers.map((layer) => {
        if (typeof layer === 'object' && !Buffer.isBuffer(layer)) return layer
        return this.blob(Buffer.isBuffer(layer) ? layer : this.bytes(layer), layerType)
      }),
      subject,
      annotations,
    })
  }

  index(children: readonly ContentDescriptor[], options: ManifestOptions = {}): ContentDescriptor {
    const { artifactType, annotations, subject } = options
    return this.#manifest(mediaType.ociIndex, options, undefined, {
      artifactType,
      manifests: children,
      subject,
      annotations,
    })
  }

  /** Creates an image for each of two platforms, and an index of them. */
  platforms(options: ImageOptions = {}): ContentDescriptor {
    const images = ['amd64', 'arm64'].map((architecture) => {
      const platform = { os: 'linux', architecture }
      const { tag: _, ...rest } = options
      return { ...this.image({ ...rest, platform }), platform }
    })
    return this.index(images, options)
  }

  #manifest(
    type: string,
    { tag, subject }: ManifestOptions,
    configType: string | undefined,
    fields: Record<string, unknown>,
  ): ContentDescriptor {
    const bytes = this.#json({ schemaVersion: 2, mediaType: type, ...fields })
    const digest = computeDigest(bytes, this.#options.algorithm)
    const { tagsByParameter = false } = this.#options
    this.manifests.push({ mediaType: type, digest, bytes, subject: subject?.digest, tagsByParameter })
    if (tag !== undefined) this.tags.set(tag, digest)
    const descriptor = { mediaType: type, digest, size: bytes.length, ...this.#dataOf(bytes) }
    if (subject) {
      const { artifactType = configType, annotations } = fields as ManifestOptions
      const others = this.referrers.get(subject.digest) ?? []
      const { mediaType: _, ...rest } = descriptor
      const referrer = {
        mediaType: type,
        ...rest,
        ...(artifactType === undefined ? {} : { artifactType }),
        ...(annotations === undefined ? {} : { annotations }),
      }
      this.referrers.set(subject.digest, [...others, referrer])
    }
    return descriptor
  }

  #json(value: object): Buffer {
    const extra = this.#options.extraField ? { 'org.example.custom': String((this.#made += 1)) } : {}
    return Buffer.from(JSON.stringify({ ...value, ...extra }))
  }

  #dataOf(bytes: Buffer): { data?: string } {
    return this.#options.data ? { data: bytes.toString('base64') } : {}
  }
}
