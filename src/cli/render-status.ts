import { formatBytes, formatDuration } from '../lib/units.ts'
import type { StatusReport, UpstreamReport } from '../server/admin-api.ts'
import type { Paint } from './paint.ts'
import { renderAge } from './render-age.ts'
import { renderImages } from './render-images.ts'
import { renderTable } from './render-table.ts'

const mostImages = 15

/** What a running mirror says about itself, for a person. `now`: wall clock ms. */
export function renderStatus(report: StatusReport, paint: Paint, now: number): string {
  const { version, pid, runtime, engine, user, uptimeSeconds } = report
  const place = runtime === 'container' ? `container${engine === undefined ? '' : ` on ${engine}`}` : `pid ${pid}`
  const blocks = [
    `${paint.green('●')} ${paint.bold(`mirror ${version} is up`)} for ${renderAge(uptimeSeconds * 1000)} (${place}${user === undefined ? '' : `, run by ${user}`})`,
    facts([...endpointFacts(report), ...cacheFacts(report, paint)], paint),
    ...upstreamTable(report, paint),
    ...imageTable(report, paint, now),
  ]
  return blocks.join('\n\n')
}

function endpointFacts({ endpoints, registry, engine }: StatusReport): [string, string][] {
  return [
    ...endpoints.cache.map((url): [string, string] => ['cache', url]),
    ...Object.entries(endpoints.networks).map(([name, url]): [string, string] => ['', `${url} (network ${name})`]),
    ...endpoints.registry.map((url): [string, string] => ['registry', `${url} (${pushed(registry)})`]),
    ...endpoints.admin.map((url): [string, string] => ['admin', url]),
    ...(engine === undefined ? [] : [['', 'addresses of that machine, not of this one'] satisfies [string, string]]),
  ]
}

function pushed({ repositories, tags, bytes }: StatusReport['registry']): string {
  const noun = repositories === 1 ? 'repository' : 'repositories'
  return `${count(repositories)} ${noun}, ${count(tags)} ${tags === 1 ? 'tag' : 'tags'}, ${formatBytes(bytes)}`
}

function cacheFacts({ cache, storage, sendBlob, refusedHosts, since }: StatusReport, paint: Paint): [string, string][] {
  const limit = storage.maxBytes === 0 ? 'no limit' : `${formatBytes(storage.maxBytes)} allowed`
  const share = storage.maxBytes === 0 ? '' : `, ${percent(storage.bytes / storage.maxBytes)} full`
  const rows: [string, string][] = [
    [
      'pulls',
      `${count(cache.hits)} hits, ${count(cache.misses)} misses${cache.hits + cache.misses === 0 ? '' : `: ${percent(cache.hitRatio)} from the cache`}`,
    ],
    [
      'saved',
      `${formatBytes(cache.bytesSaved)} of ${formatBytes(cache.bytesServed)} served since ${since.slice(0, 10)}; ${formatBytes(cache.bytesFromUpstream)} came from upstream`,
    ],
    ['disk', `${formatBytes(storage.bytes)}, ${limit}${share} (${storage.path})`],
    ['sends', sendBlob === 'sendfile' ? 'blobs by the kernel (sendfile)' : 'blobs by reading them'],
  ]
  if (cache.staleServed > 0)
    rows.push(['stale', paint.yellow(`${count(cache.staleServed)} answers while an upstream failed`)])
  if (cache.errors > 0) rows.push(['errors', paint.yellow(count(cache.errors))])
  if (cache.digestMismatches > 0)
    rows.push([
      'damaged',
      paint.red(`${count(cache.digestMismatches)} bodies from upstream did not match their digest`),
    ])
  const hosts = Object.entries(refusedHosts)
  if (hosts.length > 0) {
    const names = hosts.slice(0, 5).map(([host, times]) => `${printable(host)} (${count(times)}×)`)
    const more = hosts.length > 5 ? ` and ${hosts.length - 5} more` : ''
    rows.push(['refused', paint.yellow(`asked for by a name that is not in allowedHosts: ${names.join(', ')}${more}`)])
  }
  return rows
}

function upstreamTable({ upstreams }: StatusReport, paint: Paint): string[] {
  const rows = Object.entries(upstreams)
  if (rows.length === 0) return []
  const table = renderTable(
    [
      { title: 'UPSTREAM' },
      { title: 'HITS', align: 'right' },
      { title: 'MISSES', align: 'right' },
      { title: 'FETCHED', align: 'right' },
      { title: 'STATE' },
      { title: 'QUOTA' },
    ],
    rows.map(([host, upstream]) => [
      host,
      count(upstream.hits),
      count(upstream.misses),
      formatBytes(upstream.bytesFromUpstream),
      states[upstream.state],
      quota(upstream),
    ]),
    paint,
  )
  const painted = table.replaceAll(/(?<= )(failing|down)(?= |$)/gm, (word) => paint.red(word))
  const expired = rows.filter(([, { credentials }]) => credentials?.state === 'expired').map(([host]) => host)
  if (expired.length === 0) return [painted]
  const advice = 'asked without it until: mirror credentials refresh'
  return [painted, paint.yellow(`The credential for ${expired.join(', ')} has expired; ${advice}`)]
}

const states = { ok: 'ok', failing: 'failing', open: 'down' } as const

function quota({ rateLimit }: UpstreamReport): string {
  if (rateLimit === undefined) return ''
  return `${rateLimit.remaining} of ${rateLimit.limit} pulls left in ${formatDuration(rateLimit.windowSeconds * 1000)}`
}

function imageTable({ images, endpoints }: StatusReport, paint: Paint, now: number): string[] {
  if (images.length === 0) {
    const address = endpoints.cache[0]?.replace(/^https?:\/\//, '')
    return [paint.dim(`Nothing is cached yet. Try: docker pull ${address}/docker.io/library/alpine`)]
  }
  const recent = images.toSorted((a, b) => timeOf(b.lastPulled) - timeOf(a.lastPulled)).slice(0, mostImages)
  const table = renderImages(recent, paint, now)
  const more = images.length - recent.length
  return [more === 0 ? table : `${table}\n${paint.dim(`and ${count(more)} more: mirror cache ls`)}`]
}

function facts(rows: readonly [string, string][], paint: Paint): string {
  return rows.map(([name, value]) => `  ${paint.dim(name.padEnd(10))}${value}`).join('\n')
}

/** Of an ISO date; what never was is older than all that was. */
function timeOf(date: string | undefined): number {
  return date === undefined ? 0 : Date.parse(date)
}

// By hand, for loading a locale's rules takes longer than all the rest of the status.
function count(value: number): string {
  return String(value).replaceAll(/\B(?=(\d{3})+$)/g, ',')
}

function percent(ratio: number): string {
  return `${Math.round(ratio * 100)} %`
}

/** A Host header is whatever a stranger sent. */
function printable(text: string): string {
  return text.replaceAll(/[^\x20-\x7e]/g, '?').slice(0, 100)
}
