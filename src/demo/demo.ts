import { randomBytes } from 'node:crypto'
import { rm } from 'node:fs/promises'
import { createServer, request, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { gzipSync } from 'node:zlib'
import { defaultConfig } from '../config/config.ts'
import { mirrorPaths } from '../config/paths.ts'
import { startMirror } from '../daemon/start.ts'
import { createTemporaryFolder } from '../lib/fs.ts'
import { silentLogger } from '../lib/logger.ts'
import { createSingleFileTar } from '../lib/tar.ts'
import { ImageContents, manifestAccept, mediaType, outlineManifest } from '../oci/content.ts'
import { type Digest, computeDigest } from '../oci/reference.ts'
import { parseRoute } from '../oci/route.ts'
import { SecureResponse } from '../server/request-guard.ts'
import { commonHeaders } from '../server/respond.ts'

export interface DemoPull extends Pull {
  /** Counts the requests to the upstream, and the bytes from it. */
  readonly upstreamRequests: number
  readonly upstreamBytes: number
}

export interface DemoStory {
  /** Describes the network between the mirror and its upstream: latency in ms, bandwidth in bytes/s a connection. */
  readonly network: { readonly latency: number; readonly bandwidth: number }
  readonly image: string
  readonly upstream: string
  readonly mirror: string
  readonly first: DemoPull
  readonly second: DemoPull
  /** Holds the pull with the upstream switched off. */
  readonly offline: DemoPull
}

/** Reports a finished step of the demo. */
export type DemoStep =
  | { readonly kind: 'set-up'; readonly upstream: string; readonly mirror: string; readonly image: string }
  | { readonly kind: 'pulled'; readonly which: 'first' | 'second' | 'offline'; readonly pull: DemoPull }

const registry = 'registry.example'
const repository = 'demo/app'
const tag = '1'
const network = { latency: 40, bandwidth: 12 * 1024 ** 2 }

/** Runs the demo on one machine: an upstream made for it, a pull that misses, one that hits, and one without the upstream. */
export async function runDemo(onStep: (step: DemoStep) => void): Promise<DemoStory> {
  const home = await createTemporaryFolder('mirror-demo-')
  const upstream = await serveDemoUpstream(makeDemoImage(), network)
  try {
    const config = defaultConfig()
    config.cache.listen = [{ host: '127.0.0.1', port: 0 }]
    config.admin.listen = [{ host: '127.0.0.1', port: 0 }]
    config.registry.enabled = false
    config.networks = []
    config.upstreams = {
      [registry]: {
        url: upstream.url,
        credentials: { from: 'anonymous' },
        tokenHosts: [],
        ca: undefined,
        tagFreshness: undefined,
      },
    }
    const paths = mirrorPaths({ platform: process.platform, env: { MIRROR_HOME: home }, homedir: home, cwd: home })
    // Use no proxy, even when this machine has one, and no server beyond this machine.
    const env = { ...process.env, no_proxy: '*', MIRROR_NO_QUOTA_PROBE: '1' }
    const options = { home: paths, version: 'demo', runtime: 'process', logger: silentLogger, env } as const
    const mirror = await startMirror(config, options)
    try {
      const cacheUrl = mirror.endpoints.cache[0]!
      const image = `${registry}/${repository}:${tag}`
      onStep({ kind: 'set-up', upstream: upstream.url, mirror: cacheUrl, image })
      const pull = async (which: 'first' | 'second' | 'offline'): Promise<DemoPull> => {
        upstream.takeCounts()
        const pulled = await pullImage(cacheUrl, `${registry}/${repository}`, tag)
        const { requests: upstreamRequests, bytes: upstreamBytes } = upstream.takeCounts()
        const measured = { ...pulled, upstreamRequests, upstreamBytes }
        onStep({ kind: 'pulled', which, pull: measured })
        return measured
      }
      const first = await pull('first')
      const second = await pull('second')
      await upstream.close()
      const offline = await pull('offline')
      return { network, image, upstream: upstream.url, mirror: cacheUrl, first, second, offline }
    } finally {
      await mirror.close()
    }
  } finally {
    await upstream.close()
    await rm(home, { recursive: true, force: true })
  }
}

/** Holds an image as a registry serves it: manifests and blobs by digest. */
interface DemoImage {
  readonly digest: Digest
  readonly manifests: ReadonlyMap<Digest, { readonly mediaType: string; readonly bytes: Uint8Array }>
  readonly blobs: ReadonlyMap<Digest, Uint8Array>
}

const layerSizes = [12_000_000, 9_000_000, 5_000_000, 400_000]

/** Makes a typical multi-platform image: an index, two platforms with four layers each, which share the first. */
function makeDemoImage(): DemoImage {
  const contents = new ImageContents()
  const shared = makeLayer('shared', layerSizes[0]!)
  const platforms = ['amd64', 'arm64'].map((architecture) => {
    const tars = [shared, ...layerSizes.slice(1).map((size, at) => makeLayer(`${architecture}-${at}`, size))]
    const layers = tars.map((tar) => contents.addBlob(mediaType.ociLayerGzip, gzipSync(tar, { level: 0 })))
    const rootfs = { type: 'layers', diff_ids: tars.map((tar) => computeDigest(tar)) }
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
  return createSingleFileTar(`demo/${name}`, randomBytes(size))
}

/** Starts a registry with one image in one repository. `latency` in ms, `bandwidth` in bytes/s. */
async function serveDemoUpstream(image: DemoImage, network: { readonly latency: number; readonly bandwidth: number }) {
  let counts = { requests: 0, bytes: 0 }
  const server = createServer({ ServerResponse: SecureResponse }, (request, response) => {
    void answer(request.method ?? 'GET', request.url ?? '/', response)
  })

  async function answer(method: string, url: string, response: ServerResponse): Promise<void> {
    counts.requests += 1
    await sleep(network.latency)
    const route = parseRoute(url, 'plain')
    if (route.kind === 'manifest') {
      const digest = route.reference.kind === 'digest' ? route.reference.digest : image.digest
      const manifest = image.manifests.get(digest)
      if (manifest)
        return send(method, response, manifest.bytes, {
          'content-type': manifest.mediaType,
          'docker-content-digest': digest,
        })
    }
    const blob = route.kind === 'blob' ? image.blobs.get(route.digest) : undefined
    if (blob) return send(method, response, blob, { 'content-type': 'application/octet-stream' })
    response.writeHead(route.kind === 'base' ? 200 : 404, { ...commonHeaders }).end()
  }

  async function send(
    method: string,
    response: ServerResponse,
    bytes: Uint8Array,
    headers: Record<string, string>,
  ): Promise<void> {
    response.writeHead(200, { ...commonHeaders, ...headers, 'content-length': bytes.length })
    if (method === 'HEAD') {
      response.end()
      return
    }
    counts.bytes += bytes.length
    const tick = 10
    const step = Math.ceil((network.bandwidth * tick) / 1000)
    const startedAt = performance.now()
    for (let at = 0; at < bytes.length && !response.destroyed; at += step) {
      response.write(bytes.subarray(at, at + step))
      const dueAt = startedAt + ((at + step) / network.bandwidth) * 1000
      await sleep(Math.max(0, dueAt - performance.now()))
    }
    response.end()
  }

  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve)
  })
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    /** Returns the requests and the bytes since the last call. */
    takeCounts() {
      const taken = counts
      counts = { requests: 0, bytes: 0 }
      return taken
    },
    async close(): Promise<void> {
      server.closeAllConnections()
      await new Promise((resolve) => {
        server.close(resolve)
      })
    },
  }
}

/** Measures one pull. */
interface Pull {
  readonly milliseconds: number
  readonly requests: number
  readonly bytes: number
}

interface Answer {
  readonly bytes: Buffer
  readonly contentType: string
}

/**
 * Pulls an image as containerd does: HEAD of the tag, the index and one manifest by digest, config and layers, three at once.
 * `base` is the registry's URL. Every byte is checked against its digest.
 */
async function pullImage(cacheUrl: string, repository: string, tag: string): Promise<Pull> {
  const startedAt = performance.now()
  let requests = 0
  let bytes = 0
  const sendRequest = async (method: string, path: string): Promise<Answer & { digest: string | undefined }> => {
    requests += 1
    const answer = await send(method, `${cacheUrl}/v2/${repository}/${path}`)
    bytes += answer.bytes.length
    return answer
  }
  const getContent = async (kind: 'manifests' | 'blobs', digest: Digest): Promise<Answer> => {
    const answer = await sendRequest('GET', `${kind}/${digest}`)
    if (computeDigest(answer.bytes) !== digest) throw new Error(`${digest} came with other bytes`)
    return answer
  }
  const readLinks = async (digest: Digest) => {
    const manifest = await getContent('manifests', digest)
    const outline = await outlineManifest(manifest.bytes, manifest.contentType)
    if (typeof outline === 'string') throw new Error(`${digest} is no manifest`)
    return outline.links
  }

  const head = await sendRequest('HEAD', `manifests/${tag}`)
  const [platform] = await readLinks(head.digest as Digest)
  const remainingLinks = (await readLinks(platform!.digest)).values()
  const fetchInTurn = async () => {
    for (const { digest } of remainingLinks) await getContent('blobs', digest)
  }
  await Promise.all([fetchInTurn(), fetchInTurn(), fetchInTurn()])
  return { milliseconds: performance.now() - startedAt, requests, bytes }
}

function send(method: string, url: string): Promise<Answer & { digest: string | undefined }> {
  return new Promise((resolve, reject) => {
    const clientRequest = request(
      url,
      { method, headers: { accept: manifestAccept, 'user-agent': 'mirror-demo' } },
      (response) => {
        const chunks: Buffer[] = []
        response.on('data', (chunk: Buffer) => chunks.push(chunk))
        response.on('error', reject)
        response.on('end', () => {
          if (response.statusCode !== 200)
            return reject(new Error(`${method} ${url} was answered ${response.statusCode}`))
          const digest = response.headers['docker-content-digest']
          resolve({
            bytes: Buffer.concat(chunks),
            contentType: response.headers['content-type'] ?? '',
            digest: typeof digest === 'string' ? digest : undefined,
          })
        })
      },
    )
    clientRequest.on('error', reject)
    clientRequest.end()
  })
}
