import type { IncomingMessage, ServerResponse } from 'node:http'
import { describeFailure, MirrorError } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { BudgetError } from '../lib/memory.ts'
import { OciError } from '../oci/errors.ts'
import { translateDiskErrors } from '../registry/uploads.ts'
import { ClientAbort } from '../server/connection.ts'
import { toBusyError } from '../server/request-body.ts'
import { type HostGuard, refuseOtherSites } from '../server/request-guard.ts'
import { isOutOfDescriptors, sendError, sendWhole, toOutOfDescriptorsError } from '../server/respond.ts'
import { type AdminApi, computeHealthProof } from './api.ts'
import type { Changed, EventFeed } from './dashboard/events.ts'
import { createNothingError, defaultIdleMs, handleChange, readJson, requireToken, sendJson } from './changes.ts'
import { isPagePath, type Page, sendPage } from './dashboard/page.ts'
import { answerQuery } from './queries.ts'
import { type SessionAnswer, Sessions } from './dashboard/sessions.ts'

interface AdminOptions {
  /** May still be opening: requests wait for it, and `/healthz` says that the mirror is starting. */
  readonly api: AdminApi | Promise<AdminApi>
  /** Returns why the mirror cannot fetch by its own fault, one sentence each; empty when it can. */
  readonly listTroubles: () => Promise<readonly string[]>
  readonly guard: HostGuard
  readonly token: string
  /** Names the instance of a mirror in a container. */
  readonly instance?: string | undefined
  /** Holds the files of the dashboard; none when absent. */
  readonly page?: Page
  /** Sends events to the dashboard; absent where there are none. */
  readonly events?: EventFeed | undefined
  /** Limits the time without data until a request body is given up, ms. */
  readonly idle?: number
  readonly logger: Logger
}

/** Limits the body with a ticket, bytes. */
const maxTicketBytes = 4096

/** Holds the options with what the handler itself creates. */
type Context = Required<Omit<AdminOptions, 'instance' | 'events' | 'logger'>> &
  Pick<AdminOptions, 'instance' | 'events'> & { readonly sessions: Sessions; readonly isStarting: boolean }

/**
 * Serves an admin API over HTTP, with the shapes of api.ts and activity.ts as JSON.
 *
 * GET  /                   the dashboard, and its files below /assets/
 * GET  /healthz            {"status":"ok"}; 503 {"status":"starting"} until the stores are open; 503 {"status":"degraded","reasons":[…]}
 *                          while the mirror cannot fetch by its own fault; with `?challenge=` to a mirror in a container also `proof`,
 *                          see `computeHealthProof`
 * GET  /metrics            Prometheus text
 * GET  /api/status         StatusReport
 * GET  /api/requests?image=&limit=   RequestReport[]
 * GET  /api/downloads      DownloadReport[]
 * GET  /api/events         Server-Sent Events of LiveEvents
 * GET  /api/cache          ImageReport[]
 * GET  /api/trace?image=&platform=   TraceReport
 * POST /api/cache/rm       RemoveRequest → RemovalReport
 * POST /api/cache/check    CheckTagRequest → TagCheckReport
 * POST /api/cache/prune    PruneRequest → RemovalReport
 * POST /api/cache/verify   VerifyRequest → NDJSON of VerifyProgress, the last with `done`
 * GET  /api/registry       PushedImageReport[]
 * GET  /api/history?range= HistoryReport of hour, day, week or month
 * GET  /api/clients        ClientReport[]
 * GET  /api/clients/configured   { clients? }: ConfiguredClientReport[]
 * PUT  /api/clients/configured   { clients }: ConfiguredClient[] → {} (token)
 * POST /api/registry/rm    RemoveRequest → RemovalReport
 * POST /api/registry/gc    RegistryGcRequest → RemovalReport
 * POST /api/registry/prune RegistryPruneRequest → RemovalReport
 * GET  /api/doctor         FindingsReport
 * PUT  /api/doctor         DoctorReport → {} (token)
 * POST /api/doctor/run     DoctorReport
 * POST /api/offline        { offline } → OfflineReport
 * POST /api/session/ticket TicketReport (token)
 * POST /api/session        { ticket } → SessionReport, with the cookie
 * GET  /api/session        SessionReport
 * DELETE /api/session      SessionReport
 * POST /api/canary         ProbeImageOffer (token)
 * POST /api/canary/end     { id } → ProbeImageReport (token)
 * POST /api/stop           202, then the server drains and ends (token)
 *
 * GET from loopback needs nothing. Every other request needs `Authorization: Bearer <token>`, or a session of the dashboard: its
 * cookie, and for changes `X-Mirror-Session` too. `(token)`: a session is not enough.
 */
export function createAdminHandler(
  options: AdminOptions,
): (request: IncomingMessage, response: ServerResponse) => void {
  let isStarting = true
  Promise.resolve(options.api).then(
    () => (isStarting = false),
    () => {},
  )
  const sessions = new Sessions({ token: options.token })
  const { page = new Map(), idle = defaultIdleMs } = options
  return (request, response) => {
    const client = new ClientAbort(request, response)
    handleRequest(request, response, { ...options, page, idle, sessions, isStarting }).catch((failure: unknown) => {
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

async function handleRequest(request: IncomingMessage, response: ServerResponse, context: Context): Promise<void> {
  const { guard, page, sessions, idle } = context
  guard.check({ rawHeaders: request.rawHeaders, localAddress: request.socket.localAddress })
  refuseOtherSites(request)
  const path = request.url!.split('?', 1)[0]!
  if (path === '/api/session') return handleSession(request, response, context)
  if (request.method === 'GET' || request.method === 'HEAD') {
    if (isPagePath(page, path)) return sendPage(request, response, page, path)
    if (path === '/healthz') return sendHealth(request, response, context)
    const isPermitted = sessions.checkRead(request)
    if (path === '/api/events' && context.events) return context.events.open(request, response, isPermitted)
    return handleRead(path, request, response, await context.api)
  }
  const credential = sessions.checkChange(request)
  if (request.method === 'POST' && path === '/api/session/ticket') {
    requireToken(credential)
    return sendJson(request, response, sessions.createTicket())
  }
  const api = await context.api
  const announce = (what: Changed) => context.events?.announce(what)
  return translateDiskErrors(() => handleChange(path, request, response, { api, credential, idle, announce }))
}

/** Handles a GET or HEAD of the API. */
async function handleRead(
  path: string,
  request: IncomingMessage,
  response: ServerResponse,
  api: AdminApi,
): Promise<void> {
  switch (path) {
    case '/metrics': {
      const { contentType, text } = await api.getMetrics()
      const headers = { 'content-type': contentType, 'cache-control': 'no-store' }
      return void sendWhole(request, response, 200, headers, Buffer.from(text))
    }
    case '/api/status':
      return sendJson(request, response, await api.getStatus())
    case '/api/cache':
      return sendJson(request, response, await api.cache.list())
    case '/api/doctor':
      return sendJson(request, response, await api.doctor.get())
    case '/api/registry':
      return sendJson(request, response, await api.registry.list())
    default: {
      const answer = await answerQuery(api, request.url!)
      if (!answer) throw createNothingError()
      return sendJson(request, response, answer)
    }
  }
}

/** Begins, describes or ends the session of a page. The page has neither the token nor, at first, a session. */
async function handleSession(
  request: IncomingMessage,
  response: ServerResponse,
  { sessions, idle }: Pick<Context, 'sessions' | 'idle'>,
): Promise<void> {
  const send = ({ report, cookie }: SessionAnswer) =>
    sendJson(request, response, report, 200, cookie === undefined ? {} : { 'set-cookie': cookie })
  switch (request.method) {
    case 'GET':
      return send(sessions.describe(request))
    case 'POST':
      // Browsers send this type to another origin only after a preflight, which is never answered.
      if (!/^application\/json(?:;|$)/i.test(request.headers['content-type'] ?? ''))
        throw new OciError('UNSUPPORTED', 415, 'The body must be application/json.')
      return send(sessions.begin(request, (await readJson(request, idle, maxTicketBytes))['ticket']))
    case 'DELETE':
      return send(sessions.end(request))
    default:
      throw new OciError('UNSUPPORTED', 405, 'A session accepts GET, POST and DELETE.', { allow: 'GET, POST, DELETE' })
  }
}

/**
 * Answers 200, or 503 with reasons while the mirror cannot fetch by its own fault; includes the proof of the instance on request.
 */
async function sendHealth(
  request: IncomingMessage,
  response: ServerResponse,
  { isStarting, listTroubles, instance }: Context,
): Promise<void> {
  if (isStarting) return sendJson(request, response, { status: 'starting' }, 503)
  const reasons = await listTroubles()
  const challenge = new URLSearchParams(request.url!.split('?')[1]).get('challenge')
  const proof = instance !== undefined && challenge !== null ? { proof: computeHealthProof(instance, challenge) } : {}
  if (reasons.length === 0) sendJson(request, response, { status: 'ok', ...proof })
  else sendJson(request, response, { status: 'degraded', reasons, ...proof }, 503)
}
