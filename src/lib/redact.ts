/** Query parameters whose values are no secret. Of all others the value is struck out: each cloud signs with names of its own. */
const harmlessParameters = new Set([
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
const leastSecret = 3

const word = /[^\s"'<>]+/g
const scheme = /\b(Bearer|Basic|Digest|Negotiate)\s+[A-Za-z0-9._~+/=-]{8,}/gi
const header =
  /\b((?:proxy-)?authorization|(?:set-)?cookie|x-registry-(?:auth|config)|x-auth-token|x-amz-security-token|private-token)(\\?["']?\s*[:=]\s*\\?["']?)[^"'\r\n\\]+/gi
const member =
  /(\\?["'][\w-]*(?:token|password|passwd|secret|signature|credential|api[_-]?key|access[_-]?key|auth)\\?["']\s*:\s*\\?["'])[^"'\\]+/gi
const webToken = /(?<![\w-])eyJ[\w-]+\.[\w-]+(?:\.[\w-]*)*/g
const userInfo = /(\b([a-z][a-z0-9+.-]{0,20}):\/\/)([^/?#\s"'<>]+)@/gi

/** Without one of these there is nothing to strike out: most of what is logged is looked at once. */
const inUrls = /[@#?&]/
const inWords = /eyJ|bearer|basic|digest |negotiate|cookie|auth|token|passw|secret|signature|credential|key/i

/**
 * The text without what could be a secret: user names and passwords in URLs, values of query parameters that are not known as
 * harmless, fragments, values of headers that authorize, and tokens, also as members of JSON.
 */
export function redact(text: string): string {
  const clean = inUrls.test(text) ? text.replace(userInfo, withoutUser).replace(word, withoutParameters) : text
  if (!inWords.test(clean)) return clean
  return clean.replace(webToken, '…').replace(header, '$1$2…').replace(member, '$1…').replace(scheme, '$1 …')
}

/** Of `ssh://me@host` the user is no secret: it says which machine is meant. */
function withoutUser(whole: string, start: string, name: string, user: string): string {
  const isWeb = /^(?:https?|socks[45]?[ah]?)$/i.test(name)
  return isWeb || user.includes(':') ? `${start}…@` : whole
}

/** Of a word that is, or ends in, a URL: without its fragment and the values of its parameters. */
function withoutParameters(text: string): string {
  const query = text.search(/[?&]/)
  const isUrl = text.includes('://')
  const hash = text.indexOf('#')
  const hasFragment = hash !== -1 && (isUrl || (query !== -1 && query < hash))
  const end = hasFragment ? hash : text.length
  const tail = hasFragment && hash + 1 < text.length ? '#…' : text.slice(end)
  if (query === -1 || query >= end) return text.slice(0, end) + tail
  const parts = text.slice(query + 1, end).split('&')
  return text.slice(0, query + 1) + parts.map((part) => withoutValue(part, isUrl)).join('&') + tail
}

/** In a URL also a long part without a name is a value. */
function withoutValue(part: string, isUrl: boolean): string {
  const at = part.indexOf('=')
  if (at === -1) return isUrl && part.length >= 8 ? '…' : part
  const name = part.slice(0, at)
  const isShort = part.length - at - 1 < leastSecret
  return isShort || harmlessParameters.has(name.toLowerCase()) ? part : `${name}=…`
}
