import { timingSafeEqual } from 'node:crypto'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { describeFailure, MirrorError } from '../lib/errors.ts'
import { readJsonObject } from '../lib/json.ts'
import type { Logger } from '../lib/logger.ts'
import { BudgetError } from '../lib/memory.ts'
import { isLoopbackAddress } from '../lib/network.ts'
import { OciError } from '../oci/errors.ts'
import { translateDiskErrors } from '../registry/uploads.ts'
import { ClientAbort } from '../server/connection.ts'
import { readSmallBody, toBusyError } from '../server/request-body.ts'
import { type HostGuard, refuseOtherSites } from '../server/request-guard.ts'
import { isOutOfDescriptors, sendError, sendWhole, toOutOfDescriptorsError } from '../server/respond.ts'
import { type AdminApi, computeHealthProof, type RegistryApi, type RemovalReport, type VerifyProgress } from './api.ts'
import { answerQuery } from './queries.ts'

interface AdminOptions {
  /** May still be opening: requests wait for it, and `/healthz` says that the mirror is starting. */
  readonly api: AdminApi | Promise<AdminApi>
  /** Returns why the mirror cannot fetch by its own fault, one sentence each; empty when it can. */
  readonly listTroubles: () => Promise<readonly string[]>
  readonly guard: HostGuard
  readonly token: string
  /** Names the instance of a mirror in a container. */
  readonly instance?: string | undefined
  /** Limits the time without data until a request body is given up, ms. */
  readonly idle?: number
  readonly logger: Logger
}

const maxBodyBytes = 1024 * 1024
const defaultIdleMs = 30_000

/**
 * Serves an admin API over HTTP, with the shapes of api.ts as JSON.
 *
 * GET  /healthz            {"status":"ok"}; 503 {"status":"starting"} until the stores are open; 503 {"status":"degraded","reasons":[…]}
 *                          while the mirror cannot fetch by its own fault; with `?challenge=` to a mirror in a container also `proof`,
 *                          see `computeHealthProof`
 * GET  /metrics            Prometheus text
 * GET  /api/status         StatusReport
 * GET  /api/downloads      DownloadReport[]
 * POST /api/cache/rm       RemoveRequest → RemovalReport
 * POST /api/cache/prune    PruneRequest → RemovalReport
 * POST /api/cache/verify   VerifyRequest → NDJSON of VerifyProgress, the last with `done`
 * GET  /api/registry       PushedImageReport[]
 * GET  /api/requests?image=&limit=   RequestReport[]
 * POST /api/registry/rm    RemoveRequest → RemovalReport
 * POST /api/registry/gc    RegistryGcRequest → RemovalReport
 * POST /api/registry/prune RegistryPruneRequest → RemovalReport
 * POST /api/canary         ProbeImageOffer
 * POST /api/canary/end     { id } → ProbeImageReport
 * POST /api/stop           202, then the server drains and ends
 *
 * GET from loopback needs no token; every other request needs `Authorization: Bearer <token>`.
 */
export function createAdminHandler(
  options: AdminOptions,
): (request: IncomingMessage, response: ServerResponse) => void {
  let isStarting = true
  Promise.resolve(options.api).then(
    () => (isStarting = false),
    () => {},
  )
  return (request, response) => {
    const client = new ClientAbort(request, response)
    handleRequest(request, response, { ...options, isStarting }).catch((failure: unknown) => {
      // Logs no failure when the client has left.
      if (client.isAborted) return response.destroy()
      if (isOutOfDescriptors(failure)) return sendError(request, response, toOutOfDescriptorsError())
      const reason = failure instanceof BudgetError ? toBusyError(failure) : failure
      if (!(reason instanceof OciError))
        options.logger.error({ error: describeFailure(reason) }, 'an admin request failed')
      const message = reason instanceof MirrorError ? reason.message : 'The mirror failed; see its log.'
      sendError(request, response, reason instanceof OciError ? reason : new OciError('UNKNOWN', 500, message))
    })
  }
}

async function handleRequest(
  request: IncomingMessage,
  response: ServerResponse,
  {
    api: opening,
    isStarting,
    listTroubles,
    guard,
    token,
    instance,
    idle,
  }: AdminOptions & { readonly isStarting: boolean },
): Promise<void> {
  guard.check({ rawHeaders: request.rawHeaders, localAddress: request.socket.localAddress })
  refuseOtherSites(request)
  const path = request.url!.split('?', 1)[0]!
  const isRead = request.method === 'GET' || request.method === 'HEAD'
  if (isRead && path === '/healthz') {
    if (isStarting) return sendJson(request, response, { status: 'starting' }, 503)
    return sendHealth(request, response, await listTroubles(), instance)
  }
  if (!isRead || !isLoopbackAddress(request.socket.remoteAddress ?? '')) checkToken(request, token)

  const api = await opening
  if (isRead && path === '/api/status') return sendJson(request, response, await api.getStatus())
  if (isRead && path === '/metrics') {
    const { contentType, text } = await api.getMetrics()
    sendWhole(request, response, 200, { 'content-type': contentType }, Buffer.from(text))
    return
  }
  if (isRead && path === '/api/registry') return sendJson(request, response, await api.registry.list())
  const answer = isRead ? await answerQuery(api, request.url!) : undefined
  if (answer) return sendJson(request, response, answer)
  if (request.method !== 'POST') throw new OciError('UNKNOWN', 404, 'The admin listener has nothing at this path.')
  // Refuses pages in a browser, which may send a POST to any address; their Origin header identifies them.
  if (request.headers.origin !== undefined) throw new OciError('DENIED', 403, 'Browsers may not change anything here.')
  return translateDiskErrors(() => handleChange(path, request, response, { api, idle }))
}

/** Handles a POST. */
async function handleChange(
  path: string,
  request: IncomingMessage,
  response: ServerResponse,
  { api, idle = defaultIdleMs }: { readonly api: AdminApi; readonly idle: number | undefined },
): Promise<void> {
  switch (path) {
    case '/api/cache/rm': {
      const body = await readJson(request, idle)
      return sendJson(
        request,
        response,
        await api.cache.remove({ names: parseNames(body), dryRun: body['dryRun'] === true }),
      )
    }
    case '/api/cache/prune': {
      const { dryRun } = await readJson(request, idle)
      return sendJson(request, response, await api.cache.prune({ dryRun: dryRun === true }))
    }
    case '/api/cache/verify': {
      const { quarantine } = await readJson(request, idle)
      return sendProgress(response, (signal) => api.cache.verify({ quarantine: quarantine !== false }, signal))
    }
    case '/api/registry/rm':
    case '/api/registry/gc':
    case '/api/registry/prune':
      return sendJson(request, response, await changeRegistry(path, await readJson(request, idle), api.registry))
    case '/api/canary':
      return sendJson(request, response, await api.offerProbeImage())
    case '/api/canary/end': {
      const { id } = await readJson(request, idle)
      return sendJson(request, response, await api.endProbeImage(String(id)))
    }
    case '/api/stop':
      sendJson(request, response, { stopping: true }, 202)
      return api.stop()
    default:
      throw new OciError('UNKNOWN', 404, 'The admin listener has nothing at this path.')
  }
}

/**
 * Answers 200, or 503 with reasons while the mirror cannot fetch by its own fault; includes the proof of the instance on request.
 */
function sendHealth(
  request: IncomingMessage,
  response: ServerResponse,
  reasons: readonly string[],
  instance: string | undefined,
): void {
  const challenge = new URLSearchParams(request.url!.split('?')[1]).get('challenge')
  const proof = instance !== undefined && challenge !== null ? { proof: computeHealthProof(instance, challenge) } : {}
  if (reasons.length === 0) sendJson(request, response, { status: 'ok', ...proof })
  else sendJson(request, response, { status: 'degraded', reasons, ...proof }, 503)
}

function checkToken(request: IncomingMessage, token: string): void {
  const given = Buffer.from(/^Bearer (\S+)$/.exec(request.headers.authorization ?? '')?.[1] ?? '')
  const expected = Buffer.from(token)
  if (given.length === expected.length && timingSafeEqual(given, expected)) return
  throw new OciError('UNAUTHORIZED', 401, 'This request needs the token in the state folder.')
}

async function readJson(request: IncomingMessage, idle: number): Promise<Record<string, unknown>> {
  const bytes = await readSmallBody(request, maxBodyBytes, idle)
  const value = bytes.length === 0 ? {} : await readJsonObject(bytes)
  if (value) return value
  throw new OciError('UNKNOWN', 400, 'The body is not a JSON object.')
}

function sendJson(request: IncomingMessage, response: ServerResponse, value: unknown, status = 200): void {
  sendWhole(request, response, status, { 'content-type': 'application/json' }, Buffer.from(JSON.stringify(value)))
}

/** Sends one JSON line per step. Stops the work when the client leaves. */
async function sendProgress(
  response: ServerResponse,
  steps: (signal: AbortSignal) => AsyncIterable<VerifyProgress>,
): Promise<void> {
  const abortion = new AbortController()
  response.once('close', () => abortion.abort())
  const progress = steps(abortion.signal)[Symbol.asyncIterator]()
  // Awaits the first step before the header, so that an early failure has a status of its own.
  const first = await progress.next()
  response.writeHead(200, { 'content-type': 'application/x-ndjson' })
  for (let step = first; !step.done; step = await progress.next()) {
    if (abortion.signal.aborted) return void (await progress.return?.())
    response.write(`${JSON.stringify(step.value)}\n`)
  }
  response.end()
}

/** Handles a POST below `/api/registry/`. */
function changeRegistry(
  path: '/api/registry/rm' | '/api/registry/gc' | '/api/registry/prune',
  body: Record<string, unknown>,
  registry: RegistryApi,
): Promise<RemovalReport> {
  const dryRun = body['dryRun'] === true
  switch (path) {
    case '/api/registry/rm':
      return registry.remove({ names: parseNames(body), dryRun })
    case '/api/registry/gc':
      return registry.gc({ untagged: body['untagged'] === true, grace: parseAmount(body, 'grace'), dryRun })
    case '/api/registry/prune': {
      const { repository } = body
      const repositoryOnly = typeof repository === 'string' ? { repository } : {}
      return registry.prune({
        olderThan: parseAmount(body, 'olderThan'),
        keep: parseAmount(body, 'keep'),
        ...repositoryOnly,
        dryRun,
      })
    }
  }
}

/** Reads the image names of a body. Throws an OciError 400. */
function parseNames({ names }: Record<string, unknown>): string[] {
  if (Array.isArray(names) && names.every((name): name is string => typeof name === 'string')) return names
  throw new OciError('UNKNOWN', 400, 'The body needs "names", a list of image names.')
}

function parseAmount(body: Record<string, unknown>, field: string): number {
  const value = body[field]
  if (typeof value === 'number' && Number.isFinite(value) && value >= 0) return value
  throw new OciError('UNKNOWN', 400, `The body needs "${field}", a number.`)
}
