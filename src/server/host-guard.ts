import { isIP } from 'node:net'
import { OciError } from '../oci/errors.ts'

/** Names under which containers and VMs know this machine, and the name of our own container. */
const wellKnownNames = [
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
  return {
    check({ rawHeaders, localAddress }) {
      const values = rawHeaders.filter((_, at) => at % 2 === 1 && rawHeaders[at - 1]!.toLowerCase() === 'host')
      if (values.length !== 1) throw new OciError('UNSUPPORTED', 400, 'A request needs exactly one Host header.')
      const host = hostname(values[0]!)
      if (names.has(host) || isLoopbackAddress(host) || (isIP(host) !== 0 && host === plainAddress(localAddress ?? '')))
        return
      onRefused(host)
      const advice = `If clients are to reach the mirror by this name, add it to "allowedHosts" in mirror.yaml.`
      throw new OciError('DENIED', 421, `The Host ${JSON.stringify(host.slice(0, 255))} is not this mirror. ${advice}`)
    },
  }
}

/** The name in a Host header: lower case, without port and brackets. */
function hostname(value: string): string {
  const trimmed = value.trim().toLowerCase()
  const bracketed = /^\[([^\]]*)\](?::\d*)?$/.exec(trimmed)
  return bracketed ? bracketed[1]! : trimmed.replace(/:\d*$/, '').replace(/\.$/, '')
}

/** An IPv4 address that came mapped into IPv6 (`::ffff:10.0.0.1`) as plain IPv4; a zone is dropped. */
export function plainAddress(address: string): string {
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
