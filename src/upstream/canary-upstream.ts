import type { Digest } from '../oci/digest.ts'
import type { Reference } from '../oci/reference.ts'
import type { Canary } from './probe-image.ts'
import { UpstreamError, type Upstream } from './upstream.ts'

const identity = 'anonymous'

/** A registry that holds one canary. The cache asks it as it asks any other, so that a pull proves the whole way. */
export function createCanaryUpstream(host: string, canary: Canary): Upstream {
  const { image, tag, seen } = canary

  function find(reference: Reference): {
    readonly mediaType: string
    readonly bytes: Uint8Array<ArrayBuffer>
    digest: Digest
  } {
    seen.set(host, (seen.get(host) ?? 0) + 1)
    const digest = reference.kind === 'digest' ? reference.digest : reference.tag === tag ? image.digest : undefined
    const manifest = digest && image.manifests.get(digest)
    if (!manifest) throw absent()
    return { ...manifest, digest }
  }

  function findBlob(digest: Digest): Uint8Array {
    const bytes = image.blobs.get(digest)
    if (!bytes) throw absent()
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
      return { size: bytes.length, isPart: false, identity, body: once(new Uint8Array(bytes.subarray(from))) }
    },
    async tags(name) {
      const bytes = Buffer.from(JSON.stringify({ name, tags: [tag] }))
      return { bytes, next: undefined, filtersApplied: undefined, identity }
    },
    referrers: () => Promise.resolve(undefined),
    health: () => ({ state: 'ok', rateLimit: undefined }),
  }
}

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield await Promise.resolve(bytes)
}

function absent(): UpstreamError {
  return new UpstreamError('absent', 404, 'The mirror offers nothing else under this name.')
}
