// Measures what the metadata of repositories costs while they grow: this mirror, another build of it and docker-registry in one run.
import { createHash, randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { cpuSeconds, currentMemory, median, writtenBytes } from './accounting.js'
import { makeManifest } from './manifest.js'
import {
  blobPath,
  Client,
  eachOf,
  makeImage,
  manifestPath,
  pullImages,
  range,
  startUpstream,
  types,
} from './metadata-load.js'
import { reportMetadata } from './metadata-report.js'
import { installPrograms } from './programs.js'
import { startDockerRegistry, startMirror } from './servers.js'

const loopDelay = new URL('../test/support/loop-delay.mjs', import.meta.url).href
const linksEach = 10
const manifestsPerFile = 100
const atOnce = 8
const sampled = 10
/** Numbers images that are not among those that grow a repository. */
const spare = 1_000_000
const MiB = 2 ** 20
const env = { MIRROR_LOG_LEVEL: 'warn' }

/**
 * Sets how much is measured. `images`: sizes of the repository at which `window` images are pulled. `hits`: its sizes at which hits are
 * measured, for so many seconds each. `tags`: pushed tags. `stores`: manifests of the stores that are started. `rounds`: of the hits
 * and of the starts. `loop`: images that are pulled while the event loop is watched, at least so many and until so many bytes are
 * written, or the time is over.
 */
const efforts = {
  quick: {
    images: [100, 800],
    window: 40,
    hits: [10, 800],
    seconds: 1,
    tags: 500,
    stores: [1000, 10_000],
    rounds: 1,
    loop: { images: 500, bytes: 4 * MiB, seconds: 8 },
  },
  full: {
    images: [1000, 5000, 20_000],
    window: 300,
    hits: [10, 1000, 20_000],
    seconds: 3,
    tags: 5000,
    stores: [10_000, 100_000],
    rounds: 3,
    loop: { images: 20_000, bytes: 100 * MiB, seconds: 120 },
  },
}

/** Measures the metadata; returns a section of RESULTS.md as lines. `release`: the folder of another build of the mirror. */
export async function benchMetadata({ quick = false, release = process.env.MIRROR_BENCH_RELEASE, ...sizes } = {}) {
  const effort = { ...efforts[quick ? 'quick' : 'full'], ...sizes }
  const folder = mkdtempSync(join(tmpdir(), 'mirror-bench-metadata-'))
  const upstream = await startUpstream()
  const builds = [{ name: 'mirror', build: undefined }]
  if (release !== undefined) builds.push({ name: 'other build', build: release })
  const running = []
  const start = async (starting) => {
    const server = await starting
    running.push(server)
    return server
  }
  try {
    const subjects = []
    for (const { name, build } of builds) {
      const options = { env, build, registry: { listen: ['127.0.0.1:0'] } }
      const mirror = await start(startMirror(join(folder, name), upstream.url, options))
      subjects.push({ name, cache: mirror, registry: { url: mirror.registryUrl, pid: mirror.pid } })
    }
    if (installPrograms().has('docker-registry')) {
      const cache = await start(startDockerRegistry(join(folder, 'proxy'), upstream.url))
      const registry = await start(startDockerRegistry(join(folder, 'registry')))
      subjects.push({ name: 'docker-registry', cache, registry })
    }
    const grown = await measureGrowth(subjects, upstream, effort)
    const pushes = {}
    for (const { name, registry } of subjects) pushes[name] = await measurePushes(registry, effort.tags)
    for (const server of running.splice(0)) await server.stop()
    const [starts, loops] = [{}, {}]
    for (const { name, build } of builds) {
      loops[name] = await measureLoop(join(folder, `${name} loop`), upstream, build, effort.loop)
      starts[name] = await measureStarts(join(folder, `${name} start`), upstream, build, effort)
    }
    return reportMetadata(
      { names: subjects.map(({ name }) => name), ...grown, pushes, starts, loops },
      { ...effort, links: linksEach },
    )
  } finally {
    for (const server of running) await server.stop()
    upstream.stop()
    rmSync(folder, { recursive: true, force: true })
  }
}

/** Grows one repository of each cache, and measures whole pulls and hits at the sizes. */
async function measureGrowth(subjects, upstream, { images, window, hits, seconds, rounds }) {
  const [pulls, warm] = [{}, {}]
  for (const { name } of subjects) [pulls[name], warm[name]] = [[], []]
  const held = new Map(subjects.map((subject) => [subject, 0]))
  // Pull before measuring, because the first requests load and compile code.
  for (const { cache } of subjects) {
    await pullImages(new Client(cache.url), range(spare, sampled))
    await measureHits(cache, range(spare, sampled), seconds, 1)
  }
  for (const size of [...new Set([...images, ...hits])].toSorted((a, b) => a - b))
    for (const subject of subjects) {
      const { name, cache } = subject
      const client = new Client(cache.url)
      // Fill with manifests alone: their links are what the repository's record grows by.
      await eachOf(range(held.get(subject), size - held.get(subject)), (at) => client.get(manifestPath(`t${at}`)))
      held.set(subject, Math.max(held.get(subject), size))
      if (hits.includes(size)) {
        const numbers = Array.from({ length: sampled }, (_, at) => Math.floor((at * size) / sampled))
        warm[name].push({ size, ...(await measureHits(cache, numbers, seconds, rounds)) })
      }
      if (images.includes(size)) {
        pulls[name].push({ size, ...(await measurePulls(cache, upstream, range(held.get(subject), window))) })
        held.set(subject, held.get(subject) + window)
      }
    }
  return { pulls, warm }
}

/** Measures the processor time of pulls of new images, and the bytes that are written beside their content. */
async function measurePulls(cache, upstream, numbers) {
  await settle()
  const client = new Client(cache.url)
  const before = { cpu: cpuSeconds(cache.pid), written: writtenBytes(cache.pid), asked: upstream.received() }
  const content = await pullImages(client, numbers)
  // Wait for delayed writes, which belong to these pulls.
  await settle()
  const written = writtenBytes(cache.pid)
  const sent = client.received() + upstream.received() - before.asked
  return {
    cpu: ((cpuSeconds(cache.pid) - before.cpu) / numbers.length) * 1000,
    beside: (written.calls - before.written.calls - sent - content) / numbers.length,
    disk: (written.disk - before.written.disk) / numbers.length,
  }
}

/** Measures the processor time of hits of the tags and of a blob of these images, µs: medians of the rounds. */
async function measureHits(cache, numbers, seconds, rounds) {
  const client = new Client(cache.url)
  await pullImages(client, numbers)
  const load = async (paths) => {
    await settle()
    const [before, deadline] = [cpuSeconds(cache.pid), performance.now() + seconds * 1000]
    let count = 0
    const work = async () => {
      while (performance.now() < deadline) await client.get(paths[count++ % paths.length])
    }
    await Promise.all(Array.from({ length: atOnce }, work))
    return ((cpuSeconds(cache.pid) - before) / count) * 1e6
  }
  const tags = numbers.map((at) => manifestPath(`t${at}`))
  const blobs = numbers.map((at) => blobPath(makeImage(at).layers[0].digest))
  const samples = []
  // Alternate, so that a noisy minute affects both.
  for (let round = 0; round < rounds; round++) samples.push({ tag: await load(tags), blob: await load(blobs) })
  const of = (key) => median(samples.map((sample) => sample[key]))
  return { tag: of('tag'), blob: of('blob') }
}

/** Pushes so many tags, each of a manifest of its own with the same layers; returns the processor time of each fifth, ms a tag. */
async function measurePushes(registry, tags) {
  const client = new Client(registry.url)
  const { config, layers, blobs } = makeImage(0)
  for (const [digest, bytes] of blobs) {
    const begun = await client.ask('POST', '/v2/bench/pushed/blobs/uploads/', {}, Buffer.alloc(0))
    const location = new URL(begun.headers.location, registry.url)
    location.searchParams.set('digest', digest)
    const headers = { 'content-type': 'application/octet-stream' }
    await client.ask('PUT', `${location.pathname}${location.search}`, headers, bytes)
  }
  await settle()
  const fifths = []
  for (let from = 0; from < tags; from += tags / 5) {
    const before = cpuSeconds(registry.pid)
    await eachOf(range(from, tags / 5), (at) =>
      pushManifest(client, `t${at}`, makeManifest(types, config, layers, { at: String(at) }).bytes),
    )
    fifths.push(((cpuSeconds(registry.pid) - before) / (tags / 5)) * 1000)
  }
  return fifths
}

function pushManifest(client, tag, bytes) {
  return client.ask('PUT', `/v2/bench/pushed/manifests/${tag}`, { 'content-type': types.manifest }, bytes)
}

/** Measures how long the event loop is blocked while images are pulled and tags are pushed, ms. */
async function measureLoop(home, upstream, build, { images, bytes, seconds }) {
  mkdirSync(home)
  const file = join(home, 'loop-delay')
  const watched = { ...env, NODE_OPTIONS: `--import=${loopDelay}`, LOOP_DELAY_FILE: file }
  const options = { env: watched, build, registry: { listen: ['127.0.0.1:0'] } }
  const mirror = await startMirror(home, upstream.url, options)
  const tell = async (what) => {
    writeFileSync(`${file}.${what}`, '')
    while (existsSync(`${file}.${what}`)) await new Promise((resolve) => setTimeout(resolve, 20))
  }
  try {
    await measurePushes({ url: mirror.registryUrl, pid: mirror.pid }, 5)
    const client = new Client(mirror.url)
    const pushing = new Client(mirror.registryUrl)
    const { config, layers } = makeImage(0)
    const before = { written: writtenBytes(mirror.pid).calls, asked: upstream.received(), sent: pushing.received() }
    const deadline = performance.now() + seconds * 1000
    let [pulled, content, written] = [0, 0, 0]
    await tell('begin')
    do {
      const numbers = range(pulled, 500)
      const bodies = await eachOf(numbers, async (at) => {
        // Push over a few tags: their manifests stay few, so that the log holds much that is replaced.
        const { bytes: pushed } = makeManifest(types, config, layers, { at: String(at % 100) })
        await pushManifest(pushing, `t${at % 10}`, pushed)
        return (await client.get(manifestPath(`t${at}`))).body.length
      })
      content += bodies.reduce((sum, length) => sum + length, 0)
      pulled += numbers.length
      const sent = client.received() + pushing.received() - before.sent + upstream.received() - before.asked
      written = writtenBytes(mirror.pid).calls - before.written - sent - content
    } while ((pulled < images || written < bytes) && performance.now() < deadline)
    await settle()
    await tell('end')
    return { ...JSON.parse(readFileSync(file, 'utf8')), pulled, written }
  } finally {
    await mirror.stop()
  }
}

/** Measures the start and the memory of stores with so many manifests, beside that of an empty one. */
async function measureStarts(home, upstream, build, { stores, rounds }) {
  const rows = []
  for (const manifests of [0, ...stores]) {
    const folder = join(home, String(manifests))
    const image = makeRecords(folder, manifests)
    // A version with another format converts the store at its first start.
    const first = await measureStart(folder, upstream, build, image)
    const samples = []
    for (let round = 0; round < rounds; round++) samples.push(await measureStart(folder, upstream, build, image))
    const of = (key) => median(samples.map((sample) => sample[key]))
    rows.push({
      manifests,
      first: first.served,
      answers: of('answers'),
      served: of('served'),
      cpu: of('cpu'),
      memory: of('memory'),
      held: of('held'),
    })
    rmSync(folder, { recursive: true })
  }
  return rows
}

async function measureStart(folder, upstream, build, image) {
  const begun = performance.now()
  const mirror = await startMirror(folder, upstream.url, { env, build })
  try {
    const client = new Client(mirror.url)
    await client.get('/v2/')
    const answers = performance.now() - begun
    await client.get(`/v2/${image.repository}/manifests/${image.tag}`)
    const served = performance.now() - begun
    const cpu = cpuSeconds(mirror.pid) * 1000
    await settle()
    const memory = currentMemory(mirror.pid)
    const status = await new Client(mirror.adminUrl).get('/api/status')
    return { answers, served, cpu, memory, held: JSON.parse(status.body).storage.manifests }
  } finally {
    await mirror.stop()
  }
}

/** Writes the files of a store in format v1 with so many manifests, and the bytes of one of them. Returns that image. */
function makeRecords(home, manifests) {
  const root = join(home, 'data', 'cache', 'v1')
  const folders = ['blobs/sha256', 'blobs/sha512', 'tmp', 'repositories', 'quarantine'].map((name) => join(root, name))
  for (const folder of folders) mkdirSync(folder, { recursive: true, mode: 0o700 })
  writeFileSync(join(root, 'clean'), '')
  const { bytes, digest } = makeImage(0)
  if (manifests === 0) return { repository: 'bench/grown', tag: 't0' }
  writeFileSync(join(root, 'blobs', 'sha256', digest.slice('sha256:'.length)), bytes, { mode: 0o600 })
  const known = { identity: 'anonymous', pulls: 1, lastPulled: Date.now() }
  for (let at = manifests / manifestsPerFile; at > 0; at--) {
    const record = { format: 1, host: 'docker.io', name: `store/r${at}`, tags: [], manifests: [], blobs: [] }
    for (let number = 0; number < manifestsPerFile; number++) {
      const links = Array.from({ length: linksEach }, (_, link) => {
        const mediaType = link === 0 ? types.config : types.layer
        return { kind: 'blob', mediaType, digest: randomDigest(), size: 1000 + number }
      })
      const isServed = at === 1 && number === 0
      const manifest = { digest: isServed ? digest : randomDigest(), mediaType: types.manifest, size: bytes.length }
      // The one that is served is the most recently used, because a version may drop the others.
      const usedAt = isServed ? manifests : manifests - at * manifestsPerFile + number
      record.manifests.push({ ...manifest, links, usedAt, ...known })
      record.tags.push({ tag: `t${number}`, digest: manifest.digest, checkedAt: Date.now(), ...known })
    }
    const file = createHash('sha256').update(`docker.io/${record.name}`).digest('hex')
    writeFileSync(join(root, 'repositories', `${file}.json`), JSON.stringify(record), { mode: 0o600 })
  }
  return { repository: 'store/r1', tag: 't0' }
}

function randomDigest() {
  return `sha256:${randomBytes(32).toString('hex')}`
}

function settle() {
  return new Promise((resolve) => setTimeout(resolve, 1000))
}

/** Runs alone: `node bench/metadata.js [--quick] [--release DIR] [--images 1000,5000] [--stores 10000] …` prints the section. */
if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const lists = ['images', 'hits', 'stores']
  const numbers = ['window', 'seconds', 'tags', 'rounds']
  const strings = Object.fromEntries(['release', ...lists, ...numbers].map((name) => [name, { type: 'string' }]))
  const { values } = parseArgs({ options: { quick: { type: 'boolean' }, ...strings } })
  for (const name of lists) if (name in values) values[name] = values[name].split(',').map(Number)
  for (const name of numbers) if (name in values) values[name] = Number(values[name])
  process.stdout.write((await benchMetadata(values)).join('\n'))
}
