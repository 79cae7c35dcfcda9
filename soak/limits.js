// Measures the mirror at its limits: few descriptors, little memory, large JSON, floods of passwords and of log lines. Prints a table.
// Requires Linux, and root for control groups. `node soak/limits.js json log` measures some parts only.
import { mkdirSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { once } from 'node:events'
import { connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { digestOf } from './content.js'
import { measureMemory } from './limits-memory.js'
import {
  MB,
  afterwards,
  agent,
  begin,
  end,
  folder,
  note,
  peak,
  pushManifest,
  tally,
  times,
  withMirror,
} from './measuring.js'
import { Mirror } from './mirror.js'
import { request } from './request.js'

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
    // Ping on a separate thread, because sending large bodies blocks this one.
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

begin()
const parts = {
  async files() {
    for (const limit of [64, 128, 1024]) await descriptors(limit)
    await tooFewDescriptors()
  },
  async memory() {
    for (const mebibytes of [256, 512]) await measureMemory(mebibytes)
  },
  json: largeJson,
  passwords,
  log: logLines,
}
const chosen = process.argv.slice(2)
try {
  for (const [name, measure] of Object.entries(parts)) if (chosen.length === 0 || chosen.includes(name)) await measure()
} finally {
  end()
}
