// Measures what the metadata of repositories costs while they grow: this mirror, another build of it and docker-registry in one run.
import { spawnSync } from 'node:child_process'
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
import { installPrograms, versionOf } from './programs.js'
import { freePort, startDockerRegistry, startMirror } from './servers.js'

const loopDelay = new URL('../test/support/loop-delay.mjs', import.meta.url).href
const linksEach = 10
const manifestsPerFile = 100
const atOnce = 8
const sampled = 10
const MiB = 2 ** 20
const env = { MIRROR_LOG_LEVEL: 'warn' }

/**
 * Sets how much is measured. `images`: sizes of the repository at which `window` images are pulled. `hits`: its sizes at which hits are
 * measured. `limit`: its largest size in the other subjects. `tags`: pushed tags. `stores`: manifests of the stores that are started.
 * `rounds`: of the hits, for so many seconds each, and of the pulls. `starts`: of each store. `settle`: seconds before the first round.
 * `loop`: images that are pulled while the event loop is watched, at least so many and until so many bytes are written, or the time is over.
 */
const efforts = {
  quick: {
    images: [100, 800],
    window: 40,
    hits: [10, 800],
    limit: 800,
    seconds: 1,
    tags: 500,
    stores: [1000, 10_000],
    rounds: 1,
    starts: 1,
    settle: 1,
    loop: { images: 500, bytes: 4 * MiB, seconds: 8 },
  },
  full: {
    images: [1000, 5000, 20_000],
    window: 300,
    hits: [10, 1000, 20_000],
    // The release takes minutes beyond that.
    limit: 5000,
    seconds: 1,
    tags: 5000,
    stores: [10_000, 100_000],
    rounds: 10,
    starts: 3,
    // Pulls reach the disk within a minute.
    settle: 65,
    loop: { images: 20_000, bytes: 100 * MiB, seconds: 120 },
  },
}

/** Measures the metadata; returns a section of RESULTS.md as lines. `release`: the folder of another build of the mirror. */
export async function benchMetadata({ quick = false, release = process.env.MIRROR_BENCH_RELEASE, ...sizes } = {}) {
  const effort = { ...efforts[quick ? 'quick' : 'full'], ...sizes }
  const folder = mkdtempSync(join(tmpdir(), 'mirror-bench-metadata-'))
  const upstream = await startUpstream()
  const builds = [{ name: 'mirror', build: undefined }]
  if (release !== undefined) builds.push({ name: 'other build', build: release, version: findCommit(release) })
  const running = []
  const start = async (starting) => {
    const server = await starting
    running.push(server)
    return server
  }
  try {
    const subjects = builds.map(({ name, build, version }, at) => ({
      name,
      version,
      limit: at === 0 ? Infinity : effort.limit,
      startCache: (home) => start(startMirror(home, upstream.url, { env, build })),
      startRegistry: async (home) => {
        const options = { env, build, registry: { listen: ['127.0.0.1:0'] } }
        const { registryUrl: url, pid } = await start(startMirror(home, upstream.url, options))
        return { url, pid }
      },
    }))
    if (installPrograms().has('docker-registry'))
      subjects.push({
        name: 'docker-registry',
        version: versionOf('docker-registry'),
        limit: effort.limit,
        startCache: (home) => start(startDockerRegistry(home, upstream.url)),
        startRegistry: (home) => start(startDockerRegistry(home)),
      })
    const grown = await measureGrowth(folder, subjects, upstream, effort)
    for (const server of running.splice(0)) await server.stop()
    const [pushes, starts, loops] = [{}, {}, {}]
    for (const { name, startRegistry } of subjects)
      pushes[name] = await measurePushes(await startRegistry(join(folder, `${name} registry`)), effort.tags)
    for (const server of running.splice(0)) await server.stop()
    for (const { name, build } of builds) {
      tell(`${name}: event loop and starts`)
      loops[name] = await measureLoop(join(folder, `${name} loop`), upstream, build, effort.loop)
      starts[name] = await measureStarts(join(folder, `${name} start`), upstream, build, effort)
    }
    return reportMetadata(
      { names: subjects.map(({ name }) => name), heads: subjects.map(toHead), ...grown, pushes, starts, loops },
      { ...effort, links: linksEach },
    )
  } finally {
    for (const server of running) await server.stop()
    upstream.stop()
    rmSync(folder, { recursive: true, force: true })
  }
}

/**
 * Measures whole pulls and hits at the sizes of a repository. Each size has a server of its own, and the servers take turns: on a shared
 * machine, the same request takes up to twice the processor time a minute later.
 */
async function measureGrowth(folder, subjects, upstream, { images, window, hits, seconds, rounds, settle: settling }) {
  const sizes = [...new Set([...images, ...hits])].toSorted((a, b) => a - b)
  const caches = []
  for (const { name, limit, startCache } of subjects)
    for (const size of sizes.filter((each) => each <= limit)) {
      tell(`${name}: ${size} manifests`)
      const cache = await startCache(join(folder, `${name} ${size}`))
      const sample = Array.from({ length: sampled }, (_, at) => Math.floor((at * size) / sampled))
      caches.push({ name, size, cache, sample, hits: [], pulls: [] })
      const client = new Client(cache.url)
      // Fill with manifests alone: their links are what the repository's record grows by.
      await eachOf(range(0, size), (at) => client.get(manifestPath(`t${at}`)))
      await pullImages(client, sample)
      // The first requests load and compile code.
      await measureHits(cache, sample, 3 * seconds)
    }
  await settle(settling)
  tell('hits')
  const measured = caches.filter(({ size }) => hits.includes(size))
  for (let round = 0; round <= rounds; round++)
    for (const each of takeTurns(measured, round)) {
      const hit = await measureHits(each.cache, each.sample, seconds)
      // After the pause, the first hits take up to three times as long.
      if (round > 0) each.hits.push(hit)
    }
  tell('pulls')
  const pulled = caches.filter(({ size }) => images.includes(size))
  const part = Math.ceil(window / rounds)
  for (let round = 0; round <= rounds; round++)
    for (const each of takeTurns(pulled, round)) {
      const pull = await measurePulls(each.cache, upstream, range(each.size + round * part, part))
      // The first round loads and compiles code.
      if (round > 0) each.pulls.push(pull)
    }
  const find = (name, size) => caches.find((each) => each.name === name && each.size === size)
  const collect = (wanted, key, summarize) => {
    const rows = (name) => wanted.map((size) => ({ size, ...summarize(find(name, size)?.[key]) }))
    return Object.fromEntries(subjects.map(({ name }) => [name, rows(name)]))
  }
  return { pulls: collect(images, 'pulls', summarizePulls), warm: collect(hits, 'hits', summarizeHits) }
}

/** Returns the head of a subject's column. */
function toHead({ name, version }) {
  return version === undefined ? name : `${name} ${version}`
}

/** Returns the commit of a build's folder; undefined when it is no clone. */
function findCommit(folder) {
  const { stdout } = spawnSync('git', ['-C', folder, 'rev-parse', '--short', 'HEAD'], { encoding: 'utf8' })
  return stdout?.trim() || undefined
}

/** Reverses the order in every second round, so that no server always follows the same one. */
function takeTurns(caches, round) {
  return round % 2 === 0 ? caches : caches.toReversed()
}

/** Returns the means of all pulls. */
function summarizePulls(samples) {
  if (samples === undefined) return {}
  const of = (key) => samples.reduce((sum, sample) => sum + sample[key], 0) / samples.length
  return { cpu: of('cpu'), beside: of('beside'), disk: of('disk') }
}

/** Returns the medians of the rounds. */
function summarizeHits(samples) {
  if (samples === undefined) return {}
  const of = (key) => median(samples.map((sample) => sample[key]))
  return { tag: of('tag'), blob: of('blob') }
}

/** Measures the processor time of pulls of new images, and the bytes that are written beside their content. */
async function measurePulls(cache, upstream, numbers) {
  const client = new Client(cache.url)
  const before = { cpu: cpuSeconds(cache.pid), written: writtenBytes(cache.pid), asked: upstream.received() }
  const content = await pullImages(client, numbers)
  // Wait for delayed writes, which belong to these pulls.
  await settle(1)
  const written = writtenBytes(cache.pid)
  const sent = client.received() + upstream.received() - before.asked
  return {
    cpu: ((cpuSeconds(cache.pid) - before.cpu) / numbers.length) * 1000,
    beside: (written.calls - before.written.calls - sent - content) / numbers.length,
    disk: (written.disk - before.written.disk) / numbers.length,
  }
}

/** Measures the processor time of hits of the tags and of a blob of these images, µs. */
async function measureHits(cache, numbers, seconds) {
  const client = new Client(cache.url)
  const load = async (paths) => {
    const [before, deadline] = [cpuSeconds(cache.pid), performance.now() + seconds * 1000]
    let count = 0
    const work = async () => {
      while (performance.now() < deadline) await client.get(paths[count++ % paths.length])
    }
    await Promise.all(Array.from({ length: atOnce }, work))
    return ((cpuSeconds(cache.pid) - before) / count) * 1e6
  }
  const tag = await load(numbers.map((at) => manifestPath(`t${at}`)))
  return { tag, blob: await load(numbers.map((at) => blobPath(makeImage(at).layers[0].digest))) }
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
  await settle(1)
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
  const signal = async (what) => {
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
    await signal('begin')
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
    await settle(1)
    await signal('end')
    return { ...JSON.parse(readFileSync(file, 'utf8')), pulled, written }
  } finally {
    await mirror.stop()
  }
}

/** Measures the start and the memory of stores with so many manifests, beside that of an empty one. */
async function measureStarts(home, upstream, build, { stores, starts }) {
  const rows = []
  for (const manifests of [0, ...stores]) {
    const folder = join(home, String(manifests))
    const image = makeRecords(folder, manifests)
    // A version with another format converts the store at its first start.
    const first = await measureStart(folder, upstream, build, image)
    const samples = []
    for (let round = 0; round < starts; round++) samples.push(await measureStart(folder, upstream, build, image))
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
  const listen = `127.0.0.1:${await freePort()}`
  const begun = performance.now()
  const [mirror, answers, served] = await Promise.all([
    startMirror(folder, upstream.url, { env, build, cache: { listen: [listen] } }),
    untilAnswered(new Client(`http://${listen}`), '/v2/', begun),
    untilAnswered(new Client(`http://${listen}`), `/v2/${image.repository}/manifests/${image.tag}`, begun),
  ])
  try {
    const cpu = cpuSeconds(mirror.pid) * 1000
    await settle(1)
    const memory = currentMemory(mirror.pid)
    const status = await new Client(mirror.adminUrl).get('/api/status')
    return { answers, served, cpu, memory, held: JSON.parse(status.body).storage.manifests }
  } finally {
    await mirror.stop()
  }
}

/** Asks until there is an answer. Returns the time since `begun`, ms. */
async function untilAnswered(client, path, begun) {
  for (;;)
    try {
      await client.get(path)
      return performance.now() - begun
    } catch (error) {
      if (error.code !== 'ECONNREFUSED') throw error
      await settle(0.005)
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

function settle(seconds) {
  return new Promise((resolve) => setTimeout(resolve, seconds * 1000))
}

/** Prints the progress, because a full run takes half an hour. */
function tell(what) {
  process.stderr.write(`${new Date().toISOString().slice(11, 19)} metadata: ${what}\n`)
}

/** Runs alone: `node bench/metadata.js [--quick] [--release DIR] [--images 1000,5000] [--stores 10000] …` prints the section. */
if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const lists = ['images', 'hits', 'stores']
  const numbers = ['window', 'limit', 'seconds', 'tags', 'rounds', 'starts', 'settle']
  const strings = Object.fromEntries(['release', ...lists, ...numbers].map((name) => [name, { type: 'string' }]))
  const { values } = parseArgs({ options: { quick: { type: 'boolean' }, ...strings } })
  for (const name of lists) if (name in values) values[name] = values[name].split(',').map(Number)
  for (const name of numbers) if (name in values) values[name] = Number(values[name])
  process.stdout.write((await benchMetadata(values)).join('\n'))
}
