// Serves two registries that can be broken while they run: a public one, and one that requires tokens and redirects blobs.
import { createServer } from 'node:http'
import { once } from 'node:events'
import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { bytesOf, layerSize, makeBlob, makeImage, manifestType } from './content.js'
import { between, createRandom, pick } from './random.js'

/**
 * @typedef {import('./content.js').Image} Image
 * @typedef {import('./content.js').Blob} Blob
 * @typedef {{ registry: string, name: string, tag: string, image: Image }} Published
 */

const repositories = 24
/** Sets the share of requests that meet a fault while upstreams are broken. */
const share = 0.15

export class Upstreams {
  #random
  #serial = 0
  /** Lists all published images, the oldest first. @type {Published[]} */
  published = []
  /** Lists all digests that a tag has had, by registry, repository and tag. @type {Map<string, Set<string>>} */
  history = new Map()
  /** Is true while requests meet faults. */
  isFaulty = false
  /** Counts requests by fault. @type {Record<string, number>} */
  faults = {}
  requests = 0
  /** @type {Map<string, Blob>} */
  #blobs = new Map()
  /** @type {Map<string, Image>} */
  #manifests = new Map()
  #tokens = new Map()
  #servers = []
  #urls = {}

  /** @param {number} seed */
  constructor(seed) {
    this.#random = createRandom(seed)
  }

  /** Returns the base URLs by registry. @returns {Record<string, string>} */
  get urls() {
    return { 'docker.io': this.#urls.plain, 'ghcr.io': this.#urls.guarded }
  }

  async start() {
    for (const kind of ['plain', 'guarded']) {
      const server = createServer((request, response) => void this.#serve(kind, request, response))
      server.keepAliveTimeout = 60_000
      server.listen(0, '127.0.0.1')
      await once(server, 'listening')
      this.#servers.push(server)
      this.#urls[kind] = `http://127.0.0.1:${server.address().port}`
    }
    for (let at = 0; at < repositories * 2; at++) this.publish()
  }

  stop() {
    for (const server of this.#servers) {
      server.close()
      server.closeAllConnections()
    }
  }

  /** Publishes a new image and moves the tag `latest` of its repository. @returns {Published} */
  publish() {
    const random = this.#random
    const serial = (this.#serial += 1)
    const layers = Array.from({ length: between(random, 1, 4) }, (_, at) =>
      makeBlob(layerSize(random), serial * 16 + at),
    )
    const image = makeImage([makeBlob(1500, serial * 16 + 15), ...layers])
    const at = serial % repositories
    const registry = at % 3 === 0 ? 'ghcr.io' : 'docker.io'
    const entry = { registry, name: `soak/app${at}`, tag: `v${serial}`, image }
    for (const blob of image.blobs) this.#blobs.set(`${entry.name} ${blob.digest}`, blob)
    for (const reference of [entry.tag, 'latest', image.digest])
      this.#manifests.set(`${entry.name} ${reference}`, image)
    for (const tag of [entry.tag, 'latest']) {
      const key = `${registry} ${entry.name} ${tag}`
      this.history.set(key, (this.history.get(key) ?? new Set()).add(image.digest))
    }
    this.published.push(entry)
    return entry
  }

  async #serve(kind, request, response) {
    response.on('error', () => {})
    this.requests += 1
    const answer = this.#answer(kind, request)
    const body = request.method === 'HEAD' ? undefined : answer.body?.()
    const fault = this.isFaulty && this.#random() < share ? this.#pickFault(request) : undefined
    if (fault === undefined) {
      response.writeHead(answer.status, answer.headers).end(body)
      return
    }
    this.faults[fault] = (this.faults[fault] ?? 0) + 1
    await faults[fault](response, answer, body ?? Buffer.alloc(0), this.#random)
  }

  #pickFault(request) {
    const fault = pick(this.#random, Object.keys(faults))
    // Do not corrupt a token: it has no digest, so the mirror cannot tell a wrong token from a refused one.
    return fault === 'a wrong byte' && request.url.startsWith('/token') ? '503' : fault
  }

  /** @returns {{ status: number, headers: Record<string, string | number>, body?: () => Buffer }} */
  #answer(kind, request) {
    const { pathname } = new URL(request.url, 'http://upstream.invalid')
    if (pathname === '/token') return this.#issueToken()
    const isStorage = pathname.startsWith('/storage/')
    if (kind === 'guarded' && !isStorage && !this.#holdsToken(request)) {
      const realm = `Bearer realm="${this.#urls.guarded}/token",service="soak"`
      return json(
        401,
        { errors: [{ code: 'UNAUTHORIZED', message: 'a token is needed' }] },
        { 'www-authenticate': realm },
      )
    }
    if (pathname === '/v2/') return json(200, {})
    const [, name, type, reference] = /^\/(?:v2|storage)\/(.+)\/(manifests|blobs)\/([^/]+)$/.exec(pathname) ?? []
    const key = `${name} ${reference}`
    if (type === 'manifests') {
      const image = this.#manifests.get(key)
      if (!image) return json(404, { errors: [{ code: 'MANIFEST_UNKNOWN', message: 'not here' }] })
      const { bytes, digest } = image
      const headers = { 'content-type': manifestType, 'docker-content-digest': digest, 'content-length': bytes.length }
      return { status: 200, headers, body: () => bytes }
    }
    const blob = this.#blobs.get(key)
    if (!blob) return json(404, { errors: [{ code: 'BLOB_UNKNOWN', message: 'not here' }] })
    if (kind === 'guarded' && !isStorage) {
      const location = `${this.#urls.guarded}/storage/${name}/blobs/${reference}?X-Amz-Signature=${randomUUID()}`
      return { status: 307, headers: { location, 'content-length': 0 } }
    }
    const headers = { 'content-type': 'application/octet-stream', 'accept-ranges': 'bytes', etag: `"${blob.digest}"` }
    const [, first, last] = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '') ?? []
    if (first === undefined)
      return { status: 200, headers: { ...headers, 'content-length': blob.size }, body: () => bytesOf(blob) }
    const from = Number(first)
    const to = Math.min(last ? Number(last) : Infinity, blob.size - 1)
    if (from > to) return { status: 416, headers: { 'content-range': `bytes */${blob.size}`, 'content-length': 0 } }
    return {
      status: 206,
      headers: { ...headers, 'content-range': `bytes ${from}-${to}/${blob.size}`, 'content-length': to - from + 1 },
      body: () => bytesOf(blob).subarray(from, to + 1),
    }
  }

  #issueToken() {
    const token = randomUUID()
    this.#tokens.set(token, Date.now() + 20_000)
    return json(200, { token, expires_in: 20 })
  }

  #holdsToken(request) {
    const [, token] = /^Bearer (.+)$/.exec(request.headers.authorization ?? '') ?? []
    return (this.#tokens.get(token) ?? 0) > Date.now()
  }
}

function json(status, value, headers = {}) {
  const body = Buffer.from(JSON.stringify(value))
  return {
    status,
    headers: { 'content-type': 'application/json', 'content-length': body.length, ...headers },
    body: () => body,
  }
}

const page = Buffer.from('<html><body>Please log in to use this network.</body></html>')

/** Faults between registries and their clients, by name. @type {Record<string, (response: any, answer: any, body: Buffer, random: () => number) => unknown>} */
const faults = {
  'a wrong byte'(response, { status, headers }, body, random) {
    const wrong = Buffer.from(body)
    if (wrong.length > 0) wrong[between(random, 0, wrong.length - 1)] ^= 1
    response.writeHead(status, headers).end(wrong)
  },
  'a page of the same length'(response, { headers }, body) {
    response.writeHead(200, { ...headers, 'content-type': 'text/html' }).end(Buffer.alloc(body.length, page))
  },
  'a page'(response) {
    response.writeHead(200, { 'content-type': 'text/html', 'content-length': page.length }).end(page)
  },
  async 'a cut body'(response, { status, headers }, body, random) {
    response.writeHead(status, headers).flushHeaders()
    await new Promise((resolve) => response.write(body.subarray(0, between(random, 0, body.length)), resolve))
    await sleep(10)
    response.socket?.destroy()
  },
  'a reset connection'(response) {
    response.socket?.resetAndDestroy()
  },
  async 'a body that stops'(response, { status, headers }, body, random) {
    response.writeHead(status, headers).flushHeaders()
    response.write(body.subarray(0, between(random, 0, body.length)))
    await sleep(10_000)
    response.socket?.destroy()
  },
  async 'no answer'(response) {
    await sleep(10_000)
    response.socket?.destroy()
  },
  async 'a slow body'(response, { status, headers }, body) {
    response.writeHead(status, headers).flushHeaders()
    for (let at = 0; at < body.length && !response.destroyed; at += 100_000) {
      response.write(body.subarray(at, at + 100_000))
      await sleep(25)
    }
    response.end()
  },
  'a body that is said to be gzipped'(response, { status, headers }, body) {
    response.writeHead(status, { ...headers, 'content-encoding': 'gzip' }).end(body)
  },
  'a wrong length'(response, { status, headers }, body) {
    response
      .writeHead(status, { ...headers, 'content-length': body.length + 1 })
      .end(Buffer.concat([body, page.subarray(0, 1)]))
  },
  500(response) {
    response.writeHead(500, { 'content-length': page.length }).end(page)
  },
  503(response) {
    response.writeHead(503, { 'content-length': 0 }).end()
  },
  429(response) {
    response.writeHead(429, { 'retry-after': '1', 'content-length': 0 }).end()
  },
}
