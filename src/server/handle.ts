import type { IncomingMessage, ServerResponse } from 'node:http'
import { errnoOf } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { OciError } from '../oci/errors.ts'
import { parseRoute, type Addressing, type Route } from '../oci/route.ts'
import type { Caller, Provenance, Registry } from '../registry/registry.ts'
import type { Stats } from '../registry/stats.ts'
import { logAccess } from './access-log.ts'
import { ClientDeparture } from './client-departure.ts'
import { sendBlobAnswer, type BlobSending } from './blobs.ts'
import { plainAddress, type HostGuard } from './host-guard.ts'
import { sendList } from './listings.ts'
import { sendManifest } from './manifests.ts'
import { answerPush, type PushOptions } from './pushes.ts'
import { drainBody } from './request-body.ts'
import { sendError, sendWhole } from './respond.ts'

export interface HandleOptions {
  readonly registry: Registry
  readonly addressing: Addressing
  /** What this listener's clients may see. */
  readonly access: Caller['access']
  readonly guard: HostGuard
  /** Undefined where nothing counts: of a registry that is no cache. */
  readonly stats: Stats | undefined
  /** Undefined for a registry that is read-only. */
  readonly push?: PushOptions | undefined
  readonly sending: BlobSending
  readonly logger: Logger
}

/** What was sent, for the statistics and the log. */
interface Sent {
  readonly bytes: number
  readonly provenance?: Provenance
}

/** Turns requests into calls on a registry, and back. The one place where a failure becomes an answer. */
export function createHandler(options: HandleOptions): (request: IncomingMessage, response: ServerResponse) => void {
  const { stats, logger } = options
  return (request, response) => {
    const begun = performance.now()
    void serve(request, response, begun, new ClientDeparture(request, response))
  }

  async function serve(
    request: IncomingMessage,
    response: ServerResponse,
    begun: number,
    client: ClientDeparture,
  ): Promise<void> {
    const milliseconds = () => performance.now() - begun
    try {
      const { bytes, provenance } = await answer(request, response, options, client)
      if (provenance) stats?.served({ provenance, bytes, head: request.method === 'HEAD' })
      logAccess(logger, request, { status: response.statusCode, bytes, provenance, milliseconds: milliseconds() })
    } catch (reason) {
      const error = reason instanceof OciError ? reason : failureOf(reason, client, logger)
      if (error && (error.status === 429 || error.status >= 500)) stats?.failed()
      if (error) sendError(request, response, error)
      else response.destroy()
      logAccess(logger, request, {
        status: error?.status ?? 499,
        bytes: 0,
        error: error?.message,
        milliseconds: milliseconds(),
      })
    } finally {
      // A body that the answer did not need may never end.
      if (options.push) drainBody(request)
    }
  }
}

async function answer(
  request: IncomingMessage,
  response: ServerResponse,
  options: HandleOptions,
  client: ClientDeparture,
): Promise<Sent> {
  const { registry, guard, push } = options
  // An unread body would be taken for the next request.
  if (!push && hasBody(request)) response.setHeader('connection', 'close')
  guard.check({ rawHeaders: request.rawHeaders, localAddress: request.socket.localAddress })
  if (!push && request.method !== 'GET' && request.method !== 'HEAD') {
    throw readOnly('GET, HEAD')
  }
  const route = parseRoute(request.url!, options.addressing, request.method)
  if (push) {
    const user = await push.authorize?.(request)
    if (await answerPush(request, response, route, push, user)) return { bytes: 0 }
  }
  const caller = callerOf(request, options)
  switch (route.kind) {
    case 'base':
      return { bytes: sendWhole(request, response, 200, { 'content-type': 'application/json' }, Buffer.from('{}')) }
    case 'manifest': {
      const found = await registry.manifest(repositoryOf(route), route.reference, caller)
      return { bytes: sendManifest(request, response, found), provenance: found.provenance }
    }
    case 'blob': {
      const found = await registry.blob(repositoryOf(route), route.digest, caller)
      return {
        bytes: await sendBlobAnswer(request, response, found, options.sending, client),
        provenance: found.provenance,
      }
    }
    case 'tags':
      return { bytes: sendList(request, response, await registry.tags(repositoryOf(route), route.page, caller)) }
    case 'referrers':
      return {
        bytes: sendList(
          request,
          response,
          await registry.referrers(repositoryOf(route), route.digest, route.artifactType, caller, route.page),
        ),
      }
    case 'catalog':
      return { bytes: sendList(request, response, await registry.catalog(route.registry, route.page, caller)) }
    case 'uploads':
    case 'upload':
      throw readOnly('')
  }
}

/** `allow`: the methods that the resource has, none for an upload. RFC 9110 §15.5.6. */
function readOnly(allow: string): OciError {
  return new OciError('UNSUPPORTED', 405, 'The cache is read-only; push to the local registry instead.', { allow })
}

function hasBody({ headers }: IncomingMessage): boolean {
  return headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0
}

function repositoryOf({ registry, name, byNamespace }: Extract<Route, { name: string }>) {
  return { registry, name, byNamespace }
}

function callerOf(request: IncomingMessage, options: HandleOptions): Caller {
  const address = plainAddress(request.socket.remoteAddress ?? '')
  return {
    access: options.access,
    client: `${address} ${request.headers['user-agent'] ?? ''}`,
    noCache: /\bno-cache\b/i.test(request.headers['cache-control'] ?? ''),
    head: request.method === 'HEAD',
    part: request.headers.range !== undefined,
  }
}

/** What to tell the client of a bug or a broken disk; undefined when the client is gone. */
function failureOf(reason: unknown, client: ClientDeparture, logger: Logger): OciError | undefined {
  if (client.hasHappened) return undefined
  const code = errnoOf(reason)
  if (code === 'EMFILE' || code === 'ENFILE') {
    logger.warn({ code }, 'no file descriptors are left')
    return new OciError('UNAVAILABLE', 503, 'The mirror has as many files open as it may.', { 'retry-after': '1' })
  }
  logger.error({ error: reason instanceof Error ? reason.stack : String(reason) }, 'a request failed')
  return new OciError('UNKNOWN', 500, 'The mirror failed; its log says how.')
}
