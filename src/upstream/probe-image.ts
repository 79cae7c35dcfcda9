import { gzipSync } from 'node:zlib'
import { createSingleFileTar } from '../lib/tar.ts'
import { ImageContents, mediaType } from '../oci/content.ts'
import { type Digest, computeDigest, type Reference } from '../oci/reference.ts'
import { anonymousIdentity } from '../oci/registry.ts'
import { type Upstream, UpstreamError } from './upstream.ts'

/** Begins the repository names of probe images, on every registry. */
export const probeImagePrefix = 'mirror-check/'
/** Sets the lifetime of a probe image that no caller ends. */
const lifetimeMs = 15 * 60_000
const maxImages = 20

/** Lists all platforms for which clients pull. */
const platforms = [
  { architecture: 'amd64' },
  { architecture: 'arm64', variant: 'v8' },
  { architecture: 'arm', variant: 'v7' },
  { architecture: '386' },
  { architecture: 'ppc64le' },
  { architecture: 's390x' },
  { architecture: 'riscv64' },
]

const identity = anonymousIdentity

/** Describes a unique image that the mirror serves for a while under every registry's name, to check a client. */
interface ProbeImage {
  readonly id: string
  /** Names the repository on any registry: `mirror-check/3f…`. No account on Docker Hub can have a name with a hyphen. */
  readonly repository: string
  readonly tag: string
  readonly image: ProbeImageContent
  /** Counts the requests for the image, by registry. */
  readonly requestsByHost: Map<string, number>
}

/** Checks whether a repository's name belongs to a current or former probe image. */
export function isProbeImageName(repository: string): boolean {
  return repository.startsWith(probeImagePrefix)
}

/** Manages the probe images: a pull of one proves that a client uses this mirror. */
export class ProbeImages {
  readonly #byRepository = new Map<string, { readonly probeImage: ProbeImage; readonly until: number }>()
  readonly #now: () => number
  readonly #random: () => string

  /** `now` in ms, monotonic; `random`: 16 bytes or more in lower-case hex. */
  constructor(now: () => number, random: () => string) {
    this.#now = now
    this.#random = random
  }

  offer(): ProbeImage {
    this.#removeExpired()
    const [oldest] = this.#byRepository.keys()
    if (this.#byRepository.size >= maxImages && oldest !== undefined) this.#byRepository.delete(oldest)
    const id = this.#random()
    const probeImage: ProbeImage = {
      id,
      repository: probeImagePrefix + id,
      tag: 'check',
      image: makeProbeImage(id),
      requestsByHost: new Map(),
    }
    this.#byRepository.set(probeImage.repository, { probeImage, until: this.#now() + lifetimeMs })
    return probeImage
  }

  /** Returns the probe image of a repository; undefined for any other repository. */
  find(repository: string): ProbeImage | undefined {
    if (!isProbeImageName(repository)) return undefined
    this.#removeExpired()
    return this.#byRepository.get(repository)?.probeImage
  }

  /** Ends and returns a probe image; undefined when there is none. */
  end(id: string): ProbeImage | undefined {
    const probeImage = this.find(probeImagePrefix + id)
    if (probeImage) this.#byRepository.delete(probeImage.repository)
    return probeImage
  }

  #removeExpired(): void {
    for (const [repository, { until }] of this.#byRepository)
      if (until <= this.#now()) this.#byRepository.delete(repository)
  }
}

/** Holds the content of a probe image. */
interface ProbeImageContent {
  /** Holds the digest of the index. */
  readonly digest: Digest
  readonly manifests: ReadonlyMap<Digest, { readonly mediaType: string; readonly bytes: Uint8Array<ArrayBuffer> }>
  readonly blobs: ReadonlyMap<Digest, Uint8Array>
}

/** Makes a tiny image that no client can have: its content holds the given text. It is never run. */
function makeProbeImage(unique: string): ProbeImageContent {
  const contents = new ImageContents()
  const tar = createSingleFileTar('mirror-check', Buffer.from(`${unique}\n`))
  const layer = contents.addBlob(mediaType.ociLayerGzip, gzipSync(tar))
  const rootfs = { type: 'layers', diff_ids: [computeDigest(tar)] }
  const config = { Cmd: ['/mirror-check'] }
  const children = platforms.map((platform) => {
    const description = Buffer.from(JSON.stringify({ os: 'linux', ...platform, config, rootfs }))
    const descriptor = { config: contents.addBlob(mediaType.ociConfig, description), layers: [layer] }
    return { ...contents.addManifest(mediaType.ociManifest, descriptor), platform: { os: 'linux', ...platform } }
  })
  const { digest } = contents.addManifest(mediaType.ociIndex, { manifests: children })
  return { digest, manifests: contents.manifests, blobs: contents.blobs }
}

/** Creates an upstream with one probe image. The cache treats it as any upstream, so that a pull tests the whole path. */
export function createProbeUpstream(host: string, probeImage: ProbeImage): Upstream {
  const { image, tag, requestsByHost } = probeImage

  function find(reference: Reference): {
    readonly mediaType: string
    readonly bytes: Uint8Array<ArrayBuffer>
    digest: Digest
  } {
    requestsByHost.set(host, (requestsByHost.get(host) ?? 0) + 1)
    const digest = reference.kind === 'digest' ? reference.digest : reference.tag === tag ? image.digest : undefined
    const manifest = digest && image.manifests.get(digest)
    if (!manifest) throw createAbsentError()
    return { ...manifest, digest }
  }

  function findBlob(digest: Digest): Uint8Array {
    const bytes = image.blobs.get(digest)
    if (!bytes) throw createAbsentError()
    return bytes
  }

  return {
    host,
    isProbe: true,
    identity: () => Promise.resolve(identity),
    async resolve(_name, reference) {
      const { digest, mediaType, bytes } = find(reference)
      return { digest, mediaType, size: bytes.length, identity }
    },
    async manifest(_name, reference) {
      const { digest, mediaType, bytes } = find(reference)
      return { digest, mediaType, bytes, identity }
    },
    async statBlob(_name, digest) {
      return { size: findBlob(digest).length, identity }
    },
    async blob(_name, digest, { from }) {
      const bytes = findBlob(digest)
      return { size: bytes.length, isPart: false, identity, body: yieldOnce(new Uint8Array(bytes.subarray(from))) }
    },
    async tags(name) {
      const bytes = Buffer.from(JSON.stringify({ name, tags: [tag] }))
      return { bytes, next: undefined, filtersApplied: undefined, identity }
    },
    referrers: () => Promise.resolve(undefined),
    health: () => ({ state: 'ok', rateLimit: undefined }),
  }
}

async function* yieldOnce(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield await Promise.resolve(bytes)
}

function createAbsentError(): UpstreamError {
  return new UpstreamError('absent', 404, 'The mirror offers nothing else under this name.')
}
