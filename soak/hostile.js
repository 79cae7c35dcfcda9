// Sends requests that no honest client sends. Every response is allowed except a 500; the process must not end.
import { connect } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { manifestType } from './content.js'
import { createRandom, pick } from './random.js'
import { request } from './request.js'

const MB = 1_000_000

export class Hostile {
  #random

  /** @param {import('./soak.js').Scene} scene @param {number} seed */
  constructor(scene, seed) {
    this.scene = scene
    this.#random = createRandom(seed)
  }

  async act() {
    const [name, act] = pick(this.#random, Object.entries(acts))
    const { ledger, mirror } = this.scene
    const { epoch } = mirror
    if (!mirror.isUp) return
    const statuses = await act(mirror)
    if (mirror.epoch !== epoch) return
    for (const status of statuses) {
      ledger.count('hostile', String(status))
      if (status === 500) ledger.find(`500 for ${name}`)
    }
  }
}

/** @type {Record<string, (mirror: import('./mirror.js').Mirror) => Promise<number[]>>} */
const acts = {
  'bytes that are not HTTP': ({ cacheUrl }) => raw(cacheUrl, `${'\u0000\u0001\u0002'.repeat(100)}\r\n\r\n`),
  'two Host headers': ({ cacheUrl }) =>
    raw(cacheUrl, 'GET /v2/ HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n'),
  'a header without an end': ({ cacheUrl }) =>
    raw(cacheUrl, `GET /v2/ HTTP/1.1\r\nHost: localhost\r\nx: ${'a'.repeat(100_000)}`),
  'a path that climbs': ({ cacheUrl }) =>
    raw(cacheUrl, 'GET /v2/../../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n'),
  'many requests ahead': ({ cacheUrl }) => raw(cacheUrl, 'GET /v2/ HTTP/1.1\r\nHost: localhost\r\n\r\n'.repeat(200)),
  'another Host': async ({ cacheUrl }) => [
    (await request(`${cacheUrl}/v2/`, { headers: { host: 'evil.example' } })).status,
  ],
  'deep JSON': ({ registryUrl }) => pushManifest(registryUrl, Buffer.from('['.repeat(MB) + ']'.repeat(MB))),
  'many keys': ({ registryUrl }) =>
    pushManifest(registryUrl, Buffer.from(`{${Array.from({ length: 300_000 }, (_, at) => `"k${at}":0`).join(',')}}`)),
  'many objects': ({ registryUrl }) => pushManifest(registryUrl, Buffer.from(`{"layers":[${'{},'.repeat(MB)}{}]}`)),
  'a manifest too large': ({ registryUrl }) => pushManifest(registryUrl, Buffer.alloc(9 * MB, ' ')),
  'forty large manifests at once': async ({ registryUrl }) => {
    const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, annotations: { a: 'a'.repeat(4 * MB) } }))
    return (await Promise.all(Array.from({ length: 40 }, () => pushManifest(registryUrl, bytes)))).flat()
  },
  'a body that never comes': ({ registryUrl }) =>
    raw(
      registryUrl,
      'PUT /v2/soak/hostile/manifests/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n{',
      500,
    ),
  'two hundred idle connections': async ({ cacheUrl, registryUrl }) => {
    const urls = Array.from({ length: 200 }, (_, at) => (at % 2 === 0 ? cacheUrl : registryUrl))
    return (await Promise.all(urls.map((url) => raw(url, '', 1000)))).flat()
  },
}

async function pushManifest(registryUrl, body) {
  const url = `${registryUrl}/v2/soak/hostile/manifests/x`
  const { status } = await request(url, { method: 'PUT', body, headers: { 'content-type': manifestType } })
  return [status]
}

/** Writes bytes and waits for responses. @returns {Promise<number[]>} the status of each response that was recognised */
async function raw(url, text, waitMs = 300) {
  const { hostname, port } = new URL(url)
  const socket = connect(Number(port), hostname)
  socket.on('error', () => {})
  let said = ''
  socket.on('data', (chunk) => (said += chunk.toString('latin1')))
  socket.end(text === '' ? undefined : text)
  await sleep(waitMs)
  socket.destroy()
  return [...said.matchAll(/(?:^|\n)HTTP\/1\.1 (\d{3}) /g)].map(([, status]) => Number(status))
}
