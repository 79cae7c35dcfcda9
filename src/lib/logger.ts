/** Writes structured log entries. Fields are flat, and must hold no secrets (see `redact`). */
export interface Logger {
  debug(fields: LogFields, message: string): void
  info(fields: LogFields, message: string): void
  warn(fields: LogFields, message: string): void
  error(fields: LogFields, message: string): void
}

export type LogLevel = 'debug' | 'info' | 'warn' | 'error'

export type LogFields = Record<string, unknown>

/** Discards every entry. */
export const silentLogger: Logger = { debug() {}, info() {}, warn() {}, error() {} }

/** Creates a logger of JSON lines: `level`, `time` (ISO 8601), the fields, `msg`. Redacts secrets. */
export async function createJsonLogger(level: LogLevel, output: { write(line: string): void }): Promise<Logger> {
  const { pino } = (await import('pino')).default
  const options = {
    level,
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
  }
  const log = pino(options, output)
  return {
    debug: (fields, message) => log.isLevelEnabled('debug') && log.debug(redactFields(fields), redact(message)),
    info: (fields, message) => log.isLevelEnabled('info') && log.info(redactFields(fields), redact(message)),
    warn: (fields, message) => log.warn(redactFields(fields), redact(message)),
    error: (fields, message) => log.error(redactFields(fields), redact(message)),
  }
}

/**
 * Limits the characters of one value, and of all names and values of one line, because texts of clients and upstreams may be long.
 */
const maxTextLength = 4096
const maxRecordLength = 16 * 1024

interface Budget {
  left: number
}

function redactFields(fields: LogFields, budget: Budget = { left: maxRecordLength }): LogFields {
  const safe: LogFields = {}
  for (const key of Object.keys(fields)) {
    const value = fields[key]
    if (value === undefined) continue
    budget.left -= key.length + 1
    if (budget.left <= 0) break
    safe[key] = redactValue(value, budget)
  }
  return safe
}

function redactValue(value: unknown, budget: Budget): unknown {
  if (typeof value === 'string') return shorten(redact(value), budget)
  if (value instanceof Error) return shorten(redact(value.stack ?? value.message), budget)
  if (Array.isArray(value)) return redactItems(value, budget)
  return typeof value === 'object' && value !== null ? redactFields(value as LogFields, budget) : value
}

function redactItems(values: readonly unknown[], budget: Budget): unknown[] {
  const safe: unknown[] = []
  for (const value of values) {
    budget.left -= 1
    if (budget.left <= 0) break
    safe.push(redactValue(value, budget))
  }
  return safe
}

function shorten(text: string, budget: Budget): string {
  const maxLength = Math.max(0, Math.min(maxTextLength, budget.left))
  budget.left -= Math.min(maxLength, text.length)
  return text.length <= maxLength ? text : `${text.slice(0, maxLength)}… (${text.length - maxLength} more)`
}

/**
 * Lists the query parameters of the distribution specification and of token servers whose values are not secret. Any other
 * parameter may be the signature of a URL, because each cloud has its own names for it.
 */
export const harmlessParameters: ReadonlySet<string> = new Set([
  'account',
  'artifacttype',
  'client_id',
  'digest',
  'digest-algorithm',
  'dryrun',
  'from',
  'grant_type',
  'last',
  'mount',
  'n',
  'ns',
  'origin',
  'page',
  'page_size',
  'platform',
  'scope',
  'service',
  'tag',
])

/** Sets the length below which values are not redacted, because they can be guessed anyway. */
const minSecretLength = 3

const nonSpace = /[^\s"'<>]+/g

/** Matches the start of a percent-encoded character: `%3A`, or `%253A` when the URL was encoded twice. */
const encoded = '%(?:25){0,3}'
/** Matches user and password, up to the last `@` of the authority, in a URL that is plain, encoded, escaped in JSON, or has no scheme. */
const userInfoPattern = new RegExp(
  `((?:\\b([a-z][a-z0-9+.-]{0,20})(?::|${encoded}3a))?(?:\\\\?/|${encoded}2f){2})` +
    `((?:(?!${encoded}(?:2f|3f|23))[^/?#\\s])+)(?:(@)|(${encoded}40))`,
  'gi',
)
const encodedUrl = new RegExp(`(?::|${encoded}3a)(?:\\\\?/|${encoded}2f){2}|${encoded}3d`, 'i')
const encodedQuery = new RegExp(`(${encoded}(?:3f|23))[^?&#]+`, 'gi')

/** Matches the value of a harmless parameter and the punctuation of the sentence around it, but no further parameters. */
const harmlessValue = /^(?:[\w.:/@,*+~-]|%(?:2[0acf]|3a|40|7e))*[)\]}.,:;!`]*$/i
const digestStart = /^sha(?:256|512):/

const secretName =
  '(?:token|password|passwd|passphrase|pwd|secret|signature|credentials?|cookie|auth(?:orization)?|(?:api|access|private|secret|account)[_-]?key)'
/** Skips values that are redacted already. */
const notRedacted = '(?!\\s*\\[?["\']?…)'

const authScheme = /\b(Bearer|Basic|Digest|Negotiate)\s+[A-Za-z0-9._~+/=-]{8,}/gi
const authSchemeWithParameters = /\b(Digest\s+|AWS4-HMAC-SHA256\s+)(?:username|credential)=[^\r\n]+/gi
/** Matches a header with credentials, up to the end of the line. */
const secretHeader = new RegExp(
  `(?:(?<![\\w-])|(?<=\\\\[nrt]))((?:(?:proxy-)?authorization|(?:set-)?cookie|x-registry-(?:auth|config)|(?:private|job|deploy)-token)[ \\t]*[:=]` +
    `|x-[\\w-]{0,60}?${secretName}[ \\t]*:)${notRedacted}([ \\t]*)[^\\r\\n]+`,
  'gi',
)
const memberName = `[\\w-]*(?:${secretName}|x-registry-config)`
/** Matches secret members of JSON, of JSON inside a JSON string, and of JavaScript objects, also with a truncated value. */
const secretMembers = [
  new RegExp(`("${memberName}"\\s*[:=]${notRedacted}\\s*")(?:[^"\\\\]|\\\\[^])*`, 'gi'),
  new RegExp(
    `(\\\\"${memberName}\\\\"\\s*[:=]${notRedacted}\\s*\\\\")(?:[^"\\\\]|\\\\[^"\\\\]|\\\\\\\\(?:\\\\[^]|[^\\\\]))*`,
    'gi',
  ),
  new RegExp(`('${memberName}'\\s*[:=]${notRedacted}\\s*')(?:[^'\\\\]|\\\\[^])*`, 'gi'),
  // Numbers; the strings of a list.
  new RegExp(`(["']${memberName}\\\\?["']\\s*[:=]${notRedacted}\\s*)[\\w.+-]{6,}`, 'gi'),
  new RegExp(`(["']${memberName}\\\\?["']\\s*[:=]${notRedacted}\\s*\\[)[^\\]]+`, 'gi'),
]
const quoted = `"(?:[^"\\\\]|\\\\[^])*"?|'(?:[^'\\\\]|\\\\[^])*'?`
/** Matches words that follow a colon in a sentence, so that they are not taken for a secret. */
const prose =
  '(?:the|an?|its?|no|not|none|is|are|was|this|that|there|we|you|unexpected|invalid|missing|expired|unknown|cannot|could|failed)\\b'
/** Matches `password=…` and `token: …`. */
const secretSetting = new RegExp(
  `(?<![\\w-])((?!htpasswd)[\\w-]*${secretName}[ \\t]*(?:=|:(?=[ \\t])(?![ \\t]*${prose}))${notRedacted}[ \\t]*)` +
    `(?:${quoted}|[^\\s&{[][^\\s&]*)`,
  'gi',
)
const privateKey = /-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[^-"']*(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?/g
const webToken = /(?<![\w-])eyJ[\w-]+\.[\w-]+(?:\.[\w-]*)*/g
/** Matches tokens with a known prefix: GitHub, GitLab, Docker Hub, AWS, npm, PyPI and Slack. */
const knownToken =
  /(?<![A-Za-z0-9])(?:gh[opsur]_\w{4,}|github_pat_\w{4,}|gl(?:pat|dt|rt|ptt|cbt|soat|ft)-[\w-]{4,}|dckr_[op]at_[\w-]{4,}|A[KS]IA[A-Z0-9]{12,}|npm_[A-Za-z0-9]{12,}|pypi-[\w-]{16,}|xox[abprs]-[\w-]{8,})/g

/** Lets most texts skip the redaction: a text without a match holds no secret. */
const mayHoldUrl = /[@#?&%]/
const mayHoldSecret =
  /eyJ|bearer|basic|digest |negotiate|hmac|cookie|auth|token|passw|passphrase|pwd|secret|signature|credential|key|gh[opsur]_|_pat_|_oat_|gl[a-z]{2,4}-|a[ks]ia|npm_|pypi-|xox/i

/**
 * Replaces possible secrets in a text by `…`: user names and passwords in URLs, values of query parameters that are not known to be
 * harmless, URL fragments, values of authorization headers, private keys and tokens, also as settings and JSON members.
 */
export function redact(text: string): string {
  const clean = mayHoldUrl.test(text)
    ? text.replace(userInfoPattern, redactUser).replace(nonSpace, redactParameters)
    : text
  if (!mayHoldSecret.test(clean)) return clean
  return secretMembers
    .reduce((before, member) => before.replace(member, '$1…'), clean)
    .replace(privateKey, '…')
    .replace(webToken, '…')
    .replace(knownToken, '…')
    .replace(secretHeader, '$1$2…')
    .replace(secretSetting, '$1…')
    .replace(authSchemeWithParameters, '$1…')
    .replace(authScheme, '$1 …')
}

/** Redacts the user info of a URL. Keeps the user of `ssh://me@host`, which is part of the machine's address. */
function redactUser(
  whole: string,
  start: string,
  name: string | undefined,
  user: string,
  plainAt: string | undefined,
  encodedAt: string | undefined,
): string {
  const isWeb = name === undefined || /^(?:https?|socks[45]?[ah]?)$/i.test(name)
  return isWeb || /:|%(?:25)*3a/i.test(user) ? `${start}…${plainAt ?? encodedAt}` : whole
}

/** Redacts the fragment and the parameter values of a word that is, or ends in, a URL. */
function redactParameters(given: string): string {
  const isEncoded = given.includes('%') && encodedUrl.test(given)
  const query = given.search(/[?&]/)
  const isUrl = given.includes('://')
  const hash = given.indexOf('#')
  const hasFragment = hash !== -1 && (isUrl || (query !== -1 && query < hash))
  const end = hasFragment ? hash : given.length
  const tail = hasFragment && hash + 1 < given.length ? '#…' : given.slice(end)
  const hasQuery = query !== -1 && query < end
  const path = given.slice(0, hasQuery ? query : end)
  const start = isEncoded ? path.replace(encodedQuery, '$1…') : path
  if (!hasQuery) return start + tail
  const parts = given.slice(query + 1, end).split('&')
  return start + given[query] + parts.map((part) => redactParameter(part, isUrl)).join('&') + tail
}

/** Redacts the value of one query parameter. In a URL, a part of 8 or more characters without a name counts as a value. */
function redactParameter(part: string, isUrl: boolean): string {
  const at = part.indexOf('=')
  if (at === -1) {
    if (isUrl && part.length >= 8) return '…'
    return part.includes('%') ? part.replace(encodedQuery, '$1…') : part
  }
  const name = part.slice(0, at)
  const value = part.slice(at + 1)
  const isHarmless = harmlessParameters.has(name.toLowerCase()) && harmlessValue.test(value) && !holdsUserInfo(value)
  return value.length < minSecretLength || isHarmless || value.startsWith('…') ? part : `${name}=…`
}

/** Checks whether a text holds a user and a password before a host, as `me:password@proxy` does. The `@` of a digest does not count. */
function holdsUserInfo(value: string): boolean {
  const plain = value.replaceAll(/%3a/gi, ':').replaceAll(/%40/g, '@')
  const at = plain.lastIndexOf('@')
  return at !== -1 && !digestStart.test(plain.slice(at + 1)) && plain.slice(0, at).includes(':')
}
