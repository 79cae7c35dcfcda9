// Prints the files of src that run for a request: `npm run walk`. Starts a mirror from src with one compiled file for each source,
// sends requests of each kind, and reads from V8 which functions ran. `--functions` prints these too, `--write` puts the lists of
// files into docs/architecture.md, and `--check` compares them with that page.
import { createHash } from 'node:crypto'
import { EventEmitter, once } from 'node:events'
import { mkdirSync, mkdtempSync, readFileSync, readdirSync, realpathSync, rmSync, writeFileSync } from 'node:fs'
import { Agent, createServer, get } from 'node:http'
import { Session } from 'node:inspector/promises'
import { tmpdir } from 'node:os'
import { dirname, join, relative } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { transform } from 'esbuild'

const root = join(dirname(fileURLToPath(import.meta.url)), '..')
// Write the files below the project, so that Node finds its packages.
const caches = join(root, 'node_modules', '.cache')
mkdirSync(caches, { recursive: true })
const out = realpathSync(mkdtempSync(join(caches, 'walk-')))
const page = join(root, 'docs', 'architecture.md')
const manifestType = 'application/vnd.oci.image.manifest.v1+json'
/** Emits `line` for each line of the log. */
const lines = new EventEmitter()
const home = mkdtempSync(join(tmpdir(), 'mirror-walk-'))
process.on('exit', () => [home, out].forEach((folder) => rmSync(folder, { recursive: true, force: true })))

// End a walk that waits for something that never comes.
setTimeout(() => {
  throw new Error(`the walk has not ended after 50 s; active: ${process.getActiveResourcesInfo().join(', ')}`)
}, 50_000).unref()
const waitingTimers = controlTimers()
await transpile()
const load = (file) => import(pathToFileURL(join(out, file)).href)
const { startMirror } = await load('daemon/start.js')
const { defaultConfig } = await load('config/config.js')
const { mirrorPaths } = await load('config/paths.js')
const { createLogger } = await load('daemon/logging.js')
const { systemClock } = await load('lib/time.js')

const requests = {
  'tag hit': { target: ({ repository }) => `${repository}/manifests/latest`, provenance: 'mirror; hit' },
  'blob hit': { target: ({ repository, layer }) => `${repository}/blobs/${layer}`, provenance: 'mirror; hit' },
  'tag miss': { target: ({ repository }) => `${repository}/manifests/latest`, provenance: 'mirror; fwd=miss; stored' },
  'blob miss': {
    target: ({ repository, layer }) => `${repository}/blobs/${layer}`,
    provenance: 'mirror; fwd=miss; stored',
  },
}
// Keep only files that run for each image, because the first request of a kind may do more than others.
const images = ['one', 'two', 'three'].map((name) => createImage(name))
const warmUp = createImage('warm-up')
const upstream = await listen([...images, warmUp])
const mirror = await startMirror(config(upstream.url), {
  home: mirrorPaths({ platform: process.platform, env: { MIRROR_HOME: home }, homedir: home, cwd: home }),
  version: '0.0.0-walk',
  runtime: 'process',
  logger: await createLogger({ level: 'info', write: () => void lines.emit('line') }),
})
// Hold back loops that sleep, because they go on after the request that starts them: the transfer log waits for the end of a pull.
systemClock.sleep = () => new Promise(() => {})
// Keep the connection open, as clients do.
const agent = new Agent({ keepAlive: true, maxSockets: 1 })
const profiler = new Session()
profiler.connect()
await profiler.post('Profiler.enable')
await profiler.post('Profiler.startPreciseCoverage', { callCount: true, detailed: false })

for (const kind of ['tag miss', 'tag hit', 'blob miss', 'blob hit']) await request(requests[kind].target(warmUp))
const walks = {}
for (const kind of ['tag miss', 'tag hit', 'blob miss', 'blob hit']) walks[kind] = await walk(kind)

profiler.disconnect()
agent.destroy()
await mirror.close()
upstream.close()
report()

/** Writes each file of src as JavaScript below `out`. */
async function transpile() {
  const files = readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' }).filter((name) =>
    name.endsWith('.ts'),
  )
  for (const file of files) {
    const options = { loader: 'ts', format: 'esm', target: 'node20.19' }
    const { code } = await transform(readFileSync(join(root, 'src', file), 'utf8'), options)
    const target = join(out, file.replace(/\.ts$/, '.js'))
    mkdirSync(dirname(target), { recursive: true })
    writeFileSync(target, code.replaceAll(/((?:from|import)\s*\(?\s*")(\.[^"]+)\.ts"/g, '$1$2.js"'))
  }
}

/**
 * Keeps the timers of other work out of the measurement. An interval never fires, because it belongs to no request. A timer of more
 * than a second never fires either, because it is a time limit or serves many requests. Returns the set of all other timers that wait.
 */
function controlTimers() {
  const { setTimeout, clearTimeout } = globalThis
  const waiting = new Set()
  const hold = (task) => setTimeout(task, 2 ** 31 - 1).unref()
  globalThis.setInterval = hold
  globalThis.setTimeout = (task, ms, ...values) => {
    if (ms > 1000) return hold(task)
    const run = () => {
      waiting.delete(timer)
      task(...values)
    }
    const timer = setTimeout(run, ms)
    waiting.add(timer)
    return timer
  }
  globalThis.clearTimeout = (timer) => {
    waiting.delete(timer)
    clearTimeout(timer)
  }
  return waiting
}

/** Sends the request for each image; returns the functions that ran each time, by file. */
async function walk(kind) {
  const rounds = []
  for (const image of images) {
    await profiler.post('Profiler.takePreciseCoverage')
    const provenance = await request(requests[kind].target(image))
    rounds.push(executed((await profiler.post('Profiler.takePreciseCoverage')).result))
    if (provenance !== requests[kind].provenance) throw new Error(`${kind}: the mirror answered with ${provenance}`)
  }
  const files = [...rounds[0].keys()]
    .filter((file) => rounds.every((round) => round.has(file)))
    .toSorted((a, b) => (a < b ? -1 : 1))
  return new Map(files.map((file) => [file, rounds[0].get(file)]))
}

/** Returns the names of the functions that ran, by file of src. */
function executed(coverage) {
  return new Map(
    coverage
      .filter(({ url }) => url.startsWith('file:') && fileURLToPath(url).startsWith(out))
      .map(({ url, functions }) => [
        relative(out, fileURLToPath(url)).replace(/\.js$/, '.ts'),
        functions.filter(({ ranges }) => ranges[0].count > 0).map(({ functionName }) => functionName || '(anonymous)'),
      ])
      .filter(([, names]) => names.length > 0),
  )
}

/** Reads the mirror's whole response, and waits for the work that follows it; returns its Cache-Status. */
async function request(target) {
  const logged = once(lines, 'line')
  const [answer] = await once(get(`${mirror.endpoints.cache[0]}/v2/docker.io/library/${target}`, { agent }), 'response')
  answer.resume()
  await once(answer, 'end')
  if (answer.statusCode !== 200) throw new Error(`${target}: ${answer.statusCode}`)
  await logged
  await settle()
  return answer.headers['cache-status']
}

/** Waits until the mirror has ended its work: no timer waits, and nothing is active but sockets and the streams of this process. */
async function settle() {
  do await delay(10)
  while (
    waitingTimers.size > 0 ||
    process.getActiveResourcesInfo().some((resource) => !/^(TCPServer|TCPSocket|Pipe|TTY)Wrap$/.test(resource))
  )
}

/** Prints the walks, or writes them to the page, or compares them with it. */
function report() {
  if (!process.argv.includes('--write') && !process.argv.includes('--check')) {
    for (const [kind, files] of Object.entries(walks)) {
      console.log(`\n${kind}: ${files.size} files`)
      for (const [file, names] of files)
        console.log(`  ${file.padEnd(32)}${process.argv.includes('--functions') ? names.join(' ') : names.length}`)
    }
    return
  }
  const text = readFileSync(page, 'utf8')
  const written = Object.entries(walks).reduce(
    (page, [kind, files]) =>
      page.replace(
        new RegExp(`(<!-- walk: ${kind} -->\n)[^]*?(?=\n<!-- end -->)`),
        (_, head) => `${head}${files.size} files run. ${listFiles([...files.keys()])}`,
      ),
    text,
  )
  if (process.argv.includes('--write')) return writeFileSync(page, written)
  if (written === text) return
  console.error('docs/architecture.md names other files than those that run. `npm run walk -- --write` corrects it.')
  const before = text.split('\n')
  for (const [at, line] of written.split('\n').entries())
    if (line !== before[at]) console.error(`on the page: ${before[at]}\nfound:       ${line}`)
  process.exitCode = 1
}

/** Joins the files of a room: "`server/`: handler, pull." */
function listFiles(files) {
  const rooms = new Map()
  for (const file of files) {
    const [room, ...rest] = file.replace(/\.ts$/, '').split('/')
    rooms.set(room, [...(rooms.get(room) ?? []), rest.join('/')])
  }
  return [...rooms].map(([room, names]) => `\`${room}/\`: ${names.join(', ')}.`).join(' ')
}

/** Creates an image with one layer of 1 MiB, in its own repository. */
function createImage(repository) {
  const contents = new Map()
  const add = (bytes) => {
    const digest = `sha256:${createHash('sha256').update(bytes).digest('hex')}`
    contents.set(digest, bytes)
    return { digest, size: bytes.length }
  }
  const layer = { mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip', ...add(Buffer.alloc(1 << 20, repository)) }
  const config = {
    mediaType: 'application/vnd.oci.image.config.v1+json',
    ...add(Buffer.from(`{"author":"${repository}"}`)),
  }
  const manifest = add(
    Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: manifestType, config, layers: [layer] })),
  )
  return { repository, contents, layer: layer.digest, manifest: manifest.digest }
}

/** Starts a registry that holds the images. */
async function listen(held) {
  const byRepository = new Map(held.map((image) => [image.repository, image]))
  // Never close an idle connection of the mirror: a request on it would fail at that moment.
  const server = createServer({ keepAliveTimeout: 0 }, (incoming, response) => {
    const [, repository, kind, reference] = /\/([^/]+)\/(manifests|blobs)\/([^/]+)$/.exec(incoming.url) ?? []
    const image = byRepository.get(repository)
    const digest = reference === 'latest' ? image?.manifest : reference
    const bytes = image?.contents.get(digest)
    if (bytes === undefined) return response.writeHead(404).end()
    const type = kind === 'manifests' ? manifestType : 'application/octet-stream'
    response.writeHead(200, { 'content-type': type, 'content-length': bytes.length, 'docker-content-digest': digest })
    return response.end(incoming.method === 'HEAD' ? undefined : bytes)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    close: () => server.close(),
  }
}

/** Returns the defaults with free ports, without prefetching, which would mix requests, and with tags that stay fresh for long. */
function config(url) {
  const defaults = defaultConfig()
  const free = [{ host: '127.0.0.1', port: 0 }]
  const upstreamDefaults = {
    credentials: { from: 'anonymous' },
    tokenHosts: [],
    ca: undefined,
    tagFreshness: undefined,
  }
  return {
    ...defaults,
    cache: {
      ...defaults.cache,
      listen: free,
      minFree: 0,
      tagFreshness: 600_000,
      prefetch: { ...defaults.cache.prefetch, layers: 0 },
    },
    registry: { ...defaults.registry, enabled: false },
    admin: { listen: free },
    networks: [],
    upstreams: { 'docker.io': { ...upstreamDefaults, url } },
  }
}
