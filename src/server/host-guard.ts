import { isIP } from 'node:net'
import { LRUCache } from 'lru-cache'
import { OciError } from '../oci/errors.ts'

/** Names under which containers and VMs know this machine, and the name of our own container. */
export const wellKnownNames = [
  'localhost',
  'host.docker.internal',
  'host.containers.internal',
  'host.minikube.internal',
  'mirror',
]

export interface HostGuard {
  /**
   * Throws an OciError for a request that was not meant for us: 421 for a foreign Host, 400 for none or two. A browser page
   * that has its own name resolve to this machine (DNS rebinding) gets no further than this.
   */
  check(request: { readonly rawHeaders: readonly string[]; readonly localAddress: string | undefined }): void
}

/** `allowed`: extra names from the configuration. `onRefused` hears of every foreign Host. */
export function createHostGuard(allowed: readonly string[], onRefused: (host: string) => void): HostGuard {
  const names = new Set([...wellKnownNames, ...allowed.map((name) => name.toLowerCase())])
  // Clients say the same with every request.
  const passed = new LRUCache<string, true>({ max: 1000 })
  return {
    check({ rawHeaders, localAddress = '' }) {
      const value = onlyHost(rawHeaders)
      if (value === undefined) throw new OciError('UNSUPPORTED', 400, 'A request needs exactly one Host header.')
      const key = `${localAddress} ${value}`
      if (passed.has(key)) return
      const host = hostname(value)
      if (names.has(host) || isLoopbackAddress(host) || (isIP(host) !== 0 && host === plainAddress(localAddress))) {
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

/** An IPv4 address that came mapped into IPv6 (`::ffff:10.0.0.1`) as plain IPv4; a zone is dropped. */
export function plainAddress(address: string): string {
  if (!address.includes(':')) return address
  return address
    .toLowerCase()
    .replace(/^::ffff:(?=\d+\.)/, '')
    .replace(/%.*$/, '')
}

/** Whether the text is a literal loopback address. */
export function isLoopbackAddress(address: string): boolean {
  const plain = plainAddress(address)
  return plain === '::1' || (isIP(plain) === 4 && plain.startsWith('127.'))
}
