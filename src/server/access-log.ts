import type { IncomingMessage, ServerResponse } from 'node:http'
import { type Logger, redact } from '../lib/logger.ts'
import { formatReference } from '../oci/reference.ts'
import type { Provenance } from '../oci/registry.ts'
import type { Route } from '../oci/route.ts'
import type { SeenClients } from '../stats/clients.ts'
import type { RecentRequests } from '../stats/requests.ts'
import { getPeer, hasBody } from './connection.ts'
import { getReceivedBytes } from './request-body.ts'
import { getRequestId } from './request-id.ts'

/** Limits the characters of a URL in the log. */
const maxUrlLength = 1024

interface AccessLogOptions {
  readonly listener: 'cache' | 'registry'
  /** Names the upstream of requests that name none; undefined where repositories belong to no upstream. */
  readonly defaultRegistry: string | undefined
  readonly recent: RecentRequests
  readonly clients: SeenClients
  readonly logger: Logger
}

/** Describes the answer to a request. */
interface Answered {
  /** Is undefined for a URL that is not part of the registry API. */
  readonly route: Route | undefined
  readonly status: number
  readonly bytes: number
  readonly milliseconds: number
  readonly provenance?: Provenance | undefined
  readonly error?: string | undefined
}

/**
 * Logs an answered request in one line, which `mirror logs` shows, and remembers it. Successful reads without content, such as pings,
 * are logged at debug level, and pings are not remembered.
 */
export function recordAccess(
  { listener, defaultRegistry, recent, clients, logger }: AccessLogOptions,
  request: IncomingMessage,
  response: ServerResponse,
  { route, status, bytes, milliseconds, provenance, error }: Answered,
): void {
  const { method } = request
  const received = hasBody(request) ? getReceivedBytes(request) : 0
  const peer = getPeer(request)
  const { evictedAt } = provenance ?? {}
  const fields = {
    id: getRequestId(response),
    listener,
    method: method ?? '',
    url: redact(request.url ?? '').slice(0, maxUrlLength),
    kind: route?.kind,
    repository: getRepositoryName(route, defaultRegistry),
    reference: route && getReferenceText(route),
    status,
    upstream: provenance?.registry,
    cache: provenance?.outcome,
    reason: provenance?.reason,
    evictedAt: evictedAt === undefined ? undefined : new Date(evictedAt).toISOString(),
    probe: provenance?.isProbe,
    bytes,
    received: received > 0 ? received : undefined,
    ms: Math.round(milliseconds),
    client: peer.address,
    agent: peer.agent,
    error,
    warning: provenance?.warning,
  }
  const isPing = route?.kind === 'base'
  if (!isPing || status >= 400) recent.record(fields, evictedAt)
  if (route && !isPing && !provenance?.isProbe) {
    clients.record(peer, {
      listener,
      registry: 'name' in route ? (route.registry ?? defaultRegistry) : undefined,
      kind: route.kind === 'manifest' || route.kind === 'blob' ? route.kind : 'other',
      isHead: method === 'HEAD',
      byTag: route.kind === 'manifest' && route.reference.kind === 'tag',
      isSuccess: status < 300,
      result: provenance && getResult(provenance, request),
      bytes,
    })
  }
  if (status >= 500) logger.warn(fields, 'request')
  else if (provenance || status >= 400 || !isRead(request)) logger.info(fields, 'request')
  else logger.debug(fields, 'request')
}

/** Returns whether the content came from the store, as the statistics count it; undefined where they count neither. */
function getResult({ outcome }: Provenance, { method }: IncomingMessage): 'hit' | 'miss' | undefined {
  if (outcome === 'hit' || outcome === 'revalidated' || outcome === 'stale') return 'hit'
  return (outcome === 'miss' || outcome === 'collapsed') && method !== 'HEAD' ? 'miss' : undefined
}

/**
 * Returns the repository of a request, with its registry where it belongs to an upstream: `docker.io/library/redis`.
 * `defaultRegistry`: the registry of a request that names none; undefined where repositories belong to no upstream.
 */
export function getRepositoryName(route: Route | undefined, defaultRegistry: string | undefined): string | undefined {
  if (route === undefined || !('name' in route)) return undefined
  const host = route.registry ?? defaultRegistry
  if (host === undefined) return route.name
  return `${host}/${host === 'docker.io' && !route.name.includes('/') ? 'library/' : ''}${route.name}`
}

/** Returns the tag or digest of a request. */
function getReferenceText(route: Route): string | undefined {
  switch (route.kind) {
    case 'manifest':
      return formatReference(route.reference)
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

export function isRead({ method }: IncomingMessage): boolean {
  return method === 'GET' || method === 'HEAD'
}
