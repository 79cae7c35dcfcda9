import { makeImage, type TestImage } from './images.ts'
import { startTestMirror, type TestMirror, type TestMirrorOptions } from './mirror.ts'
import { noise } from './noise.ts'
import { startUpstream, type TestUpstream } from './upstream.ts'
import type { AuthOptions } from './upstream-auth.ts'
import type { UpstreamConfig } from '../../src/config/config.ts'
import type { Digest } from '../../src/oci/reference.ts'

export interface SceneOptions extends Omit<TestMirrorOptions, 'upstreams'> {
  /** `library/app:v1`; default: an image of one layer of 300 kB. */
  readonly image?: TestImage
  readonly auth?: AuthOptions
  /** Makes the mirror take the registry for Docker Hub: a proxy that answers in its place. Default: a registry of another host. */
  readonly isDockerHub?: boolean
  /** Settings of the mirror for the upstream. */
  readonly upstream?: Partial<UpstreamConfig>
}

export interface Scene {
  readonly upstream: TestUpstream
  readonly mirror: TestMirror
  readonly image: TestImage
  /** Digest and bytes of the first layer. */
  readonly layer: Digest
  readonly layerBytes: Buffer
}

export const layerSize = 300_000

/** The path of the scene's repository. */
export const app = '/v2/library/app'

/** Starts a mirror, and as its docker.io a registry with one image, `library/app:v1`. */
export async function startScene(options: SceneOptions = {}): Promise<Scene> {
  const { image = makeImage({ layers: [noise(layerSize)] }), auth, upstream: asked, isDockerHub, ...rest } = options
  const upstream = await startUpstream({ images: { 'library/app': { v1: image } }, ...(auth ? { auth } : {}) })
  const url = isDockerHub ? 'http://registry-1.docker.io' : upstream.url
  const env = { http_proxy: upstream.url, no_proxy: '', MIRROR_NO_QUOTA_PROBE: '1' }
  const mirror = await startTestMirror({
    ...rest,
    upstreams: { 'docker.io': { url, ...asked } },
    ...(isDockerHub && { env }),
  })
  const layer = image.layers[0] ?? image.digest
  return { upstream, mirror, image, layer, layerBytes: image.blobs.get(layer) ?? image.bytes }
}
