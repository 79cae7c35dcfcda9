// Measures how fast images are pushed to the registry, beside Debian's docker-registry in alternating rounds.
import { spawn, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { Agent, request } from 'node:http'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { digestOf } from './manifest.js'
import { freePort } from './servers.js'

const program = join(dirname(fileURLToPath(import.meta.url)), '..', 'bin', 'run.js')
const rounds = 5
const atOnce = 10
const loads = [
  { name: '40 blobs of 5 MB', count: 40, size: 5_000_000 },
  { name: '400 blobs of 10 kB', count: 400, size: 10_000 },
]

/** Measures the pushes; returns a section of RESULTS.md as lines. */
export async function benchPush() {
  const version = /\d+(?:\.\d+)+/.exec(
    spawnSync('docker-registry', ['--version'], { encoding: 'utf8' }).stdout ?? '',
  )?.[0]
  const home = mkdtempSync(join(tmpdir(), 'mirror-bench-push-'))
  const subjects = []
  try {
    subjects.push(await startMirror(home))
    if (version !== undefined) subjects.push(await startDockerRegistry(home, version))
    const rows = []
    for (const load of loads) {
      const samples = subjects.map(() => [])
      for (let round = -1; round < rounds; round++) {
        const blobs = makeBlobs(load)
        // Alternate, so that a noisy minute affects both; the first round warms up.
        for (const [at, subject] of subjects.entries()) {
          const took = await pushAll(subject.url, `round-${round + 1}`, blobs)
          if (round >= 0) samples[at].push(took)
        }
      }
      const [ours, theirs] = samples.map(median)
      const rate = (ms) => (ms === undefined ? '–' : `${((load.count * load.size) / 1e3 / ms).toFixed(1)} MB/s`)
      const each = (ms) => (ms === undefined ? '–' : `${Math.round(load.count / (ms / 1000))}/s`)
      const ratio = theirs === undefined ? '–' : `${(theirs / ours).toFixed(2)} ×`
      rows.push(`| ${load.name} | ${rate(ours)}, ${each(ours)} | ${rate(theirs)}, ${each(theirs)} | ${ratio} |`)
    }
    return [
      '## Pushing',
      '',
      `Medians of ${rounds} alternating rounds: POST, PATCH and PUT of each blob, ${atOnce} at a time, from a client on the same cores. What the mirror answers for is on the disk, its folder's entry and the journal's line included; docker-registry syncs its files, not their folders.`,
      '',
      `| what | mirror | docker-registry ${version ?? '(not installed)'} | mirror beside it |`,
      '|---|---|---|---|',
      ...rows,
      '',
    ]
  } finally {
    for (const { child } of subjects) await end(child)
    rmSync(home, { recursive: true, force: true })
  }
}

function makeBlobs({ count, size }) {
  const bulk = randomBytes(size)
  return Array.from({ length: count }, () => {
    const bytes = Buffer.from(bulk)
    randomBytes(16).copy(bytes)
    return { bytes, digest: digestOf(bytes) }
  })
}

/** Pushes all blobs; resolves with the duration, ms. */
async function pushAll(url, name, blobs) {
  const agent = new Agent({ keepAlive: true, maxSockets: atOnce })
  const waiting = [...blobs]
  const begun = performance.now()
  const work = async () => {
    for (let blob = waiting.pop(); blob; blob = waiting.pop()) await push(agent, url, name, blob)
  }
  await Promise.all(Array.from({ length: atOnce }, work))
  const took = performance.now() - begun
  agent.destroy()
  return took
}

async function push(agent, url, name, { bytes, digest }) {
  const begun = await ask(agent, 'POST', new URL(`/v2/${name}/blobs/uploads/`, url), 202)
  const patched = await ask(agent, 'PATCH', new URL(begun, url), 202, bytes)
  const target = new URL(patched, url)
  target.searchParams.set('digest', digest)
  await ask(agent, 'PUT', target, 201)
}

async function ask(agent, method, url, expected, body) {
  const sent = request(url, { agent, method, headers: { 'content-length': body?.length ?? 0 } })
  const [response] = await once(sent.end(body), 'response')
  response.resume()
  await once(response, 'end')
  if (response.statusCode !== expected) throw new Error(`${method} ${url} was answered ${response.statusCode}`)
  return response.headers.location
}

async function startMirror(home) {
  const port = await freePort()
  const settings = {
    cache: { listen: ['127.0.0.1:0'] },
    registry: { listen: [`127.0.0.1:${port}`] },
    admin: { listen: ['127.0.0.1:0'] },
    networks: [],
    log: { level: 'warn' },
  }
  writeFileSync(join(home, 'mirror.yaml'), JSON.stringify(settings))
  const env = { ...process.env, MIRROR_HOME: home }
  return untilReady(spawn(process.execPath, [program, 'serve'], { env, stdio: 'ignore' }), port)
}

async function startDockerRegistry(home) {
  const port = await freePort()
  const file = join(home, 'docker-registry.yml')
  const settings = {
    version: '0.1',
    log: { level: 'error', accesslog: { disabled: true } },
    storage: { filesystem: { rootdirectory: join(home, 'docker-registry') }, cache: { blobdescriptor: 'inmemory' } },
    http: { addr: `127.0.0.1:${port}` },
  }
  // Write JSON, because JSON is YAML.
  writeFileSync(file, JSON.stringify(settings))
  return untilReady(spawn('docker-registry', ['serve', file], { stdio: 'ignore' }), port)
}

async function untilReady(child, port) {
  const url = `http://127.0.0.1:${port}`
  for (let tries = 0; ; tries++) {
    try {
      if ((await fetch(`${url}/v2/`)).ok) return { child, url }
    } catch (error) {
      if (tries === 100) throw error
    }
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
}

async function end(child) {
  const ended = once(child, 'exit')
  child.kill()
  await ended
}

function median(values) {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]
}
