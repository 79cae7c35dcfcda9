import { getErrno, MirrorError } from '../../lib/errors.ts'
import { parseObject } from '../../lib/json.ts'
import { redact } from '../../lib/logger.ts'
import { formatBytes, formatDuration } from '../../lib/units.ts'
import { nameOutcome, type RequestOutcome } from '../../stats/requests.ts'
import {
  type Colorizer,
  fitText,
  type Colors,
  shortenDigest,
  shortenMiddle,
  type Token,
  toTokens,
  wrapWords,
} from '../terminal.ts'

interface LogRendererOptions {
  readonly colors: Colors
  /** Returns the columns of the terminal; undefined for no limit. */
  readonly columns: () => number | undefined
  /** Gives the wall-clock time, ms. Lines of another day are shown below its date. */
  readonly now: number
  /** Is true when a request that is longer than a line is wrapped, not cut. */
  readonly isWrapped?: boolean
}

type Fields = Record<string, unknown>

/** Counts the columns of the clock and the space after it. */
const indent = 9
/** Counts the characters that a cut name keeps; the agent is dropped first. */
const minNameLength = 24
/** Counts the characters of the shortest cut name. */
const minCutLength = 8
/** Limits the characters of the id of a request, which come last, where there is room. */
const maxIdLength = 16

/**
 * Renders lines of the log for people: one line a request (`19:01:40 HIT GET docker.io/library/redis blob 12.6 MiB 79 ms
 * docker/20.10`), a line for each pull and push, and any other message with its fields. A line that is not JSON stays as it is.
 */
export function createLogRenderer({
  colors,
  columns,
  now,
  isWrapped = false,
}: LogRendererOptions): (line: string) => string {
  let day = formatDay(new Date(now))
  return (line) => {
    const fields = parseObject(line)
    if (fields === undefined) return sanitize(line)
    const at = typeof fields['time'] === 'string' ? new Date(fields['time']) : undefined
    const isKnown = at !== undefined && !Number.isNaN(at.getTime())
    const clock = isKnown ? at.toTimeString().slice(0, 8) : ''
    const text = renderFields(fields, clock, { colors, columns: columns(), isWrapped })
    if (!isKnown || formatDay(at) === day) return text
    day = formatDay(at)
    return `${colors.dim(day)}\n${text}`
  }
}

interface LineStyle {
  readonly colors: Colors
  readonly columns: number | undefined
  readonly isWrapped: boolean
}

function renderFields(fields: Fields, clock: string, style: LineStyle): string {
  const { colors, columns } = style
  const { msg, method, status, image } = fields
  if (msg === 'request' && typeof method === 'string' && typeof status === 'number')
    return renderRequest(fields, method, status, clock, style)
  if ((msg === 'pull' || msg === 'push') && typeof image === 'string')
    return renderTransfer(fields, msg, image, clock, colors, columns)
  return renderMessage(fields, clock, colors, columns)
}

function renderRequest(
  fields: Fields,
  method: string,
  status: number,
  clock: string,
  { colors, columns, isWrapped }: LineStyle,
): string {
  const [word, color] = chooseLabel(fields, method, status, colors)
  const { name, kind } = describeContent(fields)
  const agent = parseAgentName(fields['agent'])
  const id = typeof fields['id'] === 'string' ? sanitize(fields['id']).slice(0, maxIdLength) : ''
  const rest = [
    ...kind,
    ...(status === 206 ? ['part'] : []),
    ...(fields['cache'] === 'revalidated' ? ['(checked)'] : []),
    ...describeReason(fields),
    ...formatSize(fields, method, status),
    ...(typeof fields['ms'] === 'number' ? [formatDuration(fields['ms'])] : []),
  ]
  const before = [clock, word, sanitize(method)]
  const failure = formatFailure(fields, status, word)
  const others = [...before, ...rest].join(' ').length + 1
  // Wrap a failure, so that its reason is readable, and a line without room for a name; cut anything else to one line.
  if (isWrapped || failure !== undefined || columns === undefined || columns - others < minCutLength) {
    const words: Token[] = [
      { text: clock, color: colors.dim },
      { text: word, color },
      ...[...before.slice(2), name, ...rest].map((text) => ({ text })),
      ...toTokens([agent ?? '', id].filter((text) => text !== '').join(' '), colors.dim),
      ...(failure === undefined ? [] : [{ text: '–' }, ...toTokens(failure, color)]),
    ]
    return wrapWords(words, columns, indent)
  }
  const availableWidth = columns - others - (agent === undefined ? 0 : agent.length + 1)
  const showsAgent = agent !== undefined && availableWidth >= Math.min(name.length, minNameLength)
  const shown = shortenMiddle(name, showsAgent ? availableWidth : columns - others)
  const showsId =
    id !== '' && shown === name && (showsAgent || agent === undefined) && availableWidth >= name.length + id.length + 1
  const last = [...(showsAgent ? [agent] : []), ...(showsId ? [id] : [])].map((text) => colors.dim(text))
  return [colors.dim(clock), color(word), sanitize(method), shown, ...rest, ...last]
    .filter((text) => text !== '')
    .join(' ')
}

/** Chooses the label for the outcome of a request; the status for a failure. */
function chooseLabel(fields: Fields, method: string, status: number, colors: Colors): [string, Colorizer] {
  const outcome = nameOutcome({ method, status, cache: fields['cache'], probe: fields['probe'] })
  if (outcome === 'failed') return [String(status), status >= 500 ? colors.red : colors.yellow]
  return [outcome.toUpperCase(), colors[outcomeColors[outcome]]]
}

const outcomeColors: Readonly<Record<Exclude<RequestOutcome, 'failed'>, keyof Colors>> = {
  hit: 'green',
  stale: 'yellow',
  miss: 'bold',
  joined: 'bold',
  passed: 'dim',
  local: 'green',
  check: 'dim',
  absent: 'dim',
  left: 'yellow',
  ok: 'bold',
}

/** Describes why content was not served from the store: `(evicted 2 h ago)`; nothing for the first request of it. */
function describeReason({ reason, evictedAt, time, cache }: Fields): string[] {
  if (typeof reason !== 'string' || reason === 'first' || cache === 'hit') return []
  const elapsed = toMilliseconds(time) - toMilliseconds(evictedAt)
  return [`(${sanitize(reason)}${elapsed >= 0 ? ` ${formatDuration(elapsed)} ago` : ''})`]
}

/** Parses a time in ISO 8601; NaN for anything else. */
function toMilliseconds(time: unknown): number {
  return typeof time === 'string' ? Date.parse(time) : Number.NaN
}

/** Describes the requested content; a line of an older version has only its path. */
function describeContent({ kind, repository, reference, url }: Fields): { name: string; kind: string[] } {
  const name = typeof repository === 'string' ? sanitize(repository) : undefined
  const about = typeof reference === 'string' ? sanitize(reference) : ''
  if (kind === 'catalog') return { name: 'catalog', kind: [] }
  if (name === undefined || typeof kind !== 'string')
    return { name: sanitize(typeof url === 'string' ? url : '').slice(0, 200), kind: [] }
  if (kind === 'manifest') return { name: shortenDigest(formatImageName(name, about)), kind: ['manifest'] }
  if (kind === 'uploads' || kind === 'upload') return { name, kind: [about === '' ? 'upload' : 'blob'] }
  return { name, kind: [sanitize(kind)] }
}

function formatImageName(repository: string, reference: string): string {
  return `${repository}${reference.includes(':') ? '@' : ':'}${reference}`
}

function formatSize({ bytes, received }: Fields, method: string, status: number): string[] {
  if (status === 304) return ['not modified']
  if (typeof received === 'number') return [formatBytes(received)]
  return method === 'GET' && status < 400 && typeof bytes === 'number' ? [formatBytes(bytes)] : []
}

/** Returns why a request failed, or why the upstream did not confirm the content that was served; undefined for any other one. */
function formatFailure({ error, cache, warning }: Fields, status: number, word: string): string | undefined {
  if (status === 499) return 'the client closed the connection'
  if (cache === 'stale') return typeof warning === 'string' ? sanitize(warning) : undefined
  return status >= 400 && word !== 'ABSENT' && typeof error === 'string' ? sanitize(error) : undefined
}

/** Renders the summary of a pull or a push. */
function renderTransfer(
  fields: Fields,
  kind: 'pull' | 'push',
  image: string,
  clock: string,
  colors: Colors,
  columns: number | undefined,
): string {
  const { listener, client } = fields
  const getNumber = (name: string) => (typeof fields[name] === 'number' ? fields[name] : 0)
  const parts: string[] = []
  if (kind === 'push') {
    parts.push(pluralize(getNumber('blobs'), 'blob', 'blobs'))
    if (getNumber('held') > 0) parts.push(`${getNumber('held')} there already`)
  } else if (listener === 'registry') {
    parts.push('from the local registry')
  } else {
    parts.push(pluralize(getNumber('hits'), 'hit', 'hits'), pluralize(getNumber('misses'), 'miss', 'misses'))
    parts.push(`${formatBytes(getNumber('bytesFromUpstream'))} from upstream`)
  }
  if (getNumber('failed') > 0) parts.push(`${getNumber('failed')} failed`)
  parts.push(formatDuration(getNumber('ms')))
  const address = typeof client === 'string' && !isLoopback(client) ? [sanitize(client)] : []
  const clientParts = [parseAgentName(fields['agent']), ...address].filter((text) => text !== undefined)
  const color = getNumber('failed') > 0 ? colors.yellow : colors.bold
  return wrapWords(
    [
      { text: clock, color: colors.dim },
      { text: kind.toUpperCase(), color },
      { text: shortenDigest(sanitize(image)), color: colors.bold },
      ...toTokens(`${formatBytes(getNumber('bytes'))}: ${parts.join(', ')}`),
      ...toTokens(clientParts.join(' '), colors.dim),
    ],
    columns,
    indent,
  )
}

/** Renders any other message: `12:03:04 info  the mirror is up  pid=7`. */
function renderMessage(fields: Fields, clock: string, colors: Colors, columns: number | undefined): string {
  const { level, time: _time, msg, ...others } = fields
  const word = typeof level === 'string' ? sanitize(level) : ''
  const color = word === 'error' ? colors.red : word === 'warn' ? colors.yellow : colors.green
  const pairs = flattenFields(others)
  const short = pairs.filter(([, value]) => !value.includes('\n'))
  const words: Token[] = [
    { text: clock, color: colors.dim },
    { text: word === '' ? '' : word.padEnd(5), color },
    ...toTokens(sanitize(formatField(msg))),
    // Set the fields apart by a second space.
    ...short.map(([name, value], at) => ({ text: `${at === 0 ? ' ' : ''}${name}=${value}`, color: colors.dim })),
  ]
  // Keep the lines of a stack.
  const long = pairs.flatMap(([name, value]) => (value.includes('\n') ? [`${name}=${value}`] : []))
  return [wrapWords(words, columns, indent), ...long.map((text) => colors.dim(text.replaceAll(/^/gm, '  ')))].join('\n')
}

const maxListed = 5

/** Flattens the fields into texts; a field of an object gets its name: `endpoints.cache`. */
function flattenFields(fields: Fields, prefix = ''): [string, string][] {
  return Object.entries(fields).flatMap(([key, value]): [string, string][] => {
    const name = prefix + sanitize(key)
    if (Array.isArray(value)) {
      if (value.length === 0) return []
      const more = value.length > maxListed ? `,… (${value.length} in all)` : ''
      return [[name, value.slice(0, maxListed).map(formatField).join(',') + more]]
    }
    if (typeof value === 'object' && value !== null) return flattenFields(value as Fields, `${name}.`)
    return [[name, formatField(value)]]
  })
}

/** Parses the first product of a User-Agent, without a build: `docker/20.10.24` of `docker/20.10.24+dfsg1 go/go1.19.8 …`. */
export function parseAgentName(agent: unknown): string | undefined {
  if (typeof agent !== 'string') return undefined
  const [product = ''] = sanitize(agent).trim().split(/\s/, 1)
  const [, name, version] = /^([^/]{1,40})\/v?([\w.]{1,20})/.exec(product) ?? []
  if (name !== undefined) return `${name}/${version}`
  return product === '' ? undefined : product.slice(0, 40)
}

function isLoopback(address: string): boolean {
  return address === '::1' || address.startsWith('127.')
}

function pluralize(amount: number, one: string, several: string): string {
  return `${amount} ${amount === 1 ? one : several}`
}

/** Formats the local day: `2026-11-21`. */
function formatDay(date: Date): string {
  return [date.getFullYear(), date.getMonth() + 1, date.getDate()]
    .map((part) => String(part).padStart(2, '0'))
    .join('-')
}

function formatField(value: unknown): string {
  return sanitize(typeof value === 'string' ? value : (JSON.stringify(value) ?? ''))
}

/** Removes control characters, because a log repeats what clients sent. The line ends of a stack may stay. */
function sanitize(text: string): string {
  return text.replaceAll(/[^\P{Cc}\n\t]/gu, '?')
}

interface ErrorStyle {
  readonly debug: boolean
  /** Counts the columns of the terminal; undefined for no limit. */
  readonly columns?: number | undefined
  /** Names the commands in a text as the user calls them. */
  readonly nameCommands?: (text: string) => string
}

/** Renders an error with its next steps. `debug`: with its stack. */
export function renderError(
  error: unknown,
  colors: Colors,
  { debug, columns, nameCommands = keepText }: ErrorStyle,
): string {
  const fit = (text: string) => fitText(nameCommands(redact(text)), columns)
  const message = fit(`mirror: ${error instanceof Error ? error.message : String(error)}`)
  const lines = [message.replace('mirror:', () => colors.red('mirror:'))]
  const hints = error instanceof MirrorError ? error.hints : listBugHints(error)
  if (hints.length > 0) lines.push('', colors.bold('Next:'), ...hints.map((hint) => fit(`  ${hint}`)))
  if (debug && error instanceof Error) lines.push('', redact(error.stack ?? ''))
  return `${lines.join('\n')}\n`
}

/** Reports whether `DEBUG` names the mirror. */
export function isDebugging(env: Readonly<Record<string, string | undefined>>): boolean {
  return (env['DEBUG'] ?? '').split(/[\s,]+/).some((name) => name === '*' || name.startsWith('mirror'))
}

const keepText = (text: string) => text

function listBugHints(error: unknown): string[] {
  const code = getErrno(error)
  if (code === 'EMFILE') return ['ulimit -n 1024   (more open files, in a new shell)']
  if (code === 'ENFILE') return ['sysctl fs.file-max   (the limit of the system, which root can raise)']
  return code === undefined ? ['This is a bug in mirror; DEBUG=mirror* shows where'] : []
}
