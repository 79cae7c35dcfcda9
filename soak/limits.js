// Measures the mirror at its limits: few descriptors, little memory, large JSON, floods of passwords and of log lines. Prints a table.
// It takes Linux and root (memory control groups, version 1). `node soak/limits.js json log` measures some parts only.
import { mkdirSync, mkdtempSync, readdirSync, rmdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { once } from 'node:events'
import { Agent } from 'node:http'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { bytesOf, digestOf, makeBlob, makeImage, manifestType } from './content.js'
import { Mirror } from './mirror.js'
import { request } from './request.js'
import { Upstreams } from './upstream.js'

const MB = 1_000_000
const MiB = 2 ** 20
const folder = mkdtempSync(join(tmpdir(), 'mirror-limits-'))
const rows = []
let serial = 0

/** @param {string} situation @param {string} goal @param {string} figure */
function note(situation, goal, figure) {
  rows.push([situation, goal, figure])
  process.stdout.write(`| ${situation} | ${goal} | ${figure} |\n`)
}

/** Runs `use` with a mirror of its own, and says how it stands afterwards. */
async function withMirror(options, use) {
  const upstreams = new Upstreams((serial += 1))
  await upstreams.start()
  const home = join(folder, String(serial))
  mkdirSync(home, { mode: 0o700 })
  const mirror = new Mirror(home, upstreams.urls, options)
  try {
    await mirror.start()
    return await use(mirror, upstreams)
  } finally {
    await mirror.stop()
    upstreams.stop()
    rmSync(home, { recursive: true, force: true })
  }
}

/** `200 × 12, 503 × 3` @param {readonly { status: number, complete: boolean, error?: string }[]} outcomes */
function tally(outcomes) {
  const counts = new Map()
  for (const { status, complete, error } of outcomes) {
    const result = status === 0 ? (error ?? 'no answer') : `${status}${complete ? '' : ' cut'}`
    counts.set(result, (counts.get(result) ?? 0) + 1)
  }
  return [...counts]
    .toSorted(([a], [b]) => (a < b ? -1 : 1))
    .map(([result, count]) => `${result} × ${count}`)
    .join(', ')
}

function times(count, make) {
  return Promise.all(Array.from({ length: count }, (_, at) => make(at)))
}

const afterwards = async (mirror) => {
  const { status, milliseconds } = await mirror.healthMs()
  const isSame = mirror.unexpectedEnds.length === 0
  return `${isSame ? 'the process lives on' : mirror.unexpectedEnds.join(', ')}, health ${status} after ${Math.round(milliseconds)} ms`
}

const peak = (mirror) => {
  mirror.observe()
  return `${Math.round(mirror.peakBytes / MiB)} MiB at most`
}

const mostFiles = (count) => ['sh', '-c', `ulimit -n ${count}; exec "$@"`, 'sh']

async function descriptors(limit) {
  const wrapper = mostFiles(limit)
  await withMirror({ wrapper }, async (mirror, upstreams) => {
    const { name, image, registry } = upstreams.published.find((each) => each.registry === 'docker.io')
    const blob = image.blobs.toSorted((a, b) => b.size - a.size)[0]
    const url = `${mirror.cacheUrl}/v2/${name}/blobs/${blob.digest}?ns=${registry}`
    const outcomes = await times(200, () => request(url, { headers: { connection: 'close' } }))
    const wrong = outcomes.filter(({ status, digest }) => status === 200 && digest !== blob.digest).length
    note(
      `${limit} descriptors, 200 clients want one blob at once`,
      'every answer is a right 200 or a 503',
      `${tally(outcomes)}; ${wrong} wrong; ${await afterwards(mirror)}`,
    )
  })
  await withMirror({ wrapper }, async (mirror) => {
    const sockets = await times(5000, (at) => {
      const { hostname, port } = new URL(at % 2 === 0 ? mirror.cacheUrl : mirror.registryUrl)
      const socket = connect(Number(port), hostname)
      socket.on('error', () => {}).on('data', () => {})
      return socket
    })
    await sleep(6000)
    const open = sockets.filter((socket) => !socket.destroyed && socket.readyState === 'open').length
    const answer = await request(`${mirror.cacheUrl}/v2/`, { headers: { connection: 'close' } })
    for (const socket of sockets) socket.destroy()
    await sleep(500)
    note(
      `${limit} descriptors, 5,000 idle connections to two listeners`,
      'the process lives on, and answers',
      `${open} stay open; a request meanwhile: ${answer.status || answer.error}; ${await afterwards(mirror)}`,
    )
  })
}

async function tooFewDescriptors() {
  const home = join(folder, 'few')
  mkdirSync(home, { mode: 0o700 })
  const mirror = new Mirror(home, { 'docker.io': 'http://127.0.0.1:1' }, { wrapper: mostFiles(40) })
  const failure = await mirror.start().then(
    () => mirror.stop().then(() => 'it started'),
    (error) => error.message,
  )
  note('40 descriptors', 'refused with the reason', failure.replaceAll('|', ' ').slice(0, 300))
}

async function memory(mebibytes) {
  const group = `/sys/fs/cgroup/memory/mirror-limits-${process.pid}`
  const inGroup = async (use) => {
    mkdirSync(group)
    writeFileSync(join(group, 'memory.limit_in_bytes'), String(mebibytes * MiB))
    const wrapper = ['sh', '-c', `echo $$ > ${group}/cgroup.procs; exec "$@"`, 'sh']
    try {
      return await withMirror({ wrapper, cache: { maxSize: '20GiB' } }, use)
    } finally {
      await sleep(200)
      rmdirSync(group)
    }
  }
  const where = `${mebibytes} MiB of memory`
  const survives = 'the process lives on'

  await inGroup(async (mirror, upstreams) => {
    const entries = await times(100, () => upstreams.publish())
    const outcomes = await Promise.all(
      entries.flatMap(({ registry, name, image }) =>
        image.blobs.map(({ digest }) => request(`${mirror.cacheUrl}/v2/${registry}/${name}/blobs/${digest}`)),
      ),
    )
    note(
      `${where}, ${outcomes.length} cold blobs at once`,
      survives,
      `${tally(outcomes)}; ${peak(mirror)}; ${await afterwards(mirror)}`,
    )
  })
  await inGroup(async (mirror) => {
    const blob = makeBlob(60 * MB, 999)
    await pushBlob(mirror, blob)
    const outcomes = await times(100, () => request(`${mirror.registryUrl}/v2/limits/app/blobs/${blob.digest}`))
    note(
      `${where}, 100 clients pull a held blob of 60 MB`,
      survives,
      `${tally(outcomes)}; ${peak(mirror)}; ${await afterwards(mirror)}`,
    )
  })
  await inGroup(async (mirror) => {
    const outcomes = await times(100, (at) => pushBlob(mirror, makeBlob(3 * MB, at)))
    note(
      `${where}, 100 pushes of a blob of 3 MB at once`,
      survives,
      `${tally(outcomes)}; ${peak(mirror)}; ${await afterwards(mirror)}`,
    )
  })
  await inGroup(async (mirror) => {
    const outcomes = await times(300, (at) => pushManifest(mirror, annotated(4.1 * MB, at)))
    note(
      `${where}, 300 pushes of a manifest of 4.1 MB at once`,
      survives,
      `${tally(outcomes)}; ${peak(mirror)}; ${await afterwards(mirror)}`,
    )
  })
  await inGroup(async (mirror) => {
    const outcomes = []
    for (let at = 0; at < 150; at++) outcomes.push(await pushManifest(mirror, annotated(4 * MB, at)))
    const before = peak(mirror)
    await mirror.stop()
    mirror.slowestStartMs = 0
    mirror.peakBytes = 0
    await mirror.start()
    const there = []
    for (let at = 0; at < 150; at += 10)
      there.push(await request(`${mirror.registryUrl}/v2/limits/app/manifests/v${at}`))
    note(
      `${where}, 150 pushes of 4 MB of annotations, then a restart`,
      'it starts, and everything is there',
      `${tally(outcomes)}; ${before}; restart ${Math.round(mirror.slowestStartMs)} ms, ${peak(mirror)} then; ${tally(there)}`,
    )
  })
}

function annotated(size, at) {
  const image = makeImage([config], { note: 'a'.repeat(Math.round(size) - 500), number: String(at) })
  return { tag: `v${at}`, bytes: image.bytes }
}

const agent = new Agent({ keepAlive: true, maxSockets: 400 })

async function pushBlob(mirror, blob) {
  const begun = await request(`${mirror.registryUrl}/v2/limits/app/blobs/uploads/`, { method: 'POST', agent })
  if (begun.status !== 202) return begun
  const location = new URL(begun.headers.location, mirror.registryUrl)
  location.searchParams.set('digest', blob.digest)
  return request(String(location), { method: 'PUT', body: bytesOf(blob), agent })
}

/** Every manifest here names this one. */
const config = makeBlob(2, 1)
/** Mirrors that hold it, or are about to. @type {WeakMap<Mirror, Promise<unknown>>} */
const prepared = new WeakMap()

async function pushManifest(mirror, { tag, bytes }) {
  if (!prepared.has(mirror)) prepared.set(mirror, pushBlob(mirror, config))
  await prepared.get(mirror)
  const headers = { 'content-type': manifestType }
  return request(`${mirror.registryUrl}/v2/limits/app/manifests/${tag}`, { method: 'PUT', body: bytes, headers, agent })
}

const pinger = `
  const { parentPort, workerData } = require('node:worker_threads')
  const { Agent, get } = require('node:http')
  const agent = new Agent({ keepAlive: true })
  const waits = []
  const ping = () => {
    const begun = performance.now()
    get(workerData, { agent }, (answer) => answer.resume().once('end', () => {
      waits.push(performance.now() - begun)
      setTimeout(ping, 5)
    }))
  }
  ping()
  parentPort.once('message', () => { parentPort.postMessage(waits); process.exit() })
`

async function largeJson() {
  const size = 4 * MB - 100
  const fill = (unit, head = '[', tail = ']') => {
    const count = Math.floor((size - head.length - tail.length) / unit.length)
    return Buffer.from(`${head}${unit.repeat(count)}`.replace(/,$/, '') + tail)
  }
  const keys = `{${Array.from({ length: 300_000 }, (_, at) => `"k${at}":0`).join(',')}}`
  const layer = JSON.stringify({ mediaType: 'a/b', digest: digestOf(Buffer.from('x')), size: 1 })
  const bodies = {
    nesting: Buffer.from('['.repeat(size / 2) + ']'.repeat(size / 2)),
    'empty objects': fill('{},'),
    numbers: fill('1,'),
    keys: Buffer.from(keys),
    escapes: fill('\\u0041', '{"a":"', '"}'),
    layers: fill(`${layer},`, '{"schemaVersion":2,"layers":[', ']}'),
  }
  await withMirror({}, async (mirror) => {
    // On a thread of its own: sending large bodies keeps this one busy.
    const pinging = new Worker(pinger, { eval: true, workerData: `${mirror.registryUrl}/v2/` })
    const outcomes = []
    for (const [name, bytes] of Object.entries(bodies)) {
      for (let round = 0; round < 5; round++) {
        outcomes.push(await pushManifest(mirror, { tag: name.replace(' ', '-'), bytes }))
      }
    }
    pinging.postMessage('end', [])
    const [waits] = await once(pinging, 'message')
    const sorted = waits.toSorted((a, b) => a - b)
    const at = (share) => Math.round(sorted[Math.floor((sorted.length - 1) * share)])
    note(
      `30 pushes of 4 MB of JSON made to be slow (${Object.keys(bodies).join(', ')})`,
      'others wait 100 ms at most (p99)',
      `p50 ${at(0.5)} ms, p99 ${at(0.99)} ms, at most ${at(1)} ms over ${sorted.length} requests; ${tally(outcomes)}; ${peak(mirror)}`,
    )
  })
}

async function logLines() {
  await withMirror({}, async (mirror) => {
    const until = Date.now() + 60_000
    let count = 0
    await times(50, async () => {
      while (Date.now() < until) {
        await request(`${mirror.cacheUrl}/v2/${'a'.repeat(200)}/manifests/${'b'.repeat(100)}?ns=nowhere.example`, {
          agent,
        })
        count += 1
      }
    })
    const state = join(mirror.home, 'state')
    const logs = readdirSync(state).filter((name) => name.startsWith('mirror.log'))
    const bytes = logs.reduce((sum, name) => sum + statSync(join(state, name)).size, 0)
    note(
      'a minute of requests that are each a line of the log',
      '32 MiB at most',
      `${count} requests, ${(bytes / MB).toFixed(1)} MB of log`,
    )
  })
}

async function passwords() {
  const file = join(folder, 'htpasswd')
  const { hashSync } = await import('bcryptjs')
  writeFileSync(file, `alice:${hashSync('right', 10)}\n`, { mode: 0o600 })
  await withMirror({ registry: { auth: { htpasswd: file } } }, async (mirror) => {
    const login = (password) => {
      const authorization = `Basic ${Buffer.from(`alice:${password}`).toString('base64')}`
      return request(`${mirror.registryUrl}/v2/`, { headers: { authorization }, agent })
    }
    const wrong = times(300, (at) => login(`wrong${at}`))
    await sleep(50)
    const begun = performance.now()
    let tries = 0
    for (;;) {
      tries += 1
      const { status } = await login('right')
      if (status === 200 || tries > 50) break
      await sleep(200)
    }
    const waited = Math.round(performance.now() - begun)
    note(
      '300 wrong passwords at once',
      'the right one gets in within seconds',
      `in after ${waited} ms and ${tries} tries; the wrong ones: ${tally(await wrong)}; ${await afterwards(mirror)}`,
    )
  })
}

process.stdout.write('| situation | goal | figure |\n|---|---|---|\n')
const parts = {
  async files() {
    for (const limit of [64, 128, 1024]) await descriptors(limit)
    await tooFewDescriptors()
  },
  async memory() {
    for (const mebibytes of [256, 512]) await memory(mebibytes)
  },
  json: largeJson,
  passwords,
  log: logLines,
}
const chosen = process.argv.slice(2)
for (const [name, measure] of Object.entries(parts)) if (chosen.length === 0 || chosen.includes(name)) await measure()
agent.destroy()
rmSync(folder, { recursive: true, force: true })
