// Measures what open dashboards cost the server while images are pulled from it.
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { get } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { cpuSeconds, currentMemory, median } from './accounting.js'
import { Client, pullImages, range, startUpstream } from './metadata-load.js'
import { startMirror } from './servers.js'

const images = 200
const pullsEachSecond = 100
const dashboards = 5
/** The page asks for these lists when it opens, and again every 30 s. */
const lists = ['/api/cache', '/api/registry', '/api/clients', '/api/status', '/api/history?range=hour']
const listsEveryMs = 30_000

/** Measures the cost of dashboards; returns a section of RESULTS.md as lines. @param {{ rounds: number, seconds: number }} effort */
export async function benchDashboard({ rounds, seconds }) {
  const folder = mkdtempSync(join(tmpdir(), 'mirror-bench-'))
  const upstream = await startUpstream()
  const mirror = await startMirror(folder, upstream.url)
  try {
    const client = new Client(mirror.url)
    await pullImages(client, range(0, images))
    // Let the server compile what it runs, so that the first round is like the others.
    await pullAtRate(client, 10)
    const samples = { none: [], some: [] }
    for (let round = 0; round < rounds; round++) {
      samples.none.push(await measure(mirror, client, seconds))
      const pages = Array.from({ length: dashboards }, () => openPage(mirror.adminUrl))
      samples.some.push(await measure(mirror, client, seconds))
      for (const page of pages) page.close()
      if (pages.some((page) => page.received === 0)) throw new Error('a dashboard got no events')
    }
    return report(samples, seconds)
  } finally {
    await mirror.stop()
    upstream.stop()
    rmSync(folder, { recursive: true, force: true })
  }
}

async function measure({ pid }, client, seconds) {
  const before = cpuSeconds(pid)
  const pulls = await pullAtRate(client, seconds)
  return { cpu: (cpuSeconds(pid) - before) / seconds, pulls: pulls / seconds, memory: currentMemory(pid) }
}

/** Pulls whole images at the rate of the bench. Returns their number. */
async function pullAtRate(client, seconds) {
  const begun = performance.now()
  const running = []
  for (let at = 0; at < seconds * pullsEachSecond; at++) {
    const due = begun + (at / pullsEachSecond) * 1000
    if (due > performance.now()) await new Promise((resolve) => setTimeout(resolve, due - performance.now()))
    running.push(pullImages(client, [at % images]))
  }
  await Promise.all(running)
  return running.length
}

/** Reads what an open page reads. */
function openPage(url) {
  const page = { received: 0, close: () => {} }
  const stream = get(new URL('/api/events', url), { agent: false }, (response) => {
    response.on('data', (chunk) => (page.received += chunk.length))
  })
  stream.on('error', () => {})
  const refresh = async () => {
    for (const path of lists) {
      const [response] = await once(get(new URL(path, url)), 'response')
      response.resume()
    }
  }
  void refresh()
  const timer = setInterval(() => void refresh(), listsEveryMs)
  page.close = () => {
    clearInterval(timer)
    stream.destroy()
  }
  return page
}

/** Returns the median of a figure. */
function of(list, key) {
  return median(list.map((each) => each[key]))
}

function report({ none, some }, seconds) {
  const row = (name, list) =>
    `| ${name} | ${of(list, 'pulls').toFixed(0)} | ${(of(list, 'cpu') * 100).toFixed(1)} % of a core | ${(of(list, 'memory') / 1e6).toFixed(0)} MB |`
  const more = of(some, 'cpu') / of(none, 'cpu') - 1
  const memory = (of(some, 'memory') - of(none, 'memory')) / 1e6
  return [
    '## Open dashboards',
    '',
    `Medians of ${none.length} alternating rounds of ${seconds} s. Each pull is a manifest and 13 blobs from the cache. Each dashboard reads the live events, and the lists every ${listsEveryMs / 1000} s.`,
    '',
    '| | pulls a second | processor time | memory |',
    '|---|---|---|---|',
    row('no dashboard', none),
    row(`${dashboards} dashboards`, some),
    '',
    `The dashboards cost ${(more * 100).toFixed(1)} % more processor time and ${memory.toFixed(0)} MB.`,
    '',
  ]
}
