// Measures warm and cold pulls of images, beside other servers of the same content.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { cpuSeconds, median, peakMemory } from './accounting.js'
import { measureCold } from './cold.js'
import { makeContent } from './content.js'
import { pullImage } from './first-pull.js'
import { measureEviction, measureIdle, measureLargeStore, makeStore } from './scale.js'
import { blobUrl, manifestUrl, startDockerRegistry, startMirror, startNginx, startScript } from './servers.js'
import { drain } from './sink.js'
import { measureWarm, warmRows } from './warm.js'
import { createWrk } from './wrk.js'

/**
 * Measures all rows; returns the figures by row and subject.
 * @param {{ rounds: number, seconds: number, coldBlobs: number, layerBytes: number, scale: boolean }} effort
 */
export async function measurePulls(effort) {
  const folder = mkdtempSync(join(tmpdir(), 'mirror-bench-pull-'))
  const running = []
  const start = async (starting) => {
    const server = await starting
    running.push(server)
    return server
  }
  try {
    const contentFolder = join(folder, 'content')
    const content = makeContent(contentFolder, effort)
    const tags = [content.app, content.layered, content.crowd]
    const upstream = await start(startNginx(join(folder, 'upstream'), contentFolder, tags))
    const registry = await start(startDockerRegistry(join(folder, 'docker-registry'), upstream.url))
    const mirror = await start(startMirror(join(folder, 'mirror'), upstream.url))
    const caches = { mirror, 'docker-registry': registry }
    const rows = {}

    // Pull once before measuring, because the first pull loads code.
    for (const cache of Object.values(caches)) await drain([blobUrl(cache, content.crowd.config)])
    rows.cold = await measureCold(caches, content.cold, folder)
    const subjects = {
      ...caches,
      nginx: await start(startNginx(join(folder, 'nginx'), contentFolder, tags)),
      'plain Node': await start(startScript('plain-node.js', [contentFolder])),
    }
    const wrk = createWrk(folder)
    for (const subject of Object.values(caches)) {
      for (const reference of ['latest', content.app.digest]) await drain([manifestUrl(subject, reference)])
      for (const blob of [content.large, content.medium, content.tiny]) await drain([blobUrl(subject, blob)])
    }
    for (const row of warmRows(content)) rows[row.key] = await measureWarm(wrk, subjects, row, effort)
    rows.crowd = { mirror: await measureCrowd(wrk, mirror, content.crowd) }
    rows.memory = Object.fromEntries(
      Object.entries(subjects).map(([name, { pid }]) => [name, { value: peakMemory(pid) }]),
    )
    rows.firstPull = await measureFirstPull(folder, contentFolder, content.layered, start)
    if (effort.scale) rows.scale = await measureScale(folder, upstream.url, start)
    return rows
  } finally {
    for (const server of running) await server.stop()
    rmSync(folder, { recursive: true, force: true })
  }
}

/** Measures how long cached manifests take while 20 blobs arrive at once. */
async function measureCrowd(wrk, mirror, { layers, digest }) {
  await drain([manifestUrl(mirror, digest)])
  const before = cpuSeconds(mirror.pid)
  const hits = wrk(manifestUrl(mirror, 'latest'), { clients: 2, seconds: 2 })
  await new Promise((resolve) => setTimeout(resolve, 300))
  await Promise.all(layers.map((layer) => drain([blobUrl(mirror, layer)])))
  const { p99, requests } = await hits
  return { p99, requests, cpu: cpuSeconds(mirror.pid) - before }
}

/** Measures a first pull from an upstream with 20 ms of latency and 25 MB/s for each connection. */
async function measureFirstPull(folder, contentFolder, image, start) {
  const far = await start(startScript('shaped-upstream.js', [contentFolder, '20', '25000000']))
  const direct = await pullImage(far, image)
  const through = await pullImage(await start(startMirror(join(folder, 'first'), far.url)), image)
  const cache = { prefetch: { layers: 0, rangesPerBlob: 1 } }
  const without = await pullImage(await start(startMirror(join(folder, 'plain'), far.url, { cache })), image)
  return { direct: { value: direct }, mirror: { value: through }, 'without prefetch': { value: without } }
}

async function measureScale(folder, upstream, start) {
  const home = join(folder, 'scale')
  makeStore(home)
  const samples = []
  for (let round = 0; round < 3; round++) samples.push(await measureLargeStore(home, upstream))
  const of = (key) => median(samples.map((sample) => sample[key]))
  const large = { start: of('start'), status: of('status'), memory: of('memory') }
  const eviction = await measureEviction(home, upstream)
  const idle = await measureIdle(await start(startMirror(join(folder, 'idle'), upstream)), 5000)
  return { large, eviction, idle }
}
