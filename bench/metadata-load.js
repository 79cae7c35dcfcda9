// Makes images without end, serves them, and pulls them, for the measurements of metadata.
import { once } from 'node:events'
import { Agent, createServer, request } from 'node:http'
import { digestOf, makeManifest } from './manifest.js'

export const types = {
  manifest: 'application/vnd.oci.image.manifest.v1+json',
  config: 'application/vnd.oci.image.config.v1+json',
  layer: 'application/vnd.oci.image.layer.v1.tar+gzip',
}
const layersEach = 12
const atOnce = 8

const repository = 'bench/grown'
export const manifestPath = (tag) => `/v2/${repository}/manifests/${tag}`
export const blobPath = (digest) => `/v2/${repository}/blobs/${digest}`

/** Makes the image of a number: a config and layers of a few bytes, which no other image has. */
export function makeImage(number) {
  const blobs = new Map()
  const put = (text) => {
    const bytes = Buffer.from(text)
    const digest = digestOf(bytes)
    blobs.set(digest, bytes)
    return { digest, size: bytes.length }
  }
  const config = put(`{"architecture":"amd64","os":"linux","number":${number}}`)
  const layers = Array.from({ length: layersEach }, (_, layer) => put(`layer ${layer} of image ${number}`))
  return { ...makeManifest(types, config, layers), config, layers, blobs }
}

/** Starts a registry in this process that has every image; it makes their content when it is asked for it. */
export async function startUpstream() {
  const [manifests, blobs, sockets] = [new Map(), new Map(), new Set()]
  const find = (path) => {
    const [, kind, name] = /\/(manifests|blobs)\/([^/]+)$/.exec(path) ?? []
    if (path === '/v2/') return { bytes: Buffer.from('{}'), type: 'application/json' }
    if (kind === 'blobs') return { bytes: blobs.get(name), type: 'application/octet-stream', digest: name }
    if (kind !== 'manifests') return { bytes: undefined }
    if (!name.startsWith('t')) return { bytes: manifests.get(name), type: types.manifest, digest: name }
    const image = makeImage(Number(name.slice(1)))
    manifests.set(image.digest, image.bytes)
    for (const [digest, bytes] of image.blobs) blobs.set(digest, bytes)
    return { bytes: image.bytes, type: types.manifest, digest: image.digest }
  }
  const server = createServer((asked, answer) => {
    const { bytes, type, digest } = find(asked.url.split('?')[0])
    if (bytes === undefined) return answer.writeHead(404, { 'content-length': 0 }).end()
    const named = digest === undefined ? {} : { 'docker-content-digest': digest }
    answer.writeHead(200, { 'content-type': type, 'content-length': bytes.length, ...named })
    answer.end(asked.method === 'HEAD' ? undefined : bytes)
  })
  server.on('connection', (socket) => sockets.add(socket))
  server.keepAliveTimeout = 60_000
  await once(server.listen(0, '127.0.0.1'), 'listening')
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    received: () => countBytes(sockets),
    stop: () => server.close().closeAllConnections(),
  }
}

function countBytes(sockets) {
  let bytes = 0
  for (const { bytesRead } of sockets) bytes += bytesRead
  return bytes
}

/** Sends requests to a server over connections that are kept, and counts the bytes that it receives. */
export class Client {
  #url
  #agent = new Agent({ keepAlive: true, maxSockets: 2 * atOnce })
  #sockets = new Set()

  constructor(url) {
    this.#url = url
  }

  get(path) {
    return this.ask('GET', path, { accept: types.manifest })
  }

  async ask(method, path, headers, body) {
    const length = body === undefined ? {} : { 'content-length': body.length }
    const sent = request(new URL(path, this.#url), { agent: this.#agent, method, headers: { ...headers, ...length } })
    sent.once('socket', (socket) => this.#sockets.add(socket))
    const [response] = await once(sent.end(body), 'response')
    const chunks = []
    for await (const chunk of response) chunks.push(chunk)
    if (response.statusCode >= 300) throw new Error(`${method} ${path} was answered ${response.statusCode}`)
    return { headers: response.headers, body: Buffer.concat(chunks) }
  }

  received() {
    return countBytes(this.#sockets)
  }
}

/** Pulls the images, several at a time: the manifest by its tag, then the blobs that it names. Returns their bytes. */
export async function pullImages(client, numbers) {
  const sizes = await eachOf(numbers, async (at) => {
    const { body } = await client.get(manifestPath(`t${at}`))
    const { config, layers } = JSON.parse(body)
    const blobs = await Promise.all([config, ...layers].map(({ digest }) => client.get(blobPath(digest))))
    return blobs.reduce((sum, blob) => sum + blob.body.length, body.length)
  })
  return sizes.reduce((sum, size) => sum + size, 0)
}

export async function eachOf(items, act) {
  const [waiting, results] = [[...items], []]
  const work = async () => {
    while (waiting.length > 0) results.push(await act(waiting.shift()))
  }
  await Promise.all(Array.from({ length: atOnce }, work))
  return results
}

export function range(from, count) {
  return Array.from({ length: Math.max(0, count) }, (_, at) => from + at)
}
