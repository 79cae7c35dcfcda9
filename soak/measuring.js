// Provides a mirror for each measurement, pushes to it, and the table of results.
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { Agent } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { bytesOf, makeBlob, makeImage, manifestType } from './content.js'
import { Mirror } from './mirror.js'
import { request } from './request.js'
import { Upstreams } from './upstream.js'

export const MB = 1_000_000
export const MiB = 2 ** 20
/** Holds the homes of the mirrors; `end` removes it. */
export const folder = mkdtempSync(join(tmpdir(), 'mirror-limits-'))
export const agent = new Agent({ keepAlive: true, maxSockets: 400 })
let serial = 0

export function begin() {
  process.stdout.write('| situation | goal | figure |\n|---|---|---|\n')
}

/** @param {string} situation @param {string} goal @param {string} figure */
export function note(situation, goal, figure) {
  process.stdout.write(`| ${situation} | ${goal} | ${figure} |\n`)
}

export function end() {
  agent.destroy()
  rmSync(folder, { recursive: true, force: true })
}

/** Runs `use` with a new mirror, and removes the mirror afterwards. */
export async function withMirror(options, use) {
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

/** Renders outcomes as `200 × 12, 503 × 3`. @param {readonly { status: number, complete: boolean, error?: string }[]} outcomes */
export function tally(outcomes) {
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

/** Calls `make` so many times at once. */
export function times(count, make) {
  return Promise.all(Array.from({ length: count }, (_, at) => make(at)))
}

/** Describes the state of a mirror after a test. */
export async function afterwards(mirror) {
  const { status, milliseconds } = await mirror.healthMs()
  const isSame = mirror.unexpectedEnds.length === 0
  return `${isSame ? 'the process lives on' : mirror.unexpectedEnds.join(', ')}, health ${status} after ${Math.round(milliseconds)} ms`
}

export function peak(mirror) {
  mirror.observe()
  return `${Math.round(mirror.peakBytes / MiB)} MiB at most`
}

export async function pushBlob(mirror, blob) {
  const begun = await request(`${mirror.registryUrl}/v2/limits/app/blobs/uploads/`, { method: 'POST', agent })
  if (begun.status !== 202) return begun
  const location = new URL(begun.headers.location, mirror.registryUrl)
  location.searchParams.set('digest', blob.digest)
  return request(String(location), { method: 'PUT', body: bytesOf(blob), agent })
}

/** Holds the config that every manifest here names. */
const config = makeBlob(2, 1)
/** Remembers the mirrors that hold the config or receive it now. @type {WeakMap<Mirror, Promise<unknown>>} */
const prepared = new WeakMap()

export async function pushManifest(mirror, { tag, bytes }) {
  if (!prepared.has(mirror)) prepared.set(mirror, pushBlob(mirror, config))
  await prepared.get(mirror)
  const headers = { 'content-type': manifestType }
  return request(`${mirror.registryUrl}/v2/limits/app/manifests/${tag}`, { method: 'PUT', body: bytes, headers, agent })
}

/** Makes a manifest of about so many bytes, most of them annotations. */
export function annotated(size, at) {
  const image = makeImage([config], { note: 'a'.repeat(Math.round(size) - 500), number: String(at) })
  return { tag: `v${at}`, bytes: image.bytes }
}
