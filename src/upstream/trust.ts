import { getDomain } from 'tldts'
import { harmlessParameters } from '../lib/logger.ts'
import { literalAddress } from './address-class.ts'

/**
 * Whether a token realm may see the credential of an upstream: it lives on the upstream's own host and port, on the same
 * registrable domain over https, or on a host the user named. Anything else is how a registry steals a password (CVE-2026-33540).
 */
export function mayReceiveCredential(realm: URL, upstream: URL, tokenHosts: readonly string[]): boolean {
  if (realm.protocol !== 'https:' && (realm.protocol !== 'http:' || upstream.protocol === 'https:')) return false
  if (realm.hostname === upstream.hostname && portOf(realm) === portOf(upstream)) return true
  if (isNamed(realm, tokenHosts)) return true
  if (realm.protocol !== 'https:') return false
  if (isLocal(realm) || isLocal(upstream)) return false
  if (upstream.hostname === 'nvcr.io' && realm.host === 'authn.nvidia.com') return true
  const domain = registrableDomain(realm)
  return domain !== undefined && domain === registrableDomain(upstream)
}

/** Whether a URL's host is one of those the user named; without a port the scheme's own is meant. */
export function isNamed(url: URL, hosts: readonly string[]): boolean {
  return hosts.some(
    (host) => host.toLowerCase() === url.host || host.toLowerCase() === `${url.hostname}:${portOf(url)}`,
  )
}

/** Where a redirect leads, or why it is not followed. */
export function redirectTarget(from: URL, location: string): URL | string {
  const target = URL.canParse(location, from.href) ? new URL(location, from) : undefined
  if (!target) return 'its target is not a URL'
  if (target.protocol !== 'http:' && target.protocol !== 'https:') return 'its target is not HTTP'
  if (from.protocol === 'https:' && target.protocol === 'http:') return 'it leads from https to http'
  if (target.username !== '' || target.password !== '') return 'its target carries a user name'
  return target
}

const repositoryPath = /\/v2\/(.+)\/(?:(?:manifests|blobs|referrers)\/[^/]+|tags\/list)$/

/** The repository in a URL of a registry; undefined for other URLs, such as a signed link to storage. */
export function repositoryIn(url: URL): string | undefined {
  return hasOnlyHarmlessQuery(url) ? repositoryPath.exec(url.pathname)?.[1] : undefined
}

/** Whether a URL carries nothing that it could be signed with: no user, no fragment, and no parameter that is long and unknown. */
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
  return url.hostname === 'localhost' || url.hostname.endsWith('.localhost') || literalAddress(url) !== undefined
}

function registrableDomain(url: URL): string | undefined {
  return getDomain(url.hostname, { allowPrivateDomains: true }) ?? undefined
}

function portOf(url: URL): string {
  if (url.port !== '') return url.port
  return url.protocol === 'https:' ? '443' : '80'
}
