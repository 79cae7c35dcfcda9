/** What a room may say to the log. Fields are flat; secrets never go in (see `redact`). */
export interface Logger {
  debug(fields: LogFields, message: string): void
  info(fields: LogFields, message: string): void
  warn(fields: LogFields, message: string): void
  error(fields: LogFields, message: string): void
}

export type LogFields = Record<string, unknown>

/** A logger that says nothing. */
export const silentLogger: Logger = { debug() {}, info() {}, warn() {}, error() {} }

/**
 * Query parameters, of the distribution specification and of token servers, whose values are no secret. Any other may be what a
 * URL is signed with: each cloud has names of its own.
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

/** Characters; what is shorter could be found by trying. */
const minSecretLength = 3

const nonSpace = /[^\s"'<>]+/g

/** Within a percent-encoded URL: `%3A`, and `%253A` where it was encoded once more. */
const encoded = '%(?:25){0,3}'
/** User and password, up to the last `@` of the authority, of a URL that is plain, encoded, escaped in JSON, or without its scheme. */
const userInfoPattern = new RegExp(
  `((?:\\b([a-z][a-z0-9+.-]{0,20})(?::|${encoded}3a))?(?:\\\\?/|${encoded}2f){2})` +
    `((?:(?!${encoded}(?:2f|3f|23))[^/?#\\s])+)(?:(@)|(${encoded}40))`,
  'gi',
)
const encodedUrl = new RegExp(`(?::|${encoded}3a)(?:\\\\?/|${encoded}2f){2}|${encoded}3d`, 'i')
const encodedQuery = new RegExp(`(${encoded}(?:3f|23))[^?&#]+`, 'gi')

/** Of a harmless parameter, what it means and the punctuation of the sentence around it. Further parameters do not match. */
const harmlessValue = /^(?:[\w.:/@,*+~-]|%(?:2[0acf]|3a|40|7e))*[)\]}.,:;!`]*$/i
const digestStart = /^sha(?:256|512):/

const secretName =
  '(?:token|password|passwd|passphrase|pwd|secret|signature|credentials?|cookie|auth(?:orization)?|(?:api|access|private|secret|account)[_-]?key)'
/** What is struck out already stays as it is. */
const notRedacted = '(?!\\s*\\[?["\']?…)'

const authScheme = /\b(Bearer|Basic|Digest|Negotiate)\s+[A-Za-z0-9._~+/=-]{8,}/gi
const authSchemeWithParameters = /\b(Digest\s+|AWS4-HMAC-SHA256\s+)(?:username|credential)=[^\r\n]+/gi
/** A header that authorizes: its value ends with the line. */
const secretHeader = new RegExp(
  `(?:(?<![\\w-])|(?<=\\\\[nrt]))((?:(?:proxy-)?authorization|(?:set-)?cookie|x-registry-(?:auth|config)|(?:private|job|deploy)-token)[ \\t]*[:=]` +
    `|x-[\\w-]{0,60}?${secretName}[ \\t]*:)${notRedacted}([ \\t]*)[^\\r\\n]+`,
  'gi',
)
const memberName = `[\\w-]*(?:${secretName}|x-registry-config)`
/** Members of JSON, of JSON within a string of JSON, and of JavaScript; a value that was cut off too. */
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
/** How a sentence goes on after a colon. */
const prose =
  '(?:the|an?|its?|no|not|none|is|are|was|this|that|there|we|you|unexpected|invalid|missing|expired|unknown|cannot|could|failed)\\b'
/** `password=…`, `token: …` */
const secretSetting = new RegExp(
  `(?<![\\w-])((?!htpasswd)[\\w-]*${secretName}[ \\t]*(?:=|:(?=[ \\t])(?![ \\t]*${prose}))${notRedacted}[ \\t]*)` +
    `(?:${quoted}|[^\\s&{[][^\\s&]*)`,
  'gi',
)
const privateKey = /-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[^-"']*(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?/g
const webToken = /(?<![\w-])eyJ[\w-]+\.[\w-]+(?:\.[\w-]*)*/g
/** Tokens that show by their beginning what they are: of GitHub, GitLab, Docker Hub, AWS, npm, PyPI and Slack. */
const knownToken =
  /(?<![A-Za-z0-9])(?:gh[opsur]_\w{4,}|github_pat_\w{4,}|gl(?:pat|dt|rt|ptt|cbt|soat|ft)-[\w-]{4,}|dckr_[op]at_[\w-]{4,}|A[KS]IA[A-Z0-9]{12,}|npm_[A-Za-z0-9]{12,}|pypi-[\w-]{16,}|xox[abprs]-[\w-]{8,})/g

/** Without one of these there is nothing to strike out: most of what is logged is looked at once. */
const mayHoldUrl = /[@#?&%]/
const mayHoldSecret =
  /eyJ|bearer|basic|digest |negotiate|hmac|cookie|auth|token|passw|passphrase|pwd|secret|signature|credential|key|gh[opsur]_|_pat_|_oat_|gl[a-z]{2,4}-|a[ks]ia|npm_|pypi-|xox/i

/**
 * The text without what could be a secret: user names and passwords in URLs, values of query parameters that are not known as
 * harmless, fragments, values of headers that authorize, private keys and tokens, also as settings and members of JSON.
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

/** Of `ssh://me@host` the user is no secret: it says which machine is meant. */
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

/** Of a word that is, or ends in, a URL: without its fragment and the values of its parameters. */
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

/** In a URL also a long part without a name is a value. */
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

/** Whether a name and a password stand before a host, as in `me:password@proxy`; the `@` of a digest is another one. */
function holdsUserInfo(value: string): boolean {
  const plain = value.replaceAll(/%3a/gi, ':').replaceAll(/%40/g, '@')
  const at = plain.lastIndexOf('@')
  return at !== -1 && !digestStart.test(plain.slice(at + 1)) && plain.slice(0, at).includes(':')
}
