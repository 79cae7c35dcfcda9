import type { LookupAddress, LookupOptions } from 'node:dns'
import { LRUCache } from 'lru-cache'
import { classifyAddress, isMorePrivate, literalAddress, type AddressClass } from './address-class.ts'
import { isNamed } from './trust.ts'
import { UpstreamError } from './upstream.ts'

/** `dns.lookup` in the form that gives all addresses. */
export type LookupAll = (
  hostname: string,
  options: LookupOptions & { all: true },
  callback: (error: NodeJS.ErrnoException | null, addresses: LookupAddress[]) => void,
) => void

/** The form in which sockets ask for addresses. */
export type SocketLookup = (
  hostname: string,
  options: LookupOptions,
  callback: (error: NodeJS.ErrnoException | null, address: string | LookupAddress[], family?: number) => void,
) => void

export interface AddressGuardOptions {
  readonly host: string
  readonly url: URL
  /** Whether the upstream may be anywhere, because the user configured it by name; otherwise it has to be public. */
  readonly allowPrivate: boolean
  /** Hosts the user named: they may be anywhere too. */
  readonly tokenHosts: readonly string[]
  readonly lookup: LookupAll
  /** How near the upstream is to us, where that is known before its name was looked up. */
  readonly ownClass?: AddressClass
}

/**
 * Keeps an upstream from sending us to addresses that only we can reach: redirects and token realms may not lead anywhere more
 * private than the upstream itself. Names are judged by the addresses that are then connected to, so that no second answer of
 * the DNS gets around it.
 */
export interface AddressGuard {
  /** Throws an UpstreamError when the URL's literal address is refused. */
  checkLiteral(url: URL): void
  readonly lookup: SocketLookup
  /** How near a host is that was connected to; `public` when that is not known. */
  classOf(url: URL): AddressClass
}

/** Names whose class is remembered: those of the upstream, its token realms and its redirects. */
const mostNames = 100

export function createAddressGuard(options: AddressGuardOptions): AddressGuard {
  const { host, url: upstream, allowPrivate, tokenHosts } = options
  const literal = literalAddress(upstream)
  let ownClass: AddressClass = literal ? classifyAddress(literal) : (options.ownClass ?? 'public')
  const classes = new LRUCache<string, AddressClass>({ max: mostNames })
  const namedHosts = new Set(tokenHosts.filter((name) => URL.canParse(`https://${name}`)).map(hostnameOf))

  function isAllowed(hostname: string, address: string): boolean {
    if (hostname === upstream.hostname) return allowPrivate || classifyAddress(address) === 'public'
    return namedHosts.has(hostname) || !isMorePrivate(classifyAddress(address), allowPrivate ? ownClass : 'public')
  }

  function refusal(hostname: string): UpstreamError {
    const message =
      hostname === upstream.hostname
        ? `${host} is at a private address; such an upstream has to be configured by name under upstreams.`
        : `${host} leads to ${hostname}, which is at a more private address than itself; that is not followed.`
    return new UpstreamError('invalid', 502, message)
  }

  return {
    checkLiteral(url) {
      const address = literalAddress(url)
      if (address === undefined || isNamed(url, tokenHosts) || isAllowed(url.hostname, address)) return
      throw refusal(url.hostname)
    },
    lookup(hostname, lookupOptions, callback) {
      options.lookup(hostname, { ...lookupOptions, all: true }, (error, addresses) => {
        if (error) return callback(error, [])
        if (hostname === upstream.hostname) ownClass = leastPrivate(addresses)
        const allowed = addresses.filter(({ address }) => isAllowed(hostname, address))
        const first = allowed[0]
        if (!first) return callback(refusal(hostname), [])
        classes.set(hostname, leastPrivate(allowed))
        if (lookupOptions.all) callback(null, allowed)
        else callback(null, first.address, first.family)
      })
    },
    classOf(url) {
      const address = literalAddress(url)
      return address === undefined ? (classes.get(url.hostname) ?? 'public') : classifyAddress(address)
    },
  }
}

function leastPrivate(addresses: readonly LookupAddress[]): AddressClass {
  const classes = addresses.map(({ address }) => classifyAddress(address))
  return classes.reduce((least, next) => (isMorePrivate(least, next) ? next : least), classes[0] ?? 'public')
}

const hostnameOf = (host: string) => new URL(`https://${host}`).hostname
