import { type IncomingMessage, type OutgoingHttpHeader, type OutgoingHttpHeaders, ServerResponse } from 'node:http'
import { isIP } from 'node:net'
import { LRUCache } from 'lru-cache'
import { hostAliases, isLoopbackAddress, ownNames } from '../lib/network.ts'
import { OciError } from '../oci/errors.ts'

export interface HostGuard {
  /**
   * Throws an OciError for a request that was not meant for us: 421 for a foreign Host, 400 for none or two. A browser page
   * that has its own name resolve to this machine (DNS rebinding) gets no further than this.
   */
  check(request: { readonly rawHeaders: readonly string[]; readonly localAddress: string | undefined }): void
}

/** `allowed`: extra names from the configuration. `onRefused` hears of every foreign Host. */
export function createHostGuard(allowed: readonly string[], onRefused: (host: string) => void): HostGuard {
  const names = new Set([...ownNames, ...allowed.map(normalizeAllowedName)])
  // Clients say the same with every request.
  const passed = new LRUCache<string, true>({ max: 1000 })
  return {
    check({ rawHeaders, localAddress = '' }) {
      const value = onlyHost(rawHeaders)
      if (value === undefined) throw new OciError('UNSUPPORTED', 400, 'A request needs exactly one Host header.')
      const key = `${localAddress} ${value}`
      if (passed.has(key)) return
      const host = hostname(value)
      const address = canonicalAddress(host)
      const isOurs = address !== undefined && address === canonicalAddress(localAddress)
      if (names.has(address ?? host) || isOurs || (address !== undefined && isLoopbackAddress(address))) {
        passed.set(key, true)
        return
      }
      onRefused(host)
      const advice = `If clients are to reach the mirror by this name, add it to "allowedHosts" in mirror.yaml.`
      throw new OciError('DENIED', 421, `The Host ${JSON.stringify(host.slice(0, 255))} is not this mirror. ${advice}`)
    },
  }
}

/** The one Host header's value; undefined when there is none, or more of them. */
function onlyHost(rawHeaders: readonly string[]): string | undefined {
  let found: string | undefined
  for (let at = 0; at < rawHeaders.length; at += 2) {
    const name = rawHeaders[at]!
    if (name.length !== 4 || name.toLowerCase() !== 'host') continue
    if (found !== undefined) return undefined
    found = rawHeaders[at + 1]!
  }
  return found
}

/** The name in a Host header: lower case, without port and brackets. */
function hostname(value: string): string {
  const trimmed = value.trim().toLowerCase()
  const bracketed = /^\[([^\]]*)\](?::\d*)?$/.exec(trimmed)
  return bracketed ? bracketed[1]! : trimmed.replace(/:\d*$/, '').replace(/\.$/, '')
}

const aliases = new Set<string>(hostAliases)

/** Whether a Host header names the machine as only its containers and virtual machines do. */
export function isHostAlias(value: string): boolean {
  return aliases.has(hostname(value))
}

/** As a Host header's name is compared: of an IPv6 address, with brackets or without, the one spelling. */
function normalizeAllowedName(name: string): string {
  const host = isIP(name) === 6 ? name : hostname(name)
  return canonicalAddress(host) ?? host
}

/** The one spelling of a literal address, of which IPv6 has many; without its zone. Undefined for what is no address. */
function canonicalAddress(text: string): string | undefined {
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

/** How browsers ask for a page to show, and for what no client of a registry speaks. */
const browserModes = new Set(['navigate', 'nested-navigate', 'websocket', 'webtransport'])

/**
 * Throws an OciError 403 for a request of a browser to a listener that has no pages. Only what a page of this listener fetches
 * passes. Other requests say by which site they were made, by what they want to show, or by their mode that a browser makes them
 * (https://www.w3.org/TR/fetch-metadata/); `Sec-Fetch-Site: none` stays when a site that the user went to redirects to us.
 * Node's own fetch sends `Sec-Fetch-Mode: cors` alone.
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
    throw new OciError('DENIED', 403, 'There is no page for browsers here, only a registry for its clients.')
}

/**
 * Throws an OciError 403 for a request that a page of another origin makes. Browsers say where a request comes from
 * (https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header): `none` is the address bar, which only reads, `same-origin` a
 * page of this listener. `same-site` is refused like `cross-site`, because any port of this machine is the same site. To an
 * address that is neither loopback nor HTTPS browsers send no such header, but `Origin` with what a script asks for. Registry
 * clients send neither.
 */
export function refuseOtherSites({ headers, method }: BrowserRequest): void {
  const site = headers['sec-fetch-site']
  const { origin, host } = headers
  const isAddressBar = site === 'none' && (method === 'GET' || method === 'HEAD')
  const isOtherSite = site !== undefined && site !== 'same-origin' && !isAddressBar
  const isOtherOrigin = origin !== undefined && origin !== `http://${host}` && origin !== `https://${host}`
  if (isOtherSite || isOtherOrigin)
    throw new OciError('DENIED', 403, 'A page of another site may not ask for anything here.')
}

/**
 * What every answer of every listener says to browsers, which are no clients of a registry: render nothing, run nothing, guess no
 * type, and let no other page embed it. Content comes from upstreams and from pushes, and shares its origin with the admin API.
 */
const securityHeaders: Readonly<Record<string, string>> = {
  'content-security-policy': "sandbox; default-src 'none'",
  'x-content-type-options': 'nosniff',
  'cross-origin-resource-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
}
const entries = Object.entries(securityHeaders)

/** The same as lines of a head, for what is written to a socket without a response. */
export const securityHeaderLines = entries.map(([name, value]) => `${name}: ${value}\r\n`).join('')

/**
 * The response that listeners create: it adds the security headers to every head, whoever writes it, Node itself included. A page
 * that needs another value sets that header itself. `writeHead` completes the headers that it is given.
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
