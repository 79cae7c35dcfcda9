import type { IncomingMessage, ServerResponse } from 'node:http'
import { readJsonObject } from '../lib/json.ts'
import { OciError } from '../oci/errors.ts'
import { readSmallBody } from '../server/request-body.ts'
import { sendWhole } from '../server/respond.ts'
import { type AdminApi, unknownPath, type VerifyProgress } from './api.ts'
import { parseConfiguredClients } from './clients.ts'
import type { Changed } from './dashboard/events.ts'
import { parseDoctorReport } from './dashboard/findings.ts'
import type { Credential } from './dashboard/sessions.ts'

type Body = Record<string, unknown>

interface Change {
  /** Is true when a session of the dashboard is enough; otherwise only the token is. */
  readonly isForPages?: boolean
  /** Names what the change affects, for the pages that show it. */
  readonly affects?: Changed
  /** Sets the maximum size of the body, bytes. */
  readonly limit?: number
  run(api: AdminApi, body: Body): Promise<unknown>
}

/** Sets the maximum size of a body, bytes. */
const maxBodyBytes = 1024 * 1024
const maxFindingsBytes = 256 * 1024
export const defaultIdleMs = 30_000

/** Lists the changes by method and path that read a JSON object and answer with JSON. */
const changes: Readonly<Record<string, Change>> = {
  'POST /api/cache/rm': {
    isForPages: true,
    affects: 'images',
    run: ({ cache }, body) => cache.remove({ names: parseNames(body), dryRun: body['dryRun'] === true }),
  },
  'POST /api/cache/check': {
    isForPages: true,
    affects: 'images',
    run: ({ cache }, { image }) => {
      if (typeof image === 'string') return cache.checkTag({ image })
      throw new OciError('UNKNOWN', 400, 'The body needs "image", the name of a cached image.')
    },
  },
  'POST /api/cache/prune': {
    isForPages: true,
    affects: 'images',
    run: ({ cache }, body) => cache.prune({ dryRun: body['dryRun'] === true }),
  },
  'POST /api/registry/rm': {
    isForPages: true,
    affects: 'registry',
    run: ({ registry }, body) => registry.remove({ names: parseNames(body), dryRun: body['dryRun'] === true }),
  },
  'POST /api/registry/gc': {
    isForPages: true,
    affects: 'registry',
    run: ({ registry }, body) =>
      registry.gc({
        untagged: body['untagged'] === true,
        grace: parseAmount(body, 'grace'),
        dryRun: body['dryRun'] === true,
      }),
  },
  'POST /api/registry/prune': {
    isForPages: true,
    affects: 'registry',
    run: ({ registry }, body) => {
      const { repository } = body
      return registry.prune({
        olderThan: parseAmount(body, 'olderThan'),
        keep: parseAmount(body, 'keep'),
        ...(typeof repository === 'string' ? { repository } : {}),
        dryRun: body['dryRun'] === true,
      })
    },
  },
  'POST /api/offline': {
    isForPages: true,
    affects: 'offline',
    run: (api, { offline }) => {
      if (typeof offline === 'boolean') return api.setOffline({ offline })
      throw new OciError('UNKNOWN', 400, 'The body needs "offline", true or false.')
    },
  },
  'PUT /api/doctor': {
    affects: 'doctor',
    limit: maxFindingsBytes,
    run: (api, body) => api.doctor.store(parseDoctorReport(body)),
  },
  'PUT /api/clients/configured': {
    affects: 'clients',
    run: (api, { clients }) => api.clients.storeConfigured(parseConfiguredClients(clients)),
  },
  'POST /api/doctor/run': { isForPages: true, affects: 'doctor', run: (api) => api.doctor.run() },
  'POST /api/canary': { run: (api) => api.offerProbeImage() },
  'POST /api/canary/end': { run: (api, body) => api.endProbeImage(String(body['id'])) },
}

interface ChangeContext {
  readonly api: AdminApi
  /** Names what the request has proven. */
  readonly credential: Credential
  /** Limits the time without data until a body is given up, ms. */
  readonly idle: number
  /** Is called with what a change has affected. */
  readonly announce: (what: Changed) => void
}

/** Handles a request that changes something. Throws an OciError: 403 for a page that needs the token, 404 for an unknown path. */
export async function handleChange(
  path: string,
  request: IncomingMessage,
  response: ServerResponse,
  { api, credential, idle, announce }: ChangeContext,
): Promise<void> {
  if (request.method === 'POST' && path === '/api/cache/verify') {
    const { quarantine } = await readJson(request, idle)
    await sendProgress(response, (signal) => api.cache.verify({ quarantine: quarantine !== false }, signal))
    return announce('images')
  }
  if (request.method === 'POST' && path === '/api/stop') {
    requireToken(credential)
    sendJson(request, response, { stopping: true }, 202)
    return api.stop()
  }
  const name = `${request.method} ${path}`
  const change = Object.hasOwn(changes, name) ? changes[name] : undefined
  if (!change) throw createNothingError()
  if (!change.isForPages) requireToken(credential)
  const body = await readJson(request, idle, change.limit)
  const result = await change.run(api, body)
  if (change.affects && body['dryRun'] !== true) announce(change.affects)
  sendJson(request, response, result ?? {})
}

/** Throws an OciError 403 for a session. */
export function requireToken(credential: Credential): void {
  if (credential !== 'token') throw new OciError('DENIED', 403, 'Only a command with the token may do this.')
}

export function createNothingError(): OciError {
  return new OciError('UNKNOWN', 404, unknownPath)
}

/** Reads the JSON object in a body; an empty one for no body. Throws an OciError 400. */
export async function readJson(request: IncomingMessage, idle: number, limit = maxBodyBytes): Promise<Body> {
  const bytes = await readSmallBody(request, limit, idle)
  const value = bytes.length === 0 ? {} : await readJsonObject(bytes)
  if (value) return value
  throw new OciError('UNKNOWN', 400, 'The body is not a JSON object.')
}

/** Sends a value as JSON, which no browser keeps. */
export function sendJson(
  request: IncomingMessage,
  response: ServerResponse,
  value: unknown,
  status = 200,
  headers: Readonly<Record<string, string>> = {},
): void {
  const all = { 'content-type': 'application/json', 'cache-control': 'no-store', ...headers }
  sendWhole(request, response, status, all, Buffer.from(JSON.stringify(value)))
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

/** Reads the image names of a body. Throws an OciError 400. */
function parseNames({ names }: Body): string[] {
  if (Array.isArray(names) && names.every((name): name is string => typeof name === 'string')) return names
  throw new OciError('UNKNOWN', 400, 'The body needs "names", a list of image names.')
}

function parseAmount(body: Body, field: string): number {
  const value = body[field]
  if (typeof value === 'number' && Number.isFinite(value) && value >= 0) return value
  throw new OciError('UNKNOWN', 400, `The body needs "${field}", a number.`)
}
