import type {
  DamagedRepositoryReport,
  ImageReport,
  PushedImageReport,
  StatusReport,
  UpstreamReport,
} from '../../admin/api.ts'
import { formatBytes, formatDuration, formatTimeOfDay } from '../../lib/units.ts'
import { formatUpstreamSetting } from '../../oci/reference.ts'
import { type Colorizer, createColors, fitText, type Colors, shortenDigest } from '../terminal.ts'
import {
  type Column,
  formatNumber,
  formatCount,
  type Fact,
  toPrintable,
  describeRegistryRights,
  renderAge,
  renderFacts,
  renderNamedRows,
  renderPullCommand,
  renderTable,
  nameUpstreamState,
  suggestUpstreamStep,
} from './table.ts'

const maxImages = 15
const noColors = createColors(false)

/** Holds a report with what this machine adds. `pending`: the changes that are not applied, a sentence each. */
type ShownStatus = StatusReport & { readonly pending?: readonly string[] }

/** Renders the status of a running mirror. `now`: wall clock, ms. `columns`: of the terminal; undefined for no limit. */
export function renderStatus(report: ShownStatus, colors: Colors, now: number, columns?: number): string {
  const { version, pid, runtime, engine, user, uptimeSeconds } = report
  const location = runtime === 'container' ? `container${engine === undefined ? '' : ` on ${engine}`}` : `pid ${pid}`
  const blocks = [
    `${colors.green('●')} ${colors.bold(`mirror ${version} has been up for ${renderAge(uptimeSeconds * 1000)}`)} (${location}${user === undefined ? '' : `, run by ${user}`})`,
    renderFacts([...listEndpointFacts(report), ...listCacheFacts(report)], colors, columns),
    ...renderTroubles(report, colors, columns),
    ...renderUpstreams(report, colors, now, columns),
    ...renderRecentImages(report, colors, now, columns),
  ]
  return blocks.join('\n\n')
}

function listEndpointFacts({ endpoints, registry, engine }: StatusReport): Fact[] {
  return [
    ...endpoints.cache.map((url): Fact => ['cache', url]),
    ...Object.entries(endpoints.networks).map(([name, url]): Fact => ['', `${url} (network ${name})`]),
    ...endpoints.registry.map((url): Fact => ['registry', `${url} (${describePushedContent(registry)})`]),
    ...describeRegistryRights(endpoints, registry.networks).map((text): Fact => ['', text]),
    ...endpoints.admin.map((url): Fact => ['admin', url]),
    ...(engine === undefined ? [] : [['', 'addresses of that machine, not of this one'] satisfies Fact]),
  ]
}

function describePushedContent({ repositories, tags, bytes }: StatusReport['registry']): string {
  return `${formatCount(repositories, 'repository', 'repositories')}, ${formatCount(tags, 'tag', 'tags')}, ${formatBytes(bytes)}`
}

/** Renders the counts. A pull is an image; hits and misses are manifests and blobs. */
function listCacheFacts({ cache, storage, since, upstreams, offline }: StatusReport): Fact[] {
  const { hits, misses } = cache
  const ratio = hits + misses === 0 ? '' : ` (${formatPercent(cache.hitRatio)} from the cache)`
  const limit =
    storage.maxBytes === 0
      ? ', no limit'
      : ` of ${formatBytes(storage.maxBytes)} (${formatPercent(storage.bytes / storage.maxBytes)})`
  const why =
    offline?.source === 'config'
      ? 'cache.offline). Next: set it to false in mirror.yaml, then: mirror up'
      : 'until the mirror restarts). To go online: mirror dashboard'
  return [
    ...(offline?.active ? [['offline', `no upstream is contacted (${why}`] satisfies Fact] : []),
    ['pulls', `${formatNumber(cache.pulls)} since ${since.slice(0, 10)}`],
    ['requests', `${formatCount(hits, 'hit', 'hits')}, ${formatCount(misses, 'miss', 'misses')}${ratio}`],
    [
      'saved',
      `${formatBytes(cache.bytesSaved)} of ${formatBytes(cache.bytesServed)} served; ${formatBytes(cache.bytesFromUpstream)} came from upstream`,
    ],
    ...describeAvoidedPulls(upstreams),
    ['disk', `${formatBytes(storage.bytes)}${limit}, ${storage.path}`],
  ]
}

/** Renders the pulls that Docker Hub did not count, because the mirror answered them. */
function describeAvoidedPulls(upstreams: StatusReport['upstreams']): Fact[] {
  const avoided = upstreams['docker.io']?.pullsAvoided ?? 0
  if (avoided === 0) return []
  // Docker Hub counts each request for a manifest, also those of a client that asks again within seconds.
  return [
    ['avoided', `${formatCount(avoided, 'pull', 'pulls')} of Docker Hub's quota (one for each request for a manifest)`],
  ]
}

function renderUpstreams({ upstreams }: StatusReport, colors: Colors, now: number, columns = Infinity): string[] {
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
    formatNumber(upstream.hits),
    formatNumber(upstream.misses),
    formatBytes(upstream.bytesFromUpstream),
    nameUpstreamState(upstream),
    describeQuota(upstream, now),
  ])
  const whole = renderTable(titles, cells, noColors)
  const isTooWide = whole.split('\n').some((line) => line.length > columns)
  const table = isTooWide
    ? renderTable(titles.slice(0, -1), cells, colors, columns)
    : renderTable(titles, cells, colors)
  const label = table.replaceAll(/(?<= )(failing|waiting)(?= |$)/gm, (word) =>
    word === 'failing' ? colors.red(word) : colors.yellow(word),
  )
  const quotas = isTooWide
    ? rows.flatMap(([host, upstream]) =>
        describeQuota(upstream, now) === '' ? [] : [`${host}: ${describeQuota(upstream, now)}`],
      )
    : []
  const expired = rows.filter(([, { credentials }]) => credentials?.state === 'expired').map(([host]) => host)
  const advice =
    expired.length === 0
      ? []
      : [`The credential for ${expired.join(', ')} has expired. To renew it: mirror credentials refresh`]
  return [[label, ...quotas].join('\n'), ...advice.map((text) => colors.yellow(text))]
}

function describeQuota({ rateLimit }: UpstreamReport, now: number): string {
  if (rateLimit === undefined) return ''
  if ('unlimited' in rateLimit) return 'unlimited'
  const { remaining, limit, windowSeconds, at, resetsAt } = rateLimit
  const left = `${remaining} of ${limit} pulls left`
  if (remaining > 0) return `${left} in ${formatDuration(windowSeconds * 1000)}`
  if (resetsAt !== undefined) return `${left} until ${formatTimeOfDay(Date.parse(resetsAt), now)}`
  return `${left} until ${formatTimeOfDay(Date.parse(at) + windowSeconds * 1000, now)} at the latest`
}

function renderRecentImages(
  { images, endpoints }: StatusReport,
  colors: Colors,
  now: number,
  columns: number | undefined,
): string[] {
  if (images.length === 0) {
    // Searches no client, because that would slow every status of a new mirror; `mirror up` does.
    const text = `Nothing is cached yet. Try: ${renderPullCommand(endpoints)}`
    return [colors.dim(fitText(text, columns))]
  }
  const recent = images.toSorted((a, b) => toTime(b.lastPulled) - toTime(a.lastPulled)).slice(0, maxImages)
  const table = renderImages(recent, colors, now, columns)
  const more = images.length - recent.length
  return [more === 0 ? table : `${table}\n${colors.dim(`and ${formatNumber(more)} more: mirror cache ls`)}`]
}

/** Converts an ISO date to ms; an absent date sorts before all others. */
function toTime(date: string | undefined): number {
  return date === undefined ? 0 : Date.parse(date)
}

function formatPercent(ratio: number): string {
  return `${Math.round(ratio * 100)} %`
}

/** Renders the cached images, one a line. `now`: wall clock, ms. */
export function renderImages(images: readonly ImageReport[], colors: Colors, now: number, columns?: number): string {
  return renderNamedRows(
    [
      { title: 'IMAGE' },
      { title: 'SIZE', align: 'right' },
      { title: 'PULLS', align: 'right', drops: 2 },
      { title: 'LAST PULLED', drops: 1 },
      { title: 'CHECKED', drops: 3 },
    ],
    images.map(({ name, bytes, pulls, lastPulled, checkedAt }) => [
      shortenDigest(name),
      formatBytes(bytes),
      String(pulls),
      formatTimeAgo(lastPulled, now),
      formatTimeAgo(checkedAt, now),
    ]),
    colors,
    columns,
  )
}

function formatTimeAgo(time: string | undefined, now: number): string {
  if (time === undefined) return '–'
  // Show no negative age after the clock was set back.
  return `${renderAge(Math.max(0, now - Date.parse(time)))} ago`
}

/** Renders the pushed images, one a line. `now`: wall clock, ms. */
export function renderPushedImages(
  images: readonly PushedImageReport[],
  colors: Colors,
  now: number,
  columns?: number,
): string {
  return renderNamedRows(
    [
      { title: 'IMAGE' },
      { title: 'DIGEST', drops: 2 },
      { title: 'SIZE', align: 'right' },
      { title: 'PUSHED', drops: 1 },
    ],
    images.map(({ name, digest, bytes, pushedAt }) => [
      shortenDigest(name),
      digest.slice(0, digest.indexOf(':') + 13),
      formatBytes(bytes),
      // Show no negative age after the clock was set back.
      `${renderAge(Math.max(0, now - Date.parse(pushedAt)))} ago`,
    ]),
    colors,
    columns,
  )
}

const maxNames = 5

/** Renders what the mirror waits for and what has failed, each with the next step. */
function renderTroubles(report: ShownStatus, colors: Colors, columns: number | undefined): string[] {
  const { errors, staleServed, digestMismatches } = report.cache
  const rows = [
    ...toFacts('update', describeUpdate(report), colors.yellow),
    ...toFacts('pending', report.pending ?? [], colors.yellow),
    ...toFacts('waiting', listWaiting(report), colors.yellow),
    ...toFacts('failing', listFailingUpstreams(report), colors.red),
    ...toFacts('failed', listFailures(report), colors.red),
    ...toFacts('errors', describeAmount(errors, 'request', 'requests', 'could not be answered'), colors.red),
    ...toFacts(
      'stale',
      describeAmount(staleServed, 'answer', 'answers', 'came from the cache because an upstream did not answer'),
      colors.yellow,
    ),
    ...toFacts(
      'damaged',
      describeAmount(digestMismatches, 'body', 'bodies', 'from upstream did not match the digest'),
      colors.red,
    ),
    ...toFacts('damaged', describeDamagedRepositories(report.registry.damaged ?? []), colors.red),
    ...toFacts('refused', listRefusals(report), colors.yellow),
  ]
  return rows.length === 0 ? [] : [renderFacts(rows, colors, columns)]
}

/** Puts rows under one name. */
function toFacts(name: string, texts: readonly string[], color: Colorizer): Fact[] {
  return texts.map((text, at): Fact => [at === 0 ? name : '', text, color])
}

function describeAmount(value: number, one: string, several: string, what: string): string[] {
  return value === 0 ? [] : [`${formatCount(value, one, several)} ${what}. Next: mirror logs`]
}

function describeUpdate({ version, cliVersion }: StatusReport): string[] {
  if (cliVersion === undefined) return []
  if (compareVersions(cliVersion, version) > 0)
    return [`this command is mirror ${cliVersion}, newer than the mirror that runs. To replace it: mirror up`]
  return [
    `this command is mirror ${cliVersion}, older than the mirror that runs. Install mirror ${version} to match it`,
  ]
}

function listWaiting({ networks, upstreams, runtime }: StatusReport): string[] {
  return [
    ...Object.entries(networks).flatMap(([name, { state, reason = '' }]) =>
      state === 'waiting' ? [`network ${name}: ${reason}. Next: ${suggestNetworkStep(name, reason)}`] : [],
    ),
    ...Object.entries(upstreams).flatMap(([host, upstream]) => {
      if (nameUpstreamState(upstream) !== 'waiting') return []
      const { message = 'it does not answer', retryAfterSeconds } = upstream.lastError ?? {}
      const when = retryAfterSeconds === undefined ? 'with the next request' : `in ${retryAfterSeconds} s`
      const step = suggestUpstreamStep(host, message, runtime)
      return [`${describeUpstreamTrouble(host, message)}. Asked again ${when}; cached images are served. Next: ${step}`]
    }),
  ]
}

/** Lists upstreams whose last request failed. */
function listFailingUpstreams({ upstreams, runtime }: StatusReport): string[] {
  return Object.entries(upstreams).flatMap(([host, { state, lastError }]) => {
    if (state !== 'failing') return []
    const why = lastError?.message ?? 'a request failed'
    return [`${describeUpstreamTrouble(host, why)}. Next: ${suggestUpstreamStep(host, why, runtime)}`]
  })
}

/** Names the upstream of a failure, unless the message does. */
function describeUpstreamTrouble(host: string, message: string): string {
  const why = trimFullStops(message).replace(/^The credential for \S+ cannot/, 'its credential cannot')
  return why.startsWith(`${host} `) ? `upstream ${why}` : `upstream ${host}: ${why}`
}

function suggestNetworkStep(name: string, reason: string): string {
  if (reason.includes('engine')) return 'docker info'
  return name === 'kind' ? 'kind create cluster' : `docker network create ${name}`
}

/** Describes pushed repositories whose record is damaged. */
export function describeDamagedRepositories(damaged: readonly DamagedRepositoryReport[]): string[] {
  return damaged.map(({ repository, path, reason, served }) => {
    const unnamed = served ? 'pushed repositories' : 'a pushed repository'
    const name = repository === undefined ? unnamed : `the pushed repository ${repository}`
    const text = trimFullStops(reason)
    return served
      ? `${name}: ${text}. Nothing is deleted for a week. Damaged lines: ${path}`
      : `${name}: ${path}: ${text}`
  })
}

function listFailures({ runtime, networks, storage, troubles = [] }: StatusReport): string[] {
  const { freeBytes = Infinity, minFree, path } = storage
  const failed = [
    ...troubles.map(
      (reason) => `${trimFullStops(reason)}. Next: ${suggestStep(reason, suggestTroubleStep(reason, runtime))}`,
    ),
    ...Object.entries(networks).flatMap(([name, { state, reason = '' }]) =>
      state === 'failed'
        ? [
            `network ${name}: ${trimFullStops(reason)}. Next: ${suggestStep(reason, 'free that port, or mirror up --cache-port N')}`,
          ]
        : [],
    ),
  ]
  if (freeBytes < minFree)
    failed.push(
      `disk: ${formatBytes(freeBytes)} are free at ${path}, less than cache.minFree (${formatBytes(minFree)}), so that new content may not be kept. Next: free some space, or mirror cache prune`,
    )
  return failed
}

function suggestTroubleStep(reason: string, runtime: StatusReport['runtime']): string {
  if (!reason.includes('the password file')) return 'mirror logs'
  // Restart a container, because it holds a copy of the file.
  return runtime === 'container'
    ? 'correct the file that "registry.auth.htpasswd" in mirror.yaml names, then: mirror up'
    : 'correct the file; the change takes effect at once'
}

/** Suggests the next step after a failure: more open files where the limit was the cause. */
function suggestStep(reason: string, otherwise: string): string {
  const isFiles = /\b(EMFILE|ENFILE|files open)\b/.test(reason)
  return isFiles ? 'allow it more open files (ulimit -n), then: mirror down && mirror up' : otherwise
}

/** Renders the registries that clients requested and the configuration does not name. */
function listRefusals({ refusedHosts, refusedRegistries }: StatusReport): string[] {
  const texts: string[] = []
  const registries = Object.keys(refusedRegistries)
  if (registries.length > 0) {
    const keys = registries.slice(0, maxNames).map((host) => toPrintable(host))
    const one = registries.length === 1
    texts.push(
      `${formatCounts(refusedRegistries)}: ${one ? 'this registry is' : 'these registries are'} not mirrored. Next: add "${formatUpstreamSetting(...keys)}" to mirror.yaml, then: mirror up`,
    )
  }
  const hosts = Object.keys(refusedHosts)
  if (hosts.length > 0) {
    const names = hosts.slice(0, maxNames).map((host) => JSON.stringify(toPrintable(host)))
    texts.push(
      `clients that reach the mirror as ${formatCounts(refusedHosts)}. If they are yours: add "allowedHosts: [${names.join(', ')}]" to mirror.yaml, then: mirror up`,
    )
  }
  return texts
}

function formatCounts(counts: Readonly<Record<string, number>>): string {
  const all = Object.entries(counts)
  const names = all.slice(0, maxNames).map(([name, times]) => `${toPrintable(name)} (${formatNumber(times)}×)`)
  return names.join(', ') + (all.length > maxNames ? ` and ${all.length - maxNames} more` : '')
}

/** Removes the full stop at the end, because more text follows. */
function trimFullStops(text: string): string {
  return toPrintable(text, 300).replace(/\.+$/, '')
}

/** Compares versions by their numbers: `1.10.0` is newer than `1.9.0`. */
function compareVersions(a: string, b: string): number {
  const [left, right] = [a, b].map((version) => version.split(/[.+-]/, 3).map((part) => Number.parseInt(part, 10) || 0))
  for (const at of [0, 1, 2]) {
    const difference = (left?.[at] ?? 0) - (right?.[at] ?? 0)
    if (difference !== 0) return difference
  }
  // Sort a pre-release before its release.
  return Number(b.includes('-')) - Number(a.includes('-'))
}
