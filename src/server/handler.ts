import type { IncomingMessage, ServerResponse } from 'node:http'
import { describeFailure, getErrno } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { BudgetError } from '../lib/memory.ts'
import { getManifestLinks, isIndexType, type ManifestLink } from '../oci/content.ts'
import { type Digest, parseDigest } from '../oci/reference.ts'
import { OciError } from '../oci/errors.ts'
import type { Caller, ListResponse, ManifestResponse, Provenance, PushRegistry, Registry } from '../oci/registry.ts'
import { type Addressing, parseRoute, type Route } from '../oci/route.ts'
import { translateDiskErrors } from '../registry/uploads.ts'
import type { SeenClients } from '../stats/clients.ts'
import type { RecentRequests } from '../stats/requests.ts'
import type { Stats } from '../stats/stats.ts'
import { getRepositoryName, isRead, recordAccess } from './access-log.ts'
import { sendBlobAnswer } from './blobs.ts'
import { ClientAbort, getPeer, hasBody } from './connection.ts'
import { answerPush, type PushOptions } from './push.ts'
import { getReceivedBytes, toBusyError } from './request-body.ts'
import { type HostGuard, refuseBrowsers } from './request-guard.ts'
import { isOutOfDescriptors, sendError, sendList, sendManifest, sendWhole, toOutOfDescriptorsError } from './respond.ts'
import type { BlobSender } from './send/send-blob.ts'
import type { Transferred, TransferLog } from './transfer-log.ts'

/** Holds the registry, which may still be opening: requests for its content wait for it. */
type HandledRegistry =
  | { readonly registry: Registry | Promise<Registry>; readonly push?: undefined }
  | { readonly registry: PushRegistry | Promise<PushRegistry>; readonly push: PushOptions }

type HandleOptions = HandledRegistry & {
  readonly addressing: Addressing
  /** Holds the access of this listener's clients. */
  readonly access: Caller['access']
  readonly guard: HostGuard
  /** Is undefined for a registry that is not a cache. */
  readonly stats: Stats | undefined
  readonly sending: BlobSender
  /** Names the upstream of requests that name none; undefined where repositories belong to no upstream. */
  readonly defaultRegistry: string | undefined
  readonly transfers: TransferLog
  readonly recent: RecentRequests
  readonly clients: SeenClients
  readonly logger: Logger
}

/** Describes the result of a request, for the statistics and the log. */
interface Sent {
  readonly bytes: number
  readonly provenance?: Provenance
  readonly manifest?: ManifestResponse
  /** Holds the digest of a manifest that was received. */
  readonly pushed?: Digest | undefined
}

/** Describes the state of a request that is being answered. */
interface RequestState {
  route: Route | undefined
  /** Reports the end of the request to the transfer log; undefined for a request that is not part of a transfer. */
  finishTransfer: ((transferred: Transferred) => void) | undefined
}

/** Converts requests to calls of a registry, and results and failures to responses. */
export function createHandler(options: HandleOptions): (request: IncomingMessage, response: ServerResponse) => void {
  const { stats, logger } = options
  const access = { ...options, listener: getListenerName(options) }
  return (request, response) => {
    const begun = performance.now()
    void serve(request, response, begun, new ClientAbort(request, response))
  }

  async function serve(
    request: IncomingMessage,
    response: ServerResponse,
    begun: number,
    client: ClientAbort,
  ): Promise<void> {
    const state: RequestState = { route: undefined, finishTransfer: undefined }
    const log = (status: number, { bytes, provenance }: Sent, error?: string) =>
      recordAccess(access, request, response, {
        route: state.route,
        status,
        bytes,
        provenance,
        error,
        milliseconds: performance.now() - begun,
      })
    let sent: Sent
    try {
      sent = await handle(request, response, options, client, state)
      const { bytes, provenance, manifest } = sent
      const head = request.method === 'HEAD'
      const isPull = !head && manifest !== undefined && !isIndexType(manifest.mediaType)
      if (provenance) stats?.recordResponse({ provenance, bytes, head, isPull })
    } catch (reason) {
      const error = reason instanceof OciError ? reason : toClientError(reason, client, logger)
      if (error && (error.status === 429 || error.status >= 500)) stats?.recordError()
      if (error) sendError(request, response, error)
      else response.destroy()
      log(error?.status ?? 499, { bytes: 0 }, error?.message)
      state.finishTransfer?.(describeFailedTransfer(request, state.route!))
      return
    }
    log(response.statusCode, sent)
    state.finishTransfer?.(await describeTransfer(request, response, state.route!, sent).catch(unknownTransfer))
  }

  /** Logs a failure to sum up a transfer, because the response is complete by then. */
  function unknownTransfer(error: unknown): Transferred {
    logger.error({ error: describeFailure(error) }, 'could not sum up a transfer')
    return { kind: 'other' }
  }
}

async function handle(
  request: IncomingMessage,
  response: ServerResponse,
  options: HandleOptions,
  client: ClientAbort,
  state: RequestState,
): Promise<Sent> {
  const { guard, push } = options
  // Closes the connection after a body, because the cache accepts none: a parser on the way may see another end of the body.
  if (!push && hasBody(request)) response.setHeader('connection', 'close')
  guard.check({ rawHeaders: request.rawHeaders, localAddress: request.socket.localAddress })
  refuseBrowsers(request)
  if (!push && request.method !== 'GET' && request.method !== 'HEAD') {
    throw readOnly('GET, HEAD')
  }
  const route = parseRoute(request.url!, options.addressing, request.method)
  state.route = route
  state.finishTransfer = beginTransfer(request, route, options)
  const user = push?.authorize && (await push.authorize(request, client))
  // Answer without a wait, because the parser ends the connection at a body that it does not understand.
  if (route.kind === 'base' && isRead(request))
    return { bytes: sendWhole(request, response, 200, { 'content-type': 'application/json' }, Buffer.from('{}')) }
  if (options.push) {
    const pushing = { ...options.push, registry: await waitFor(options.registry, client) }
    const pushed = await translateDiskErrors(() => answerPush(request, response, route, pushing, user))
    if (pushed) return { bytes: 0, pushed: pushed.manifest }
  }
  const registry = await waitFor(options.registry, client)
  const caller = createCaller(request, options, client)
  const sendAnswer = async (list: ListResponse): Promise<Sent> => ({
    bytes: await sendList(request, response, list, { idle: options.sending.idle, client }),
  })
  switch (route.kind) {
    case 'manifest': {
      const found = await registry.manifest(toRepository(route), route.reference, caller)
      const bytes = await sendManifest(request, response, found, options.sending, client)
      return { bytes, provenance: found.provenance, manifest: found }
    }
    case 'blob': {
      const found = await registry.blob(toRepository(route), route.digest, caller)
      return {
        bytes: await sendBlobAnswer(request, response, found, options.sending, client),
        provenance: found.provenance,
      }
    }
    case 'tags':
      return sendAnswer(await registry.tags(toRepository(route), route.page, caller))
    case 'referrers':
      return sendAnswer(
        await registry.referrers(toRepository(route), route.digest, route.artifactType, caller, route.page),
      )
    case 'catalog':
      return sendAnswer(await registry.catalog(route.registry, route.page, caller))
    case 'base':
    case 'uploads':
    case 'upload':
      throw readOnly('')
  }
}

/** Waits for a registry that may be opening. Throws when the client has left meanwhile, because its request must change nothing. */
async function waitFor<T extends Registry>(opening: T | Promise<T>, client: ClientAbort): Promise<T> {
  const registry = await opening
  if (client.isAborted) throw new Error('the client has left')
  return registry
}

/** Describes a failed request; a failed HEAD does not count, because it only tests for presence. */
function describeFailedTransfer({ method }: IncomingMessage, route: Route): Transferred {
  if (method !== 'GET') return { kind: 'other' }
  return { kind: 'failed', digest: route.kind === 'blob' ? route.digest : undefined }
}

function getListenerName({ addressing }: HandleOptions): 'cache' | 'registry' {
  return addressing === 'proxy' ? 'cache' : 'registry'
}

/** Begins a transfer for a request of a pull or push; undefined for any other request. */
function beginTransfer(
  request: IncomingMessage,
  route: Route,
  options: HandleOptions,
): ((transferred: Transferred) => void) | undefined {
  if (route.kind !== 'manifest' && route.kind !== 'blob' && route.kind !== 'upload' && route.kind !== 'uploads')
    return undefined
  const peer = getPeer(request)
  return options.transfers.begin({
    listener: getListenerName(options),
    client: peer.address,
    agent: peer.agent,
    repository: getRepositoryName(route, options.defaultRegistry)!,
  })
}

/** Describes the contribution of an answered request to its pull or push. */
async function describeTransfer(
  request: IncomingMessage,
  response: ServerResponse,
  route: Route,
  sent: Sent,
): Promise<Transferred> {
  const { bytes, provenance, manifest, pushed } = sent
  const { method } = request
  const received = hasBody(request) ? getReceivedBytes(request) : 0
  // Ignores probe images, because their pull is the mirror's check of a client.
  if (provenance?.isProbe) return { kind: 'other' }
  if (route.kind === 'manifest' && pushed) {
    const [first] = route.tags
    const tag = route.reference.kind === 'tag' ? route.reference.tag : first
    return { kind: 'pushed-manifest', tag, digest: pushed, bytes: received }
  }
  if (route.kind === 'uploads' || route.kind === 'upload') {
    const { digest, mount } = route.wanted
    const named = parseDigest(mount ?? digest ?? '')
    if (response.statusCode === 201 && named)
      return mount === undefined
        ? { kind: 'pushed-blob', digest: named, bytes: received }
        : { kind: 'existing-blob', digest: named }
    return received > 0 ? { kind: 'received', bytes: received } : { kind: 'other' }
  }
  if (manifest?.digest && route.kind === 'manifest' && provenance) {
    const tag = route.reference.kind === 'tag' ? route.reference.tag : undefined
    const { digest } = manifest
    if (method === 'HEAD') return tag === undefined ? { kind: 'other' } : { kind: 'head', tag, digest }
    const links = await readLinks(manifest, digest)
    return { kind: 'manifest', tag, digest, links, bytes, outcome: provenance.outcome }
  }
  if (route.kind === 'blob' && provenance) {
    const { digest } = route
    if (method === 'GET') return { kind: 'blob', digest, bytes, outcome: provenance.outcome }
    return { kind: 'existing-blob', digest }
  }
  return { kind: 'other' }
}

/**
 * Reads the links of a manifest, for the log. Returns an empty list where there is no memory or descriptor to read them, or the disk
 * fails: the response is complete, and the log counts the rest of the pull as single blobs.
 */
async function readLinks({ body, stored }: ManifestResponse, digest: Digest): Promise<readonly ManifestLink[]> {
  try {
    return (await (body ? getManifestLinks(digest, body) : stored?.links())) ?? []
  } catch (error) {
    if (error instanceof BudgetError || getErrno(error) !== undefined) return []
    throw error
  }
}

/** Creates the 405 of the cache. `allow`: the methods of the resource, empty for an upload. RFC 9110 §15.5.6. */
function readOnly(allow: string): OciError {
  return new OciError('UNSUPPORTED', 405, 'The cache is read-only; push to the local registry instead.', { allow })
}

function toRepository({ registry, name, byNamespace }: Extract<Route, { name: string }>) {
  return { registry, name, byNamespace }
}

function createCaller(request: IncomingMessage, options: HandleOptions, client: ClientAbort): Caller {
  return {
    access: options.access,
    client: getPeer(request).id,
    noCache: /\bno-cache\b/i.test(request.headers['cache-control'] ?? ''),
    head: request.method === 'HEAD',
    part: request.headers.range !== undefined,
    clientAbort: client,
  }
}

/** Converts and logs any other failure, such as a bug or a broken disk; undefined after the client has left. */
function toClientError(reason: unknown, client: ClientAbort, logger: Logger): OciError | undefined {
  if (client.isAborted) return undefined
  if (reason instanceof BudgetError) {
    logger.warn({ reason: reason.message }, 'a request was refused for lack of memory')
    return toBusyError(reason)
  }
  if (isOutOfDescriptors(reason)) {
    logger.warn({ error: String(reason) }, 'no file descriptors are left')
    return toOutOfDescriptorsError()
  }
  logger.error({ error: reason instanceof Error ? reason.stack : String(reason) }, 'a request failed')
  return new OciError('UNKNOWN', 500, 'The mirror failed; see its log.')
}
