// Measures a large store and many connections.
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { peakMemory } from './accounting.js'
import { startMirror } from './servers.js'

const repositories = 100
const tagsEach = 100
const blobsEach = 9

/** Writes the files of a store with 100,000 blobs (10,000 of them manifests) and 10,000 tags. */
export function makeStore(home) {
  const root = join(home, 'data', 'cache', 'v1')
  const blobs = join(root, 'blobs', 'sha256')
  for (const folder of [
    blobs,
    join(root, 'blobs', 'sha512'),
    ...['tmp', 'repositories', 'quarantine'].map((name) => join(root, name)),
  ])
    mkdirSync(folder, { recursive: true, mode: 0o700 })
  const put = (text) => {
    const hex = createHash('sha256').update(text).digest('hex')
    writeFileSync(join(blobs, hex), text, { mode: 0o600 })
    return { digest: `sha256:${hex}`, size: Buffer.byteLength(text) }
  }
  const mediaType = 'application/vnd.oci.image.manifest.v1+json'
  for (let at = 0; at < repositories; at++) {
    const [tags, manifests] = [[], []]
    for (let number = 0; number < tagsEach; number++) {
      const layers = Array.from({ length: blobsEach }, (_, layer) => put(`${at}/${number}/${layer}`))
      const manifest = put(JSON.stringify({ schemaVersion: 2, mediaType, at, number, layers }))
      const links = layers.map((layer) => ({ kind: 'blob', mediaType: 'application/octet-stream', ...layer }))
      const known = { identity: 'anonymous', pulls: 1, lastPulled: 1 }
      tags.push({ tag: `t${number}`, digest: manifest.digest, checkedAt: 1, ...known })
      manifests.push({ ...manifest, mediaType, links, usedAt: at * tagsEach + number, ...known })
    }
    const name = `scale/r${at}`
    const file = createHash('sha256').update(`docker.io/${name}`).digest('hex')
    const record = { format: 1, host: 'docker.io', name, tags, manifests, blobs: [] }
    writeFileSync(join(root, 'repositories', `${file}.json`), JSON.stringify(record), { mode: 0o600 })
  }
  writeFileSync(join(root, 'clean'), '')
}

/** Measures the start and the status of a large store. */
export async function measureLargeStore(home, upstream) {
  const begun = performance.now()
  const mirror = await startMirror(home, upstream)
  const start = performance.now() - begun
  try {
    let status
    const deadline = performance.now() + 60_000
    do {
      // Pause between the requests, because polling without a pause would be a load of its own.
      await new Promise((resolve) => setTimeout(resolve, 100))
      const asked = performance.now()
      const report = await (await fetch(`${mirror.adminUrl}/api/status`)).json()
      status = { took: performance.now() - asked, blobs: report.storage.blobs, images: report.images.length }
    } while (status.blobs < repositories * tagsEach * (blobsEach + 1) && performance.now() < deadline)
    const memory = peakMemory(mirror.pid)
    await mirror.stop()
    return { start, status: status.took, blobs: status.blobs, images: status.images, memory }
  } catch (error) {
    await mirror.stop()
    throw error
  }
}

/** Measures the longest wait for a ping while most of the store is evicted. */
export async function measureEviction(home, upstream) {
  const mirror = await startMirror(home, upstream, { cache: { maxSize: '400KB' } })
  try {
    await new Promise((resolve) => setTimeout(resolve, 2000))
    const token = readFileSync(join(home, 'state', 'token'), 'utf8').trim()
    const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' }
    const over = new AbortController()
    const pruned = fetch(`${mirror.adminUrl}/api/cache/prune`, {
      method: 'POST',
      headers,
      body: '{"dryRun":false}',
    }).finally(() => over.abort())
    const pings = []
    while (!over.signal.aborted) pings.push(await ping(mirror.url))
    const { blobs } = await (await pruned).json()
    return { blobs, longest: pings.reduce((most, each) => Math.max(most, each), 0) }
  } finally {
    await mirror.stop()
  }
}

/** Measures pings while so many connections are open and idle. */
export async function measureIdle(mirror, connections) {
  const { hostname, port } = new URL(mirror.url)
  const sockets = []
  for (let at = 0; at < connections; at++) {
    const socket = connect(Number(port), hostname)
    socket.on('error', () => {})
    await once(socket, 'connect')
    socket.write('GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n')
    socket.resume()
    sockets.push(socket)
  }
  const pings = []
  for (let at = 0; at < 300; at++) pings.push(await ping(mirror.url))
  for (const socket of sockets) socket.destroy()
  return { p99: pings.toSorted((a, b) => a - b)[Math.floor(pings.length * 0.99)], memory: peakMemory(mirror.pid) }
}

async function ping(url) {
  const begun = performance.now()
  await (await fetch(`${url}/v2/`)).arrayBuffer()
  return performance.now() - begun
}
