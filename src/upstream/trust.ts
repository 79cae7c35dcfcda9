import type { LookupAddress, LookupOptions } from 'node:dns'
import { BlockList, isIP } from 'node:net'
import { LRUCache } from 'lru-cache'
import { getDomain } from 'tldts'
import { harmlessParameters } from '../lib/logger.ts'
import { UpstreamError } from './upstream.ts'

const repositoryPath = /\/v2\/(.+)\/(?:(?:manifests|blobs|referrers)\/[^/]+|tags\/list)$/
const ranks: Record<AddressClass, number> = { public: 0, private: 1, loopback: 2, 'link-local': 3 }

// Omits 198.18.0.0/15 on purpose, because VPN clients resolve every DNS name to an address of it, and addresses for documentation,
// because they lead nowhere.
const ranges: [AddressClass, string[]][] = [
  ['loopback', ['127.0.0.0/8', '0.0.0.0/8', '::1/128', '::/128']],
  [
    'link-local',
    [
      '169.254.0.0/16',
      'fe80::/10',
      // Metadata services of clouds, which serve credentials: Azure, Alibaba, Oracle, AWS (also EKS), Google.
      '168.63.129.16/32',
      '100.100.100.200/32',
      '192.0.0.192/32',
      'fd00:ec2::254/128',
      'fd00:ec2::23/128',
      'fd20:ce::254/128',
      // Multicast, reserved and benchmark addresses get the strictest class, because no registry has one.
      '224.0.0.0/3',
      'ff00::/8',
      '2001:2::/48',
      '2001:10::/28',
      '2001:20::/28',
    ],
  ],
  [
    'private',
    ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16', '100.64.0.0/10', '192.0.0.0/24', 'fc00::/7', 'fec0::/10'],
  ],
]

const lists = ranges.map(([addressClass, subnets]) => {
  const list = new BlockList()
  for (const subnet of subnets) {
    const [network, prefix] = subnet.split('/')
    list.addSubnet(network!, Number(prefix), isIP(network!) === 6 ? 'ipv6' : 'ipv4')
  }
  return [addressClass, list] as const
})

/** Hostnames whose class is remembered: the upstream's, its token realms' and its redirects'. */
const maxNames = 100

/**
 * Checks whether a token realm may receive the credential of an upstream: its host and port are the upstream's own, it is on the same
 * registrable domain over https, or the user named its host. Any other realm could steal the password (CVE-2026-33540).
 */
export function mayReceiveCredential(realm: URL, upstream: URL, tokenHosts: readonly string[]): boolean {
  if (realm.protocol !== 'https:' && (realm.protocol !== 'http:' || upstream.protocol === 'https:')) return false
  if (realm.hostname === upstream.hostname && getPort(realm) === getPort(upstream)) return true
  if (isNamedHost(realm, tokenHosts)) return true
  if (realm.protocol !== 'https:') return false
  if (isLocal(realm) || isLocal(upstream)) return false
  if (upstream.hostname === 'nvcr.io' && realm.host === 'authn.nvidia.com') return true
  const domain = getRegistrableDomain(realm)
  return domain !== undefined && domain === getRegistrableDomain(upstream)
}

/** Checks whether the user named a URL's host; a name without a port means the scheme's default port. */
function isNamedHost(url: URL, hosts: readonly string[]): boolean {
  return hosts.some(
    (host) => host.toLowerCase() === url.host || host.toLowerCase() === `${url.hostname}:${getPort(url)}`,
  )
}

/** Resolves a redirect to its target, or to the reason not to follow it. */
export function resolveRedirect(from: URL, location: string): URL | string {
  const target = URL.canParse(location, from.href) ? new URL(location, from) : undefined
  if (!target) return 'its target is not a URL'
  if (target.protocol !== 'http:' && target.protocol !== 'https:') return 'its target is not HTTP'
  if (from.protocol === 'https:' && target.protocol === 'http:') return 'it leads from https to http'
  if (target.username !== '' || target.password !== '') return 'its target carries a user name'
  return target
}

/** Finds the repository in a URL of a registry; undefined for other URLs, such as a signed link to storage. */
export function findRepository(url: URL): string | undefined {
  return hasOnlyHarmlessQuery(url) ? repositoryPath.exec(url.pathname)?.[1] : undefined
}

/** Checks whether a URL contains no signature: no user, no fragment, and no long unknown parameter. */
function hasOnlyHarmlessQuery({ username, password, hash, search }: URL): boolean {
  if (username !== '' || password !== '' || hash !== '') return false
  return search
    .slice(1)
    .split('&')
    .every((part) => {
      const at = part.indexOf('=')
      if (at === -1) return part.length < 8
      return part.length - at <= 3 || harmlessParameters.has(part.slice(0, at).toLowerCase())
    })
}

function isLocal(url: URL): boolean {
  return url.hostname === 'localhost' || url.hostname.endsWith('.localhost') || getLiteralAddress(url) !== undefined
}

function getRegistrableDomain(url: URL): string | undefined {
  return getDomain(url.hostname, { allowPrivateDomains: true }) ?? undefined
}

function getPort(url: URL): string {
  if (url.port !== '') return url.port
  return url.protocol === 'https:' ? '443' : '80'
}

/** Classifies the reach of an address, from the whole internet to this link. */
type AddressClass = 'public' | 'private' | 'loopback' | 'link-local'

/**
 * Classifies an IP address. An IPv6 address that contains an IPv4 address (mapped, translated, NAT64, 6to4, Teredo, ISATAP …) is as
 * private as that address. Any other text gets the strictest class.
 */
export function classifyAddress(address: string): AddressClass {
  const bare = address.split('%', 1)[0]!
  if (isIP(bare) === 4) return findClass(bare, 'ipv4') ?? 'public'
  const bytes = parseIpv6(bare)
  if (bytes === undefined) return 'link-local'
  const [own, embedded] = [findClass(bare, 'ipv6'), findEmbedded(bytes)]
  if (embedded === undefined) return own ?? (isGlobalUnicast(bytes) ? 'public' : 'link-local')
  return [own ?? embedded.minClass, ...embedded.addresses.map(classifyAddress)].reduce(getMorePrivate)
}

/** Checks whether class `target` is more private than class `base`, so that `base` must not redirect to it. */
export function isMorePrivate(target: AddressClass, base: AddressClass): boolean {
  return ranks[target] > ranks[base]
}

/** Returns the IP address that a URL has instead of a name. The URL parser has already normalized octal and decimal spellings. */
export function getLiteralAddress(url: URL): string | undefined {
  const host = url.hostname.replace(/^\[(.*)\]$/, '$1')
  return isIP(host) ? host : undefined
}

function getMorePrivate(one: AddressClass, other: AddressClass): AddressClass {
  return isMorePrivate(other, one) ? other : one
}

function findClass(address: string, family: 'ipv4' | 'ipv6'): AddressClass | undefined {
  // Checks one family only; an IPv4 address in IPv6 is checked separately, because the list would find the mapped form only.
  return lists.find(([, list]) => list.check(address, family))?.[0]
}

/** Holds the IPv4 addresses in an IPv6 address, and the minimum class of the IPv6 address. */
interface Embedded {
  readonly addresses: readonly string[]
  readonly minClass: AddressClass
}

function findEmbedded(bytes: Uint8Array): Embedded | undefined {
  const found = (at: number, least: AddressClass = 'public'): Embedded => ({
    addresses: [formatIpv4At(bytes, at)],
    minClass: least,
  })
  // IPv4-compatible; `::` and `::1` are not: RFC 4291 §2.5.
  if (startsWith(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]) && !startsWith(bytes.subarray(12), [0, 0, 0]))
    return found(12)
  // Mapped: RFC 4291 §2.5.5.2; translated: RFC 2765 §2.1.
  if (startsWith(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff])) return found(12)
  if (startsWith(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0])) return found(12)
  // NAT64: RFC 6052; a local prefix (RFC 8215) is private, wherever it contains the IPv4 address.
  if (startsWith(bytes, [0, 0x64, 0xff, 0x9b, 0, 0, 0, 0, 0, 0, 0, 0])) return found(12)
  if (startsWith(bytes, [0, 0x64, 0xff, 0x9b, 0, 1])) return found(12, 'private')
  // 6to4: RFC 3056.
  if (startsWith(bytes, [0x20, 0x02])) return found(2)
  // Teredo: RFC 4380 §4, the server and, inverted, the client.
  if (startsWith(bytes, [0x20, 0x01, 0, 0])) {
    const client = bytes.subarray(12).map((byte) => byte ^ 0xff)
    return { addresses: [formatIpv4At(bytes, 4), formatIpv4At(client, 0)], minClass: 'public' }
  }
  // ISATAP: RFC 5214 §6.1, below any prefix.
  const identifier = bytes.subarray(8)
  if (startsWith(identifier, [0, 0, 0x5e, 0xfe]) || startsWith(identifier, [2, 0, 0x5e, 0xfe])) return found(12)
  return undefined
}

function startsWith(bytes: Uint8Array, start: readonly number[]): boolean {
  return start.every((byte, at) => bytes[at] === byte)
}

function formatIpv4At(bytes: Uint8Array, at: number): string {
  return bytes.subarray(at, at + 4).join('.')
}

/** Checks whether an address is in 2000::/3, the only block that IANA has allocated. */
function isGlobalUnicast([first = 0]: Uint8Array): boolean {
  return first >> 5 === 1
}

/** Parses an IPv6 address to its 16 bytes; undefined for any other text. */
function parseIpv6(address: string): Uint8Array | undefined {
  if (isIP(address) !== 6) return undefined
  const [head = '', tail] = address.split('::')
  const [first, last] = [parseGroups(head), parseGroups(tail ?? '')]
  const gap = tail === undefined ? [] : Array.from({ length: 16 - first.length - last.length }, () => 0)
  return Uint8Array.from([...first, ...gap, ...last])
}

function parseGroups(text: string): number[] {
  if (text === '') return []
  return text.split(':').flatMap((group) => {
    if (group.includes('.')) return group.split('.').map(Number)
    const value = Number.parseInt(group, 16)
    return [value >> 8, value & 0xff]
  })
}

/** Describes the form of `dns.lookup` that returns all addresses. */
export type LookupAll = (
  hostname: string,
  options: LookupOptions & { all: true },
  callback: (error: NodeJS.ErrnoException | null, addresses: LookupAddress[]) => void,
) => void

/** Describes the form of `dns.lookup` that sockets call. */
type SocketLookup = (
  hostname: string,
  options: LookupOptions,
  callback: (error: NodeJS.ErrnoException | null, address: string | LookupAddress[], family?: number) => void,
) => void

interface AddressGuardOptions {
  readonly host: string
  readonly url: URL
  /** Is true if the upstream may have a private address, because the user configured it by name. */
  readonly allowPrivate: boolean
  /** Lists hosts that the user named: they may have a private address too. */
  readonly tokenHosts: readonly string[]
  readonly lookup: LookupAll
  /** Holds the upstream's class, where it is known before its name is resolved. */
  readonly ownClass?: AddressClass
}

/**
 * Prevents an upstream from sending the mirror to private addresses: redirects and token realms may not lead to a more private address
 * than the upstream's own. The guard checks the very addresses that are then connected to, so that a second DNS response cannot
 * bypass it.
 */
export interface AddressGuard {
  /**
   * Checks whether `checkLiteral` accepts a URL now and later: one with a name, whose addresses `lookup` checks, or one whose literal
   * address is allowed whatever the upstream's own class becomes.
   */
  isAlwaysAllowed(url: URL): boolean
  /** Throws an UpstreamError when the URL's literal address is refused. */
  checkLiteral(url: URL): void
  readonly lookup: SocketLookup
  /** Returns the class of a host that was connected to; `public` when it is not known. */
  getClass(url: URL): AddressClass
}

export function createAddressGuard(options: AddressGuardOptions): AddressGuard {
  const { host, url: upstream, allowPrivate, tokenHosts } = options
  const literal = getLiteralAddress(upstream)
  let ownClass: AddressClass = literal ? classifyAddress(literal) : (options.ownClass ?? 'public')
  const classes = new LRUCache<string, AddressClass>({ max: maxNames })
  const namedHosts = new Set(tokenHosts.filter((name) => URL.canParse(`https://${name}`)).map(parseHostname))

  function isAlwaysAllowedAt(hostname: string, address: string): boolean {
    if (hostname === upstream.hostname ? allowPrivate : namedHosts.has(hostname)) return true
    return classifyAddress(address) === 'public'
  }

  function isAllowed(hostname: string, address: string): boolean {
    if (isAlwaysAllowedAt(hostname, address)) return true
    // Another host may be as private as the upstream, whose class can change with each DNS response.
    return allowPrivate && hostname !== upstream.hostname && !isMorePrivate(classifyAddress(address), ownClass)
  }

  function refusal(hostname: string): UpstreamError {
    const message =
      hostname === upstream.hostname
        ? `${host} has a private address; such an upstream must be configured by name under upstreams in mirror.yaml.`
        : `${host} redirects to ${hostname}, which has a more private address; the mirror does not follow it.`
    return new UpstreamError('invalid', 502, message)
  }

  return {
    isAlwaysAllowed(url) {
      const address = getLiteralAddress(url)
      return address === undefined || isNamedHost(url, tokenHosts) || isAlwaysAllowedAt(url.hostname, address)
    },
    checkLiteral(url) {
      const address = getLiteralAddress(url)
      if (address === undefined || isNamedHost(url, tokenHosts) || isAllowed(url.hostname, address)) return
      throw refusal(url.hostname)
    },
    lookup(hostname, lookupOptions, callback) {
      options.lookup(hostname, { ...lookupOptions, all: true }, (error, addresses) => {
        if (error) return callback(error, [])
        if (hostname === upstream.hostname) ownClass = getLeastPrivate(addresses)
        const allowed = addresses.filter(({ address }) => isAllowed(hostname, address))
        const first = allowed[0]
        if (!first) return callback(refusal(hostname), [])
        classes.set(hostname, getLeastPrivate(allowed))
        if (lookupOptions.all) callback(null, allowed)
        else callback(null, first.address, first.family)
      })
    },
    getClass(url) {
      const address = getLiteralAddress(url)
      return address === undefined ? (classes.get(url.hostname) ?? 'public') : classifyAddress(address)
    },
  }
}

function getLeastPrivate(addresses: readonly LookupAddress[]): AddressClass {
  const classes = addresses.map(({ address }) => classifyAddress(address))
  return classes.reduce((least, next) => (isMorePrivate(least, next) ? next : least), classes[0] ?? 'public')
}

const parseHostname = (host: string) => new URL(`https://${host}`).hostname
