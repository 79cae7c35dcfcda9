// Takes the pictures of docs/dashboard.md: `npm run screenshots`. Starts a real mirror in front of made-up registries, with a history
// of a day, pulls of several clients, a registry in trouble and two downloads under way. Needs Chromium and a build.
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer, request } from 'node:http'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { chromium } from 'playwright-core'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
const folder = join(root, 'docs', 'images')
const maxBytes = 250_000
const MiB = 1024 ** 2
const minute = 60_000
const manifestType = 'application/vnd.oci.image.manifest.v1+json'
const executablePath = ['/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'].find((path) =>
  existsSync(path),
)
if (executablePath === undefined) throw new Error('Chromium is not installed')

/** Lists images with the sizes of their layers, MiB. */
const images = [
  ['docker.io/library/alpine:3.20', [3.5]],
  ['docker.io/library/redis:7.4', [27, 12, 0.1]],
  ['docker.io/library/postgres:17', [28, 9, 71, 4]],
  ['docker.io/library/nginx:1.27-alpine', [3.6, 15]],
  ['docker.io/library/node:24-slim', [28, 49, 1.7]],
  ['docker.io/library/python:3.13', [48, 24, 64]],
  ['docker.io/grafana/grafana:12.1.0', [3.6, 82, 21]],
  ['ghcr.io/cloudnative-pg/postgresql:17.5', [28, 96]],
  ['ghcr.io/astral-sh/uv:0.8-bookworm', [46, 18]],
  ['quay.io/prometheus/prometheus:v3.5.0', [1, 44, 41]],
  ['quay.io/jetstack/cert-manager-controller:v1.18.2', [0.8, 19]],
  ['registry.k8s.io/pause:3.10', [0.3]],
  ['registry.k8s.io/coredns/coredns:v1.12.1', [0.1, 20]],
].map(([name, sizes], index) => createImage(name, sizes, index))
/** Lists the images that arrive slowly. */
const arriving = [
  ['mcr.microsoft.com/playwright:v1.55.0-noble', [190]],
  ['docker.io/library/golang:1.25', [68]],
].map(([name, sizes], index) => createImage(name, sizes, index + 100))
/** Lists the programs that pull, with their addresses. */
const clients = [
  { localAddress: '127.0.0.1', agent: 'docker/28.3.2 go/go1.24.5 os/linux arch/amd64' },
  { localAddress: '127.18.0.3', agent: 'containerd/v2.1.4' },
  { localAddress: '127.18.0.4', agent: 'containerd/v2.1.4' },
  { localAddress: '127.0.0.1', agent: 'containers/5.35.0 (github.com/containers/image)' },
]

const home = mkdtempSync(join(homedir(), '.mirror-screenshots-'))
const open = []
process.on('exit', () => rmSync(home, { recursive: true, force: true }))
try {
  await takePictures()
} finally {
  for (const close of open.toReversed()) await close()
}

async function takePictures() {
  const troubled = new Set()
  const hosts = [...new Set([...images, ...arriving].map(({ host }) => host))]
  const upstreams = {}
  for (const host of hosts) upstreams[host] = { url: await startRegistry(host, troubled), credentials: 'anonymous' }
  seedState()
  const mirror = await startMirror(upstreams)

  for (const [index, image] of images.entries()) {
    await pull(mirror.cache, image, clients[index % 3])
    for (let again = 1; again <= index % 3; again += 1) await pull(mirror.cache, image, clients[(index + again) % 3])
  }
  await send(mirror.cache, 'HEAD', toPath(images[3], 'manifests/1.27-alpine'), clients[3])
  await push(mirror.registry, 'team/app:1.4', createImage('docker.io/team/app:1.4', [24, 6], 200))
  await push(mirror.registry, 'team/worker:dev', createImage('docker.io/team/worker:dev', [24, 11], 201))
  await send(mirror.cache, 'GET', '/v2/registry.corp.example/base/manifests/1', clients[0])
  troubled.add('quay.io')
  await send(mirror.cache, 'GET', '/v2/quay.io/prometheus/alertmanager/manifests/v0.28.1', clients[1])
  await send(mirror.cache, 'GET', toPath(images[9], 'manifests/v3.5.0'), clients[1])
  await storeFindings(mirror)
  const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] })
  open.push(() => browser.close())
  mkdirSync(folder, { recursive: true })
  const desktop = { viewport: { width: 1280, height: 940 } }
  await picture(
    browser,
    'dark',
    `${mirror.admin}/#/images`,
    { ...desktop, viewport: { width: 1280, height: 740 }, colorScheme: 'dark' },
    await link(mirror),
  )
  for (const [index, image] of arriving.entries()) {
    await send(mirror.cache, 'GET', toPath(image, `manifests/${image.tag}`), clients[index])
    for (const client of clients.slice(index, 2)) void pull(mirror.cache, image, client).catch(() => {})
  }
  // Wait until the speed of the downloads is known.
  await delay(8000)
  await picture(browser, 'light', await link(mirror), { ...desktop, colorScheme: 'light' })
  const phone = { viewport: { width: 360, height: 780 }, deviceScaleFactor: 2, isMobile: true, hasTouch: true }
  await picture(browser, 'phone', `${mirror.admin}/`, { ...phone, colorScheme: 'dark' })
}

/** Writes a picture of the page. `first` is opened before it, for its session. */
async function picture(browser, name, address, options, first) {
  const context = await browser.newContext(options)
  const page = await context.newPage()
  if (first !== undefined) await page.goto(first)
  if (first !== undefined) await page.getByText('This browser may change things.').waitFor()
  await page.goto(address)
  await page.locator('main .panel').first().waitFor()
  await delay(3000)
  const file = join(folder, `dashboard-${name}.png`)
  await page.screenshot({ path: file })
  await context.close()
  const { size } = statSync(file)
  console.log(`${file}: ${size} bytes`)
  if (size > maxBytes) throw new Error(`${file} has more than ${maxBytes} bytes`)
}

/** Writes the statistics that the mirror finds at its start: totals of a month and the traffic of a day. */
function seedState() {
  mkdirSync(join(home, 'state'), { recursive: true, mode: 0o700 })
  const now = Math.floor(Date.now() / minute) * minute
  let lines = ''
  for (let at = now - 24 * 60 * minute; at < now; at += minute) {
    const noise = (Math.abs(Math.sin((at / minute) * 12.9898)) * 43_758.5453) % 1
    // Let the day look the same whenever the pictures are taken: quiet at first, then busy with a break.
    const share = (at - now) / (24 * 60 * minute) + 1
    const busy = share < 0.45 ? 0.03 : Math.abs(Math.sin((share - 0.45) * 9.5)) * 0.4 + 0.04
    if (noise > busy) continue
    const hits = 4 + Math.round(noise * 90)
    const misses = noise < 0.1 ? Math.round(hits * 0.6) : Math.round(hits * 0.05)
    const isLate = share > 0.9
    const times = {
      'docker.io': toTimes(misses + 2, 96 + noise * 120),
      'ghcr.io': toTimes(misses + 1, 140 + noise * 100),
      'quay.io': toTimes(misses + 1, isLate ? 780 : 190 + noise * 130),
      'registry.k8s.io': toTimes(1, 70 + noise * 40),
    }
    const served = Math.round((hits + misses) * 9.3 * MiB)
    const fetched = Math.round(misses * 8.9 * MiB)
    const stale = isLate && noise < 0.2 ? Math.round(hits / 3) : 0
    const counts = [Math.round(hits / 6), hits, stale, misses, 0, served, fetched, Math.round(hits * 9.3 * MiB)]
    lines += `${JSON.stringify(['m', at, counts, times])}\n`
  }
  writeFileSync(join(home, 'state', 'history.jsonl'), lines)
  const totals = { pulls: 1874, requests: 21_930, hits: 19_702, misses: 2228, collapsed: 64, revalidated: 6120 }
  const bytes = { bytesServed: 214 * 1024 * MiB, bytesFromUpstream: 27 * 1024 * MiB, bytesSaved: 188 * 1024 * MiB }
  const counted = {
    'docker.io': { hits: 12_410, misses: 1203, bytesFromUpstream: 14 * 1024 * MiB },
    'ghcr.io': { hits: 3120, misses: 402, bytesFromUpstream: 6 * 1024 * MiB },
    'quay.io': { hits: 2088, misses: 331, bytesFromUpstream: 4 * 1024 * MiB },
    'registry.k8s.io': { hits: 2084, misses: 292, bytesFromUpstream: 3 * 1024 * MiB },
  }
  const saved = { since: Date.now() - 34 * 86_400_000, totals: { ...totals, ...bytes }, upstreams: counted }
  writeFileSync(join(home, 'state', 'stats.json'), JSON.stringify(saved))
}

/** Returns the number of requests, the sum of their times and the longest one, ms. */
function toTimes(requests, mean) {
  return [requests, Math.round(requests * mean), Math.round(mean * 2)]
}

async function startMirror(upstreams) {
  const config = {
    cache: { listen: ['127.0.0.1:0'], minFree: 0, maxSize: '1GiB', prefetch: { layers: 0 } },
    registry: { enabled: true, listen: ['127.0.0.1:0'] },
    admin: { listen: ['127.0.0.1:0'] },
    networks: [],
    upstreams,
  }
  writeFileSync(join(home, 'mirror.yaml'), JSON.stringify(config))
  const child = spawn(process.execPath, [join(root, 'bin', 'run.js'), 'serve'], {
    env: { ...process.env, MIRROR_HOME: home },
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
  })
  open.push(async () => {
    child.kill('SIGKILL')
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
  })
  const [message] = await once(child, 'message')
  if (message.type !== 'ready') throw new Error(JSON.stringify(message))
  const { cache, registry, admin } = message.endpoints
  return { cache: cache[0], registry: registry[0], admin: admin[0] }
}

/** Returns the address that begins a session. */
async function link({ admin }) {
  const response = await fetch(`${admin}/api/session/ticket`, {
    method: 'POST',
    headers: { authorization: getToken() },
  })
  return `${admin}/#ticket=${(await response.json()).ticket}`
}

function getToken() {
  return `Bearer ${readFileSync(join(home, 'state', 'token'), 'utf8').trim()}`
}

async function storeFindings({ admin }) {
  const results = [
    { id: 'mirror.version', group: 'mirror', state: 'ok', saw: 'The command and the mirror have the same version.' },
    {
      id: 'clients.podman.not-configured',
      group: 'clients',
      subject: 'podman',
      state: 'fail',
      saw: 'podman pulls docker.io from the origin.',
      fix: { command: 'mirror configure podman', isOwn: false },
    },
  ]
  const report = {
    at: new Date().toISOString(),
    durationMs: 1400,
    counts: { ok: 1, warn: 0, fail: 1, skipped: 0 },
    results,
  }
  const headers = { authorization: getToken(), 'content-type': 'application/json' }
  await fetch(`${admin}/api/doctor`, { method: 'PUT', headers, body: JSON.stringify(report) })
}

/** Starts a registry; requests to one in trouble get 502, and blobs of arriving images come slowly. */
async function startRegistry(host, troubled) {
  const own = [...images, ...arriving].filter((image) => image.host === host)
  const latency = { 'docker.io': 105, 'ghcr.io': 150, 'quay.io': 420 }[host] ?? 75
  const quota = { 'ratelimit-limit': '100;w=21600', 'ratelimit-remaining': '83;w=21600' }
  const server = createServer((incoming, response) => {
    setTimeout(answer, latency, incoming, response)
  })
  function answer(incoming, response) {
    if (troubled.has(host)) return response.writeHead(502).end()
    const [, repository, reference] = /^\/v2\/(.+)\/(?:manifests|blobs)\/([^/]+)$/.exec(incoming.url) ?? []
    const image = own.find((image) => image.repository === repository)
    const digest = reference === image?.tag ? image?.manifest : reference
    const bytes = image?.contents.get(digest)
    if (bytes === undefined) return response.writeHead(incoming.url === '/v2/' ? 200 : 404).end()
    response.writeHead(200, {
      'content-type': digest === image.manifest ? manifestType : 'application/octet-stream',
      'content-length': bytes.length,
      'docker-content-digest': digest,
      ...(host === 'docker.io' ? quota : {}),
    })
    if (incoming.method === 'HEAD') return response.end()
    if (!arriving.includes(image) || bytes.length < MiB) return response.end(bytes)
    return drip(response, bytes, host === 'docker.io' ? 0.2 * MiB : 0.55 * MiB)
  }
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  open.push(() => server.closeAllConnections())
  open.push(() => server.close())
  return `http://127.0.0.1:${server.address().port}`
}

/** Sends a third of the bytes at once, and the others at a speed in bytes per quarter of a second. */
async function drip(response, bytes, speed) {
  let sent = Math.round(bytes.length / 4)
  response.write(bytes.subarray(0, sent))
  while (sent < bytes.length && !response.destroyed) {
    await delay(250)
    response.write(bytes.subarray(sent, sent + speed))
    sent += speed
  }
  response.end()
}

/** Creates an image; the bytes of its layers depend on the seed. */
function createImage(name, sizes, seed) {
  const [, host, repository, tag] = /^([^/]+)\/(.+):([^:]+)$/.exec(name)
  const contents = new Map()
  const add = (bytes) => {
    const digest = `sha256:${createHash('sha256').update(bytes).digest('hex')}`
    contents.set(digest, bytes)
    return { digest, size: bytes.length }
  }
  const layers = sizes.map((size, index) => ({
    mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip',
    ...add(Buffer.alloc(Math.round(size * MiB), `${seed} ${index} `)),
  }))
  const config = { mediaType: 'application/vnd.oci.image.config.v1+json', ...add(Buffer.from(`{"author":"${name}"}`)) }
  const { digest } = add(Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: manifestType, config, layers })))
  return { host, repository, tag, contents, manifest: digest, layers, config }
}

function toPath({ host, repository }, rest) {
  return `/v2/${host}/${repository}/${rest}`
}

async function pull(cache, image, client) {
  const paths = [`manifests/${image.tag}`, ...[image.config, ...image.layers].map(({ digest }) => `blobs/${digest}`)]
  for (const path of paths) await send(cache, 'GET', toPath(image, path), client)
}

async function push(registry, name, { contents, manifest }) {
  const [repository, tag] = name.split(':')
  const client = { ...clients[0], type: 'application/octet-stream' }
  for (const [digest, bytes] of contents)
    if (digest !== manifest)
      await send(registry, 'POST', `/v2/${repository}/blobs/uploads/?digest=${digest}`, client, bytes)
  const headers = { ...client, type: manifestType }
  await send(registry, 'PUT', `/v2/${repository}/manifests/${tag}`, headers, contents.get(manifest))
}

/** Sends a request and reads the whole response. */
async function send(base, method, path, { localAddress, agent, type }, body) {
  const headers = { 'user-agent': agent, ...(type === undefined ? {} : { 'content-type': type }) }
  if (body !== undefined) headers['content-length'] = body.length
  const sent = request(`${base}${path}`, { method, localAddress, headers })
  sent.end(body)
  const [response] = await once(sent, 'response')
  response.resume()
  await once(response, 'close')
}
