import { formatBytes, formatDuration } from '../lib/units.ts'
import type { StatusReport, UpstreamReport } from '../admin/api.ts'
import { fitText } from './terminal.ts'
import { createPaint, type Paint } from './paint.ts'
import { renderAge } from './render-age.ts'
import { count, counted, registryRights, renderFacts, type Fact } from './render/table.ts'
import { renderImages } from './render-images.ts'
import { renderTable, type Column } from './render-table.ts'
import { renderTroubles } from './render/status.ts'

const mostImages = 15
const plainPaint = createPaint(false)

/** What a running mirror says about itself, for a person. `now`: wall clock ms; `columns`: of the terminal, if it is one. */
export function renderStatus(report: StatusReport, paint: Paint, now: number, columns?: number): string {
  const { version, pid, runtime, engine, user, uptimeSeconds } = report
  const place = runtime === 'container' ? `container${engine === undefined ? '' : ` on ${engine}`}` : `pid ${pid}`
  const blocks = [
    `${paint.green('●')} ${paint.bold(`mirror ${version} has been up for ${renderAge(uptimeSeconds * 1000)}`)} (${place}${user === undefined ? '' : `, run by ${user}`})`,
    renderFacts([...endpointFacts(report), ...cacheFacts(report)], paint, columns),
    ...renderTroubles(report, paint, columns),
    ...upstreamTable(report, paint, columns),
    ...imageTable(report, paint, now, columns),
  ]
  return blocks.join('\n\n')
}

function endpointFacts({ endpoints, registry, engine }: StatusReport): Fact[] {
  return [
    ...endpoints.cache.map((url): Fact => ['cache', url]),
    ...Object.entries(endpoints.networks).map(([name, url]): Fact => ['', `${url} (network ${name})`]),
    ...endpoints.registry.map((url): Fact => ['registry', `${url} (${pushed(registry)})`]),
    ...registryRights(endpoints, registry.networks).map((text): Fact => ['', text]),
    ...endpoints.admin.map((url): Fact => ['admin', url]),
    ...(engine === undefined ? [] : [['', 'addresses of that machine, not of this one'] satisfies Fact]),
  ]
}

function pushed({ repositories, tags, bytes }: StatusReport['registry']): string {
  return `${counted(repositories, 'repository', 'repositories')}, ${counted(tags, 'tag', 'tags')}, ${formatBytes(bytes)}`
}

/** A pull is an image; hits and misses are the manifests and blobs that pulls asked for. */
function cacheFacts({ cache, storage, since }: StatusReport): Fact[] {
  const { hits, misses } = cache
  const ratio = hits + misses === 0 ? '' : ` (${percent(cache.hitRatio)} from the cache)`
  const limit =
    storage.maxBytes === 0
      ? ', no limit'
      : ` of ${formatBytes(storage.maxBytes)} (${percent(storage.bytes / storage.maxBytes)})`
  return [
    ['pulls', `${counted(cache.pulls, 'image', 'images')} since ${since.slice(0, 10)}`],
    ['requests', `${counted(hits, 'hit', 'hits')}, ${counted(misses, 'miss', 'misses')}${ratio}`],
    [
      'saved',
      `${formatBytes(cache.bytesSaved)} of ${formatBytes(cache.bytesServed)} served; ${formatBytes(cache.bytesFromUpstream)} came from upstream`,
    ],
    ['disk', `${formatBytes(storage.bytes)}${limit}, ${storage.path}`],
  ]
}

function upstreamTable({ upstreams }: StatusReport, paint: Paint, columns = Infinity): string[] {
  const rows = Object.entries(upstreams)
  if (rows.length === 0) return []
  const titles: Column[] = [
    { title: 'UPSTREAM', shrinks: true },
    { title: 'HITS', align: 'right' },
    { title: 'MISSES', align: 'right' },
    { title: 'FETCHED', align: 'right' },
    { title: 'STATE' },
    { title: 'QUOTA' },
  ]
  const cells = rows.map(([host, upstream]) => [
    host,
    count(upstream.hits),
    count(upstream.misses),
    formatBytes(upstream.bytesFromUpstream),
    states[upstream.state],
    quota(upstream),
  ])
  const whole = renderTable(titles, cells, plainPaint)
  const isTooWide = whole.split('\n').some((line) => line.length > columns)
  const table = isTooWide ? renderTable(titles.slice(0, -1), cells, paint, columns) : renderTable(titles, cells, paint)
  const painted = table.replaceAll(/(?<= )(failing|down)(?= |$)/gm, (word) => paint.red(word))
  const quotas = isTooWide
    ? rows.flatMap(([host, upstream]) => (quota(upstream) === '' ? [] : [`${host}: ${quota(upstream)}`]))
    : []
  const expired = rows.filter(([, { credentials }]) => credentials?.state === 'expired').map(([host]) => host)
  const advice =
    expired.length === 0
      ? []
      : [`The credential for ${expired.join(', ')} has expired. To renew it: mirror credentials refresh`]
  return [[painted, ...quotas].join('\n'), ...advice.map((text) => paint.yellow(text))]
}

const states = { ok: 'ok', failing: 'failing', open: 'down' } as const

function quota({ rateLimit }: UpstreamReport): string {
  if (rateLimit === undefined) return ''
  return `${rateLimit.remaining} of ${rateLimit.limit} pulls left in ${formatDuration(rateLimit.windowSeconds * 1000)}`
}

function imageTable(
  { images, endpoints }: StatusReport,
  paint: Paint,
  now: number,
  columns: number | undefined,
): string[] {
  if (images.length === 0) {
    const address = endpoints.cache[0]?.replace(/^https?:\/\//, '')
    const text = `Nothing is cached yet. Try: docker pull ${address}/docker.io/library/alpine`
    return [paint.dim(fitText(text, columns))]
  }
  const recent = images.toSorted((a, b) => timeOf(b.lastPulled) - timeOf(a.lastPulled)).slice(0, mostImages)
  const table = renderImages(recent, paint, now, columns)
  const more = images.length - recent.length
  return [more === 0 ? table : `${table}\n${paint.dim(`and ${count(more)} more: mirror cache ls`)}`]
}

/** Of an ISO date; what never was is older than all that was. */
function timeOf(date: string | undefined): number {
  return date === undefined ? 0 : Date.parse(date)
}

function percent(ratio: number): string {
  return `${Math.round(ratio * 100)} %`
}
