import type { DownloadReport, RequestReport, TracedContent, TraceReport } from '../../admin/activity.ts'
import type { ClientRequest } from '../../clients/requests.ts'
import { formatBytes, formatDuration } from '../../lib/units.ts'
import { type Colors, fitText, toTokens, type Token, wrapWords } from '../terminal.ts'
import { createLogRenderer } from './log.ts'
import { type Fact, renderAge, renderFacts, toPrintable } from './table.ts'

interface TraceRenderOptions {
  readonly colors: Colors
  /** Counts the columns of the terminal; undefined for no limit. */
  readonly columns: number | undefined
  /** Wall clock ms. */
  readonly now: number
}

interface RenderedTrace extends TraceReport {
  readonly clients: readonly ClientRequest[]
  readonly clientsError?: string
  readonly request?: RequestReport
}

/** Limits the requests on the screen. */
const maxRequests = 10

/** Renders the trace of an image: first what a pull does now and why, then the facts behind it. */
export function renderTrace(trace: RenderedTrace, options: TraceRenderOptions): string {
  const { colors, columns, now } = options
  const sections: [string, string][] = [
    ['Request', trace.request ? renderRequests([trace.request], options) : ''],
    [
      'Clients',
      renderFacts(
        [
          ...trace.clients.flatMap((one) => describeClient(one, colors)),
          ...(trace.clientsError === undefined
            ? []
            : ([['not known', toPrintable(trace.clientsError, 600), colors.yellow]] satisfies Fact[])),
        ],
        colors,
        columns,
      ),
    ],
    ['Upstream', renderFacts(describeUpstream(trace, colors), colors, columns)],
    ['Tag', renderFacts(describeTag(trace, now), colors, columns)],
    ['Content', renderContent(trace, options)],
    ['Vouched for by', renderFacts(describeGrants(trace), colors, columns)],
    ['Last requests, oldest first', renderRequests(trace.requests.slice(0, maxRequests).toReversed(), options)],
  ]
  const shown = sections.filter(([, text]) => text !== '').map(([title, text]) => `${colors.bold(title)}\n${text}`)
  return [renderConclusion(trace, options), ...shown].join('\n\n')
}

/** Renders a request that concerns no image. */
export function renderRequest(request: RequestReport, options: TraceRenderOptions): string {
  return `${options.colors.bold('Request')}\n${renderRequests([request], options)}\n\nIt concerns no image.`
}

function renderConclusion(
  { image, next, registry, listener }: TraceReport,
  { colors, columns }: TraceRenderOptions,
): string {
  const color = { hit: colors.green, partly: colors.yellow, miss: colors.bold, fails: colors.red }[next.result]
  const name = toPrintable(image, 400)
  const costs = listener === 'cache' ? describeCosts(next, registry) : 'no upstream is asked'
  const source = listener === 'cache' ? 'the cache' : 'the registry'
  const sentence = {
    hit: `A pull of ${name} now is served from ${source}: ${costs}.`,
    partly: `A pull of ${name} now is served in part: ${costs}.`,
    miss: `A pull of ${name} now is a miss: ${costs}.`,
    fails: `A pull of ${name} now fails.`,
  }[next.result]
  const why = next.why.map((text) => wrapWords(toTokens(toPrintable(text, 600)).map(indentFirst), columns, 2))
  return [wrapWords(toTokens(sentence, color), columns, 2), ...why].join('\n')
}

function indentFirst(token: Token, at: number): Token {
  return at === 0 ? { ...token, text: `  ${token.text}` } : token
}

function describeCosts(
  { upstreamRequests, hubPulls, countsPulls, bytes }: TraceReport['next'],
  registry: string,
): string {
  if (upstreamRequests === 0) return `no request to ${registry}`
  const least = bytes === undefined ? 'at least ' : ''
  const requests = `${least}${upstreamRequests} ${upstreamRequests === 1 ? 'request' : 'requests'} to ${registry}`
  const pulls = countsPulls === true ? [`${hubPulls} ${hubPulls === 1 ? 'pull' : 'pulls'} of Docker Hub's quota`] : []
  return [requests, ...pulls, ...(bytes === undefined || bytes === 0 ? [] : [`${formatBytes(bytes)} to fetch`])].join(
    ', ',
  )
}

/** Describes what a client asks, its fallback, and what leads it to the mirror. */
function describeClient({ client, target, via, url, fallback, notes, fix }: ClientRequest, colors: Colors): Fact[] {
  const color = via === 'mirror' ? colors.green : colors.yellow
  const origin = new URL(url).host
  const first = via === 'mirror' ? `asks ${url}` : `asks ${origin} itself: ${url}`
  return [
    [client, toPrintable(first, 600), color],
    ...(target === undefined ? [] : ([['', `configured for ${toPrintable(target)}`]] satisfies Fact[])),
    ...(fallback === undefined ? [] : ([['', `when the mirror fails: ${new URL(fallback).host}`]] satisfies Fact[])),
    ...notes.map((note): Fact => ['', toPrintable(note, 300)]),
    ...(fix === undefined ? [] : ([['', `fix: ${fix}`]] satisfies Fact[])),
  ]
}

const credentialNames = {
  anonymous: 'without a credential',
  'docker-config': "with a credential of Docker's configuration",
  'password-file': 'with the password file of mirror.yaml',
  'password-env': 'with the password variable of mirror.yaml',
}

const stateNames = { ok: 'ok', failing: 'failing', open: 'does not answer; the mirror waits' }

function describeUpstream({ upstream, registry, platform }: TraceReport, colors: Colors): Fact[] {
  if (!upstream) return []
  const prefix = upstream.prefix === undefined ? '' : `, below ${upstream.prefix}/`
  const color = upstream.state === 'ok' ? colors.green : colors.red
  return [
    ['address', `${toPrintable(upstream.url)}${prefix} for ${registry}`],
    ['asked', credentialNames[upstream.credential]],
    ['state', stateNames[upstream.state], color],
    ['platform', platform],
  ]
}

function describeTag({ tag, upstream, listener }: TraceReport, now: number): Fact[] {
  const isMirrored = listener === 'registry' || upstream !== undefined
  if (!tag || !isMirrored) return []
  if (tag.digest === undefined)
    return [[tag.name.slice(0, 9), listener === 'registry' ? 'not pushed' : 'not known to the mirror']]
  const age = (time: string) => `${renderAge(Math.max(0, now - Date.parse(time)))} ago`
  return [
    ['digest', tag.digest],
    ...(tag.cachedAt === undefined ? [] : ([['since', age(tag.cachedAt)]] satisfies Fact[])),
    ...(tag.checkedAt === undefined ? [] : ([['confirmed', age(tag.checkedAt)]] satisfies Fact[])),
    ...(tag.freshUntil === undefined
      ? []
      : ([['fresh for', renderAge(Math.max(0, Date.parse(tag.freshUntil) - now))]] satisfies Fact[])),
    ...(tag.movedFrom === undefined
      ? []
      : ([['moved', `${age(tag.movedFrom.at)} from ${tag.movedFrom.digest}`]] satisfies Fact[])),
    ...(tag.newer === undefined
      ? []
      : ([['newer', `${tag.newer.digest}, named ${age(tag.newer.at)} and not fetched`]] satisfies Fact[])),
  ]
}

/** Renders the content as a tree. Manifests of other platforms that are not held are one line. */
function renderContent({ content, platform }: TraceReport, options: TraceRenderOptions): string {
  const { colors, columns } = options
  const depths = new Map<string, number>()
  const lines: string[] = []
  const others: TracedContent[] = []
  for (const one of content) {
    const depth = one.parent === undefined ? 0 : (depths.get(one.parent) ?? 0) + 1
    depths.set(one.digest, depth)
    if (!one.isNeeded && one.state === 'missing') others.push(one)
    else lines.push(renderPart(one, depth, options))
  }
  if (others.length > 0) {
    const platforms = [...new Set(others.map((one) => one.platform ?? one.kind))]
    const shown = platforms.slice(0, 6).join(', ')
    const more = platforms.length > 6 ? ` and ${platforms.length - 6} more` : ''
    const words = toTokens(`not held, and not needed for ${platform}: ${toPrintable(shown, 200)}${more}`, colors.dim)
    lines.push(wrapWords(words.map(indentFirst), columns, 4))
  }
  return lines.join('\n')
}

function renderPart(one: TracedContent, depth: number, { colors, columns, now }: TraceRenderOptions): string {
  const { state, kind, platform, digest, size, reason, evictedAt, download } = one
  const colorOf = { held: colors.green, arriving: colors.yellow, missing: colors.red }[state]
  const color = one.isNeeded ? colorOf : colors.dim
  const short = `${digest.slice(0, digest.indexOf(':') + 13)}…`
  const eviction = evictedAt === undefined ? '' : ` ${formatDuration(Math.max(0, now - Date.parse(evictedAt)))} ago`
  const words: Token[] = [
    { text: `  ${'  '.repeat(depth)}${state}`, color },
    { text: kind },
    { text: toPrintable(platform ?? '') },
    { text: short, color: colors.dim },
    { text: size === undefined ? '' : formatBytes(size) },
    ...toTokens(download ? describeDownload(download).join(', ') : ''),
    ...toTokens(
      reason === undefined || (state === 'held' && one.parent !== undefined)
        ? ''
        : `(${describeReason(reason)}${eviction})`,
    ),
  ]
  return wrapWords(words, columns, 6 + 2 * depth)
}

function describeReason(reason: NonNullable<TracedContent['reason']>): string {
  if (reason === 'first') return 'never in the cache'
  return reason === 'identity' ? 'fetched with another credential' : reason
}

/** Returns the arrived share, the rate, and the clients that wait. */
function describeDownload({ arrived, size, bytesPerSecond, followers }: DownloadReport): [string, string, string] {
  const share = size === undefined || size === 0 ? formatBytes(arrived) : `${Math.floor((arrived / size) * 100)} %`
  const clients = `${followers} ${followers === 1 ? 'client' : 'clients'}`
  return [share, `${formatBytes(bytesPerSecond)}/s`, clients]
}

/** Counts the content that a pull needs for which each repository vouches: first what counts for this image, then the rest. */
function describeGrants({ content, registry, repository: own }: TraceReport): Fact[] {
  const needed = content.filter(({ isNeeded }) => isNeeded)
  const counts = new Map<string, { count: number; isValid: boolean; repository: string; identity: string }>()
  for (const { grants } of needed)
    for (const { repository, identity, isValid } of grants) {
      const key = `${repository} ${identity}`
      const known = counts.get(key)
      const count = (known?.count ?? 0) + 1
      counts.set(key, { count, isValid: isValid || known?.isValid === true, repository, identity })
    }
  const all = [...counts.values()]
  return [...all.filter(({ isValid }) => isValid), ...all.filter(({ isValid }) => !isValid)].map(
    ({ count, isValid, repository, identity }): Fact => {
      const name = toPrintable(repository, 300)
      const parts = needed.length === 1 ? 'part' : 'parts'
      if (isValid)
        return [
          `${count} of ${needed.length}`,
          `${parts} by ${name}, ${identity === 'anonymous' ? 'anonymously' : 'with a credential'}`,
        ]
      const which = `${count} of these parts`
      return repository === `${registry}/${own}`
        ? ['', `${name} holds ${which} with another credential; a pull now may not use them`]
        : ['', `${name} also holds ${which}; it does not count for this image`]
    },
  )
}

function renderRequests(requests: readonly RequestReport[], { colors, columns, now }: TraceRenderOptions): string {
  const width = columns === undefined ? undefined : columns - 2
  const render = createLogRenderer({ colors, columns: () => width, now, isWrapped: true })
  return requests
    .map(({ at, reason, ...fields }) => {
      const why = reason === 'first' ? 'never in the cache' : reason
      const probe = fields.outcome === 'check'
      return render(JSON.stringify({ ...fields, probe, reason: why, time: at, msg: 'request' }))
    })
    .map((text) => text.replaceAll(/^/gm, '  '))
    .join('\n')
}

/** Describes how much a row of the followed pull shows. The first form that fits the terminal is for all rows. */
const followForms = [
  { barWidth: 20, hasDigest: true, hasRate: true, hasClients: true },
  { barWidth: 20, hasDigest: true, hasRate: true, hasClients: false },
  { barWidth: 10, hasDigest: true, hasRate: true, hasClients: false },
  { barWidth: 10, hasDigest: true, hasRate: false, hasClients: false },
  { barWidth: 10, hasDigest: false, hasRate: false, hasClients: false },
] as const

/** Renders the parts that a pull needs as a table with bars, for a terminal. */
export function renderFollow(report: TraceReport, { colors, columns, now }: TraceRenderOptions): string {
  const needed = report.content.filter(({ isNeeded }) => isNeeded)
  const tables = followForms.map((form) => needed.map((one) => renderFollowedPart(one, form)))
  const fits = (rows: (typeof tables)[number]) =>
    rows.every(({ bar, text }) => columns === undefined || bar.length + 1 + text.length <= columns)
  const rows = tables.find(fits) ?? tables.at(-1)!
  const lines = rows.map(({ bar, text, state }) => {
    const color = state === 'held' ? colors.green : state === 'arriving' ? colors.yellow : colors.dim
    return fitText(`${color(bar)} ${text}`, columns)
  })
  const summary = renderConclusion(report, { colors, columns, now })
  const isUnderWay = needed.some(({ state }) => state === 'arriving')
  const state = isComplete(report)
    ? colors.green('The pull is complete: everything is held.')
    : colors.dim(`${isUnderWay ? 'The pull is under way.' : 'Waiting for requests.'} Ctrl-C ends this.`)
  return [summary, ...(lines.length === 0 ? [] : ['', ...lines]), '', state].join('\n')
}

function renderFollowedPart(
  { kind, state, size, digest, download }: TracedContent,
  { barWidth, hasDigest, hasRate, hasClients }: (typeof followForms)[number],
) {
  const share = state === 'held' ? 1 : download && size ? Math.min(1, download.arrived / size) : 0
  const filled = Math.round(share * barWidth)
  const [arrived = '', rate = '', clients = ''] = download ? describeDownload(download) : [state]
  const rest = [arrived, hasRate ? rate : '', hasClients ? clients : '']
  const words = [
    kind.padEnd(8),
    hasDigest ? digest.slice(0, digest.indexOf(':') + 9) : '',
    size === undefined ? '' : formatBytes(size),
    rest.filter((text) => text !== '').join(', '),
  ]
  const bar = `${'█'.repeat(filled)}${'░'.repeat(barWidth - filled)}`
  return { bar, text: words.filter((word) => word !== '').join(' '), state }
}

/** Reports whether all that a pull needs is held. */
export function isComplete({ next, content }: TraceReport): boolean {
  const needed = content.filter(({ isNeeded }) => isNeeded)
  return next.result === 'hit' && needed.length > 0
}

/** Reports whether all that a pull needs is held and nothing more arrives, so that there is nothing to follow. */
export function isFinished(report: TraceReport): boolean {
  return isComplete(report) && report.content.every(({ state }) => state !== 'arriving')
}

/** Lists the changes between two states, one line each, for a pipe. */
export function listChanges(before: TraceReport | undefined, report: TraceReport): string[] {
  const known = new Map(before?.content.map((one) => [one.digest, one]))
  const lines: string[] = []
  for (const one of report.content) {
    if (!one.isNeeded) continue
    const last = known.get(one.digest)
    const share = getShare(one)
    if (last?.state === one.state && (one.state !== 'arriving' || getShare(last) === share)) continue
    const progress = one.state === 'arriving' ? ` ${share} %` : ''
    lines.push(`${one.state}${progress} ${one.kind} ${one.digest}${one.size === undefined ? '' : ` ${one.size}`}`)
  }
  if (isComplete(report) && !(before && isComplete(before))) lines.push(`complete ${report.image}`)
  return lines
}

/** Returns the arrived share in steps of ten percent. */
function getShare({ download, size }: TracedContent): number {
  return download && size ? Math.floor((download.arrived / size) * 10) * 10 : 0
}
