import type { IncomingMessage } from 'node:http'
import { type Logger, redact } from '../lib/logger.ts'
import { plainAddress } from '../lib/network.ts'
import { referenceText } from '../oci/reference.ts'
import type { Provenance } from '../oci/registry.ts'
import type { Route } from '../oci/route.ts'
import { receivedBytes } from './request-body.ts'

export interface AccessLogEntry {
  readonly listener: 'cache' | 'registry'
  /** Undefined for a request whose URL is none of a registry's. */
  readonly route: Route | undefined
  /** See `repositoryName`. */
  readonly repository: string | undefined
  readonly status: number
  readonly bytes: number
  readonly milliseconds: number
  readonly provenance?: Provenance | undefined
  readonly error?: string | undefined
}

/** Logs one line a request: `mirror logs` shows it to people. Pings are no news. */
export function logAccess(logger: Logger, request: IncomingMessage, access: AccessLogEntry): void {
  const { route } = access
  const received = receivedBytes(request)
  const fields = {
    listener: access.listener,
    method: request.method,
    url: redact(request.url ?? '').slice(0, 1024),
    kind: route?.kind,
    repository: access.repository,
    reference: route && referenceOf(route),
    status: access.status,
    upstream: access.provenance?.registry,
    cache: access.provenance?.outcome,
    probe: access.provenance?.isProbe,
    bytes: access.bytes,
    received: received > 0 ? received : undefined,
    ms: Math.round(access.milliseconds),
    client: plainAddress(request.socket.remoteAddress ?? ''),
    agent: agentOf(request),
    error: access.error,
  }
  if (access.status >= 500) logger.warn(fields, 'request')
  else if (access.provenance || access.status >= 400 || !isReading(request)) logger.info(fields, 'request')
  else logger.debug(fields, 'request')
}

/** What the client calls itself. */
export function agentOf({ headers }: IncomingMessage): string | undefined {
  return headers['user-agent']?.slice(0, 200)
}

/**
 * The repository that a request means, with its registry where it is one of an upstream: `docker.io/library/redis`.
 * `defaultRegistry`: the one of a request that names none; undefined where repositories belong to no upstream.
 */
export function repositoryName(route: Route | undefined, defaultRegistry: string | undefined): string | undefined {
  if (route === undefined || !('name' in route)) return undefined
  const host = route.registry ?? defaultRegistry
  if (host === undefined) return route.name
  return `${host}/${host === 'docker.io' && !route.name.includes('/') ? 'library/' : ''}${route.name}`
}

/** The tag or digest that a request names. */
function referenceOf(route: Route): string | undefined {
  switch (route.kind) {
    case 'manifest':
      return referenceText(route.reference)
    case 'blob':
    case 'referrers':
      return route.digest
    case 'uploads':
    case 'upload':
      return (route.wanted.digest ?? route.wanted.mount)?.slice(0, 200)
    default:
      return undefined
  }
}

function isReading({ method }: IncomingMessage): boolean {
  return method === 'GET' || method === 'HEAD'
}
