import { type IncomingMessage, type OutgoingHttpHeader, type OutgoingHttpHeaders, ServerResponse } from 'node:http'
import { isIP } from 'node:net'
import { LRUCache } from 'lru-cache'
import { hostAliases, isLoopbackAddress, mirrorHostNames } from '../lib/network.ts'
import { OciError } from '../oci/errors.ts'

const aliases = new Set<string>(hostAliases)
/** Lists the values of `Sec-Fetch-Mode` with which browsers navigate, or open connections that registry clients never open. */
const browserModes = new Set(['navigate', 'nested-navigate', 'websocket', 'webtransport'])

/**
 * Lists the headers of every response of every listener, for browsers: render nothing, run nothing, guess no type, and let no other
 * page embed the response. Content comes from upstreams and pushes, and shares its origin with the admin API.
 */
const securityHeaders: Readonly<Record<string, string>> = {
  'content-security-policy': "sandbox; default-src 'none'",
  'x-content-type-options': 'nosniff',
  'cross-origin-resource-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
}

const entries = Object.entries(securityHeaders)

interface AddressedRequest {
  readonly rawHeaders: readonly string[]
  readonly localAddress: string | undefined
}

/** Refuses requests that are addressed to other hosts. */
export type HostGuard = ReturnType<typeof createHostGuard>

/**
 * Creates the guard against requests for other hosts. `allowed`: additional names from the configuration. `onRefused` is called with
 * every foreign Host.
 */
export function createHostGuard(allowed: readonly string[], onRefused: (host: string) => void) {
  const names = new Set([...mirrorHostNames, ...allowed.map(normalizeAllowedName)])
  // Caches accepted values, because clients send the same Host with every request.
  const accepted = new LRUCache<string, true>({ max: 1000 })
  return {
    /**
     * Throws an OciError for a request that is not addressed to this mirror: 421 for a foreign Host, 400 for no Host or several. This
     * stops a web page whose own name resolves to this machine (DNS rebinding).
     */
    check({ rawHeaders, localAddress = '' }: AddressedRequest): void {
      const value = getOnlyHost(rawHeaders)
      if (value === undefined) throw new OciError('UNSUPPORTED', 400, 'A request needs exactly one Host header.')
      const key = `${localAddress} ${value}`
      if (accepted.has(key)) return
      const host = parseHostname(value)
      const address = toCanonicalAddress(host)
      const isOwnAddress = address !== undefined && address === toCanonicalAddress(localAddress)
      if (names.has(address ?? host) || isOwnAddress || (address !== undefined && isLoopbackAddress(address))) {
        accepted.set(key, true)
        return
      }
      onRefused(host)
      const advice = `To let clients use this name, add it to "allowedHosts" in mirror.yaml.`
      throw new OciError('DENIED', 421, `The Host ${JSON.stringify(host.slice(0, 255))} is not this mirror. ${advice}`)
    },
  }
}

/** Returns the value of the only Host header; undefined when there is none, or several. */
function getOnlyHost(rawHeaders: readonly string[]): string | undefined {
  let found: string | undefined
  for (let at = 0; at < rawHeaders.length; at += 2) {
    const name = rawHeaders[at]!
    if (name.length !== 4 || name.toLowerCase() !== 'host') continue
    if (found !== undefined) return undefined
    found = rawHeaders[at + 1]!
  }
  return found
}

/** Returns the name in a Host header: lower case, without port and brackets. */
function parseHostname(value: string): string {
  const trimmed = value.trim().toLowerCase()
  const bracketed = /^\[([^\]]*)\](?::\d*)?$/.exec(trimmed)
  return bracketed ? bracketed[1]! : trimmed.replace(/:\d*$/, '').replace(/\.$/, '')
}

/** Checks whether a Host header has a name of this machine that only its containers and virtual machines use. */
export function isHostAlias(value: string): boolean {
  return aliases.has(parseHostname(value))
}

/** Normalizes a configured name to the form in which the guard compares it; an IPv6 address may have brackets or none. */
function normalizeAllowedName(name: string): string {
  const host = isIP(name) === 6 ? name : parseHostname(name)
  return toCanonicalAddress(host) ?? host
}

/** Returns the canonical form of a literal address, without its zone; undefined for any other text. */
function toCanonicalAddress(text: string): string | undefined {
  const address = text.replace(/%.*$/, '')
  if (isIP(address) === 4) return address
  if (isIP(address) !== 6) return undefined
  const short = new URL(`http://[${address}]`).hostname.slice(1, -1)
  const mapped = /^::ffff:([\da-f]+):([\da-f]+)$/.exec(short)
  if (!mapped) return short
  const bytes = mapped.slice(1).flatMap((group) => [Number.parseInt(group, 16) >> 8, Number.parseInt(group, 16) & 255])
  return bytes.join('.')
}

type BrowserRequest = Pick<IncomingMessage, 'headers' | 'method'>

/**
 * Throws an OciError 403 for a browser's request to a listener without pages. Only fetches by a page of this listener pass. Other
 * requests reveal the browser by their site, their destination or their mode (https://www.w3.org/TR/fetch-metadata/);
 * `Sec-Fetch-Site: none` stays when a site that the user navigated to redirects to the mirror. Node's own fetch sends only
 * `Sec-Fetch-Mode: cors`.
 */
export function refuseBrowsers(request: BrowserRequest): void {
  refuseOtherSites(request)
  const {
    'sec-fetch-site': site,
    'sec-fetch-mode': mode = '',
    'sec-fetch-dest': destination = 'empty',
  } = request.headers
  const isOther = site !== undefined && site !== 'same-origin'
  if (isOther || browserModes.has(mode) || destination !== 'empty')
    throw new OciError('DENIED', 403, 'This is a container registry; it has no pages for browsers.')
}

/**
 * Throws an OciError 403 for a request by a page of another origin. Browsers send the origin of a request
 * (https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header): `none` is the address bar, which only reads, `same-origin` a page of
 * this listener. `same-site` is refused like `cross-site`, because any port of this machine is the same site. To an address that is
 * neither loopback nor HTTPS, browsers send no such header, but `Origin` with a script's request. Registry clients send neither.
 */
export function refuseOtherSites({ headers, method }: BrowserRequest): void {
  const site = headers['sec-fetch-site']
  const { origin, host } = headers
  const isAddressBar = site === 'none' && (method === 'GET' || method === 'HEAD')
  const isOtherSite = site !== undefined && site !== 'same-origin' && !isAddressBar
  const isOtherOrigin = origin !== undefined && origin !== `http://${host}` && origin !== `https://${host}`
  if (isOtherSite || isOtherOrigin) throw new OciError('DENIED', 403, 'Requests by pages of other sites are refused.')
}

/** Holds the same headers as lines of a head, for responses that are written to a socket directly. */
export const securityHeaderLines = entries.map(([name, value]) => `${name}: ${value}\r\n`).join('')

/**
 * Adds the security headers to every head, also to those that Node writes itself. A handler that needs another value sets
 * that header itself. `writeHead` completes the headers that it is given.
 */
export class SecureResponse extends ServerResponse {
  override writeHead(
    status: number,
    message?: string | OutgoingHttpHeaders | OutgoingHttpHeader[],
    headers?: OutgoingHttpHeaders | OutgoingHttpHeader[],
  ): this {
    const own = (typeof message === 'string' ? headers : message) ?? {}
    if (Array.isArray(own)) {
      for (const [name, value] of entries) if (!own.includes(name) && !this.hasHeader(name)) own.push(name, value)
    } else for (const [name, value] of entries) if (!(name in own) && !this.hasHeader(name)) own[name] = value
    return typeof message === 'string' ? super.writeHead(status, message, own) : super.writeHead(status, own)
  }
}
