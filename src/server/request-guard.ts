import { isIP } from 'node:net'
import { LRUCache } from 'lru-cache'
import { hostAliases, ownNames } from '../lib/network.ts'
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
  const names = new Set([...ownNames, ...allowed.map(allowedName)])
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
function allowedName(name: string): string {
  const host = isIP(name) === 6 ? name : hostname(name)
  return canonicalAddress(host) ?? host
}

/** An IPv4 address that came mapped into IPv6 (`::ffff:10.0.0.1`) as plain IPv4; a zone is dropped. */
export function plainAddress(address: string): string {
  if (!address.includes(':')) return address
  return address
    .toLowerCase()
    .replace(/^::ffff:(?=\d+\.)/, '')
    .replace(/%.*$/, '')
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

/** Whether the text is a literal loopback address. */
export function isLoopbackAddress(address: string): boolean {
  const plain = plainAddress(address)
  return plain === '::1' || (isIP(plain) === 4 && plain.startsWith('127.'))
}
