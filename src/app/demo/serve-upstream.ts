import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseRoute } from '../../oci/route.ts'
import { commonHeaders } from '../../server/respond.ts'
import { SecureResponse } from '../../server/request-guard.ts'
import type { DemoImage } from './make-image.ts'

export interface DemoUpstream {
  readonly url: string
  /** What it has been asked for since the last look. */
  takeCounts(): { requests: number; bytes: number }
  close(): Promise<void>
}

/** A registry with one image in one repository, as far away and as fast as a real one. Latency in ms, bandwidth in bytes/s. */
export async function serveDemoUpstream(
  image: DemoImage,
  network: { readonly latency: number; readonly bandwidth: number },
): Promise<DemoUpstream> {
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
    const begun = performance.now()
    for (let at = 0; at < bytes.length && !response.destroyed; at += step) {
      response.write(bytes.subarray(at, at + step))
      const due = begun + ((at + step) / network.bandwidth) * 1000
      await sleep(Math.max(0, due - performance.now()))
    }
    response.end()
  }

  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve)
  })
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    takeCounts() {
      const taken = counts
      counts = { requests: 0, bytes: 0 }
      return taken
    },
    async close() {
      server.closeAllConnections()
      await new Promise((resolve) => {
        server.close(resolve)
      })
    },
  }
}
