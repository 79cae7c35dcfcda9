import { randomBytes } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import type { Duplex } from 'node:stream'
import { type DockerEngine, DockerError, ExecError } from '../docker/engine.ts'
import { getCode, getErrno, exitCode, isConnectionFailure, MirrorError } from '../lib/errors.ts'
import { readSmallFile } from '../lib/fs.ts'
import { isObject, parseObject } from '../lib/json.ts'
import { readOwnedFile } from '../lib/ownership.ts'
import type { ConfiguredClientReport } from '../stats/configured-clients.ts'
import {
  type AdminApi,
  computeHealthProof,
  type StatusReport,
  type TicketReport,
  unknownPath,
  type VerifyProgress,
} from './api.ts'

/**
 * Sends the operations of the admin API to a running mirror over HTTP. Throws a MirrorError when the mirror does not answer or
 * refuses.
 */
export interface AdminClient extends Omit<AdminApi, 'getMetrics'> {
  /** Fetches a ticket, which begins one session of the dashboard. */
  createTicket(): Promise<TicketReport>
}

interface AdminClientOptions {
  /** Looks like `http://127.0.0.1:5056`. */
  url: string
  tokenFile: string
  /** Holds the owner of the token file, when root reads another user's. */
  tokenOwner?: number | undefined
  /**
   * Limits the time without an answer until the request fails, ms. A long operation continues while the mirror answers `/healthz`.
   */
  timeoutMs: number
  /** Is undefined when the URL alone leads to the mirror. */
  tunnel?: AdminTunnel | undefined
}

/** Connects to a mirror whose admin listener is on another machine. */
export interface AdminTunnel {
  /** Holds the name in messages: `ssh://me@there`. */
  readonly name: string
  /** Throws a MirrorError when the connection fails. */
  connect(): Promise<Duplex>
}

export function createAdminClient({ url, tokenFile, tokenOwner, timeoutMs, tunnel }: AdminClientOptions): AdminClient {
  const location = tunnel ? `${url} of ${tunnel.name}` : url

  async function sendRequest(
    method: string,
    path: string,
    { body, signal, mayTakeLong = false }: { body?: object; signal?: AbortSignal; mayTakeLong?: boolean } = {},
  ): Promise<AsyncIterable<string>> {
    const token = await readToken(tokenFile, tokenOwner)
    // Loads node:http only when a command sends a request, because loading it takes a tenth of a command's time.
    const { request } = process.getBuiltinModule('node:http')
    const connection = await tunnel?.connect()
    const idleTimer = connection && setIdleTimeout(connection, timeoutMs)
    const clientRequest = request(new URL(path, toReachableUrl(url)), {
      method,
      ...(connection ? { createConnection: () => connection } : { agent: false }),
      timeout: timeoutMs,
      ...(signal && { signal }),
      headers: {
        ...(body && { 'content-type': 'application/json' }),
        ...(token !== undefined && { authorization: `Bearer ${token}` }),
      },
    })
    const onTimeout = async () => {
      if (!mayTakeLong || !(await isAlive()))
        return void clientRequest.destroy(createUnreachableError(`it was silent for ${timeoutMs / 1000} s`))
      // Listens to the connection as well, because a request reports one time-out only.
      clientRequest.socket?.once('timeout', () => void onTimeout())
      if (idleTimer) idleTimer.restart()
      else clientRequest.socket?.setTimeout(timeoutMs)
    }
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      clientRequest.once('timeout', () => void onTimeout())
      clientRequest.once('response', resolve)
      clientRequest.once('error', (error) =>
        reject(isConnectionLost(error) ? createUnreachableError(error.message, error) : error),
      )
      clientRequest.end(body && JSON.stringify(body))
    })
    // Passes a time-out while the body arrives on to the reader of the body.
    clientRequest.on('error', (error) => response.destroy(error))
    const status = response.statusCode ?? 0
    if (status >= 200 && status < 300) return readText(response)
    throw createRefusedError(status, await readAll(readText(response)))
  }

  async function isAlive(): Promise<boolean> {
    try {
      await readAll(await sendRequest('GET', '/healthz'))
      return true
    } catch (error) {
      // Counts a degraded mirror as alive, which answers 503.
      return error instanceof MirrorError && error.exit !== exitCode.missing
    }
  }

  async function* readText(response: IncomingMessage): AsyncGenerator<string> {
    try {
      for await (const text of response.setEncoding('utf8')) yield text as string
    } catch (error) {
      if (!(error instanceof Error) || getCode(error) !== 'ECONNRESET') throw error
      throw createUnreachableError('it broke off in the middle of its answer', error)
    }
  }

  function createUnreachableError(why: string, cause?: unknown): MirrorError {
    return new MirrorError(`The mirror does not answer on ${location}: ${why}.`, {
      exit: exitCode.missing,
      hints: ['mirror logs', 'mirror down && mirror up'],
      cause,
    })
  }

  function createRefusedError(status: number, answer: string): MirrorError {
    if (status === 401 || status === 403)
      return new MirrorError(`The mirror on ${location} refuses the token in ${tokenFile}.`, {
        hints: ['mirror down && mirror up   (makes a new token)'],
      })
    const reason = readReason(answer)
    // The user named something that does not exist, or cannot.
    if (status === 400) return new MirrorError(reason, { exit: exitCode.usage })
    if (status === 404 && reason === unknownPath)
      return new MirrorError(`The mirror on ${location} is of an older version, which cannot do this.`, {
        hints: ['mirror up   (restarts it with this version)'],
      })
    const hints = status === 503 ? ['Run the command again in a moment', 'mirror logs'] : ['mirror logs']
    return new MirrorError(`The mirror on ${location} answered ${status}: ${reason}`, { hints })
  }

  const getStatus = async (): Promise<StatusReport> => parseJson(await sendRequest('GET', '/api/status'))
  const getJson = async <T>(path: string, query: Record<string, string> = {}): Promise<T> =>
    parseJson(await sendRequest('GET', `${path}?${new URLSearchParams(query).toString()}`))
  const postJson = async <T>(path: string, body: object): Promise<T> =>
    parseJson(await sendRequest('POST', path, { body, mayTakeLong: true }))

  return {
    getStatus,
    cache: {
      list: async () => (await getStatus()).images,
      remove: (request) => postJson('/api/cache/rm', request),
      checkTag: (request) => postJson('/api/cache/check', request),
      prune: (request) => postJson('/api/cache/prune', request),
      async *verify(request, signal) {
        const answer = await sendRequest('POST', '/api/cache/verify', { body: request, signal, mayTakeLong: true })
        for await (const line of splitLines(answer)) yield JSON.parse(line) as VerifyProgress
      },
    },
    registry: {
      list: async () => parseJson(await sendRequest('GET', '/api/registry')),
      listDamaged: async () => (await getStatus()).registry.damaged ?? [],
      remove: (request) => postJson('/api/registry/rm', request),
      gc: (request) => postJson('/api/registry/gc', request),
      prune: (request) => postJson('/api/registry/prune', request),
    },
    getHistory: (range) => getJson('/api/history', { range }),
    clients: {
      list: () => getJson('/api/clients'),
      listConfigured: async () =>
        (await getJson<{ clients?: ConfiguredClientReport[] }>('/api/clients/configured')).clients,
      storeConfigured: async (clients) =>
        void (await readAll(await sendRequest('PUT', '/api/clients/configured', { body: { clients } }))),
    },
    listRequests: ({ image, limit }) =>
      getJson('/api/requests', { ...(image !== undefined && { image }), limit: String(limit) }),
    trace: ({ image, platform }) => getJson('/api/trace', { image, ...(platform !== undefined && { platform }) }),
    listDownloads: async () => parseJson(await sendRequest('GET', '/api/downloads')),
    doctor: {
      get: async () => parseJson(await sendRequest('GET', '/api/doctor')),
      store: async (report) => void (await readAll(await sendRequest('PUT', '/api/doctor', { body: report }))),
      run: () => postJson('/api/doctor/run', {}),
    },
    setOffline: (request) => postJson('/api/offline', request),
    offerProbeImage: async () => parseJson(await sendRequest('POST', '/api/canary')),
    endProbeImage: async (id) => parseJson(await sendRequest('POST', '/api/canary/end', { body: { id } })),
    createTicket: async () => parseJson(await sendRequest('POST', '/api/session/ticket')),
    stop: async () => void (await readAll(await sendRequest('POST', '/api/stop'))),
  }
}

/** Reads the message of an OCI error body; returns any other body as it is. */
function readReason(answer: string): string {
  const errors = parseObject(answer)?.['errors']
  const [first] = Array.isArray(errors) ? (errors as unknown[]) : []
  const message = isObject(first) ? first['message'] : undefined
  return typeof message === 'string' ? message : answer.trim().slice(0, 500)
}

/** Returns whether the error is a lost connection, or a failure of the tunnel. */
function isConnectionLost(error: Error): boolean {
  return isConnectionFailure(error) || error instanceof ExecError
}

async function parseJson<T>(answer: AsyncIterable<string>): Promise<T> {
  return JSON.parse(await readAll(answer)) as T
}

async function readAll(answer: AsyncIterable<string>): Promise<string> {
  let whole = ''
  for await (const text of answer) whole += text
  return whole
}

async function* splitLines(answer: AsyncIterable<string>): AsyncGenerator<string> {
  let rest = ''
  for await (const text of answer) {
    const lines = (rest + text).split('\n')
    rest = lines.pop()!
    yield* lines
  }
  if (rest !== '') yield rest
}

async function readToken(tokenFile: string, owner: number | undefined): Promise<string | undefined> {
  if (owner !== undefined) {
    return (await readOwnedFile(tokenFile, owner))?.trim() || undefined
  }
  try {
    return (await readSmallFile(tokenFile)).trim() || undefined
  } catch (error) {
    if (getErrno(error) === 'ENOENT' || getErrno(error) === 'EFBIG') return undefined
    throw error
  }
}

/** Replaces the wildcard address by the loopback one: the others may be behind a firewall, and reading there needs the token. */
export function toReachableUrl(url: string): string {
  return url.replace('//0.0.0.0:', '//127.0.0.1:').replace('//[::]:', '//[::1]:')
}

interface HealthRequest {
  /** Names the instance that must answer; any when absent. */
  readonly instance?: string
  /** Limits the time without an answer until the check fails, ms. */
  readonly timeoutMs?: number
  /** Opens the connection when the URL alone does not lead to the mirror. */
  readonly connect?: () => Promise<Duplex>
}

/** Exceeds the length of every health answer; characters. */
const maxHealthLength = 10_000

/** Returns whether a mirror's admin listener answers at the URL. A degraded mirror counts. */
export async function isHealthy(
  adminUrl: string,
  { instance, timeoutMs = 2000, connect }: HealthRequest = {},
): Promise<boolean> {
  const challenge = randomBytes(16).toString('hex')
  const url = new URL('/healthz', adminUrl)
  if (instance !== undefined) url.searchParams.set('challenge', challenge)
  const answer = await requestHealth(url, timeoutMs, await connect?.())
  if (answer === undefined || instance === undefined) return answer !== undefined
  return parseObject(answer)?.['proof'] === computeHealthProof(instance, challenge)
}

/** Returns the body of a 200, or of the 503 of a degraded mirror; undefined for anything else. */
function requestHealth(url: URL, timeout: number, connection: Duplex | undefined): Promise<string | undefined> {
  const connectionOptions = connection ? { createConnection: () => connection } : { agent: false as const }
  if (connection) setIdleTimeout(connection, timeout)
  return new Promise((resolve) => {
    const request = process.getBuiltinModule('node:http').get(url, { ...connectionOptions, timeout }, (response) => {
      let text = ''
      response.setEncoding('utf8').on('data', (part: string) => {
        text += part
        if (text.length > maxHealthLength) request.destroy()
      })
      response.once('end', () => {
        const isDegraded = response.statusCode === 503 && parseObject(text)?.['status'] === 'degraded'
        resolve(response.statusCode === 200 || isDegraded ? text : undefined)
      })
    })
    request.once('timeout', () => request.destroy())
    request.once('error', () => resolve(undefined))
    request.once('close', () => resolve(undefined))
  })
}

/** Emits 'timeout' on a connection that is not a socket once it is silent for `timeoutMs`. `restart` starts the timer again. */
function setIdleTimeout(connection: Duplex, timeoutMs: number): { restart(): void } {
  const timer = setTimeout(() => connection.emit('timeout'), timeoutMs).unref()
  connection.on('data', () => timer.refresh())
  connection.once('close', () => clearTimeout(timer))
  return { restart: () => void timer.refresh() }
}

/** Renders a program that connects its stdin and stdout with a port of the container, and ends when either side closes. */
const renderTunnelProgram = (port: number) =>
  `const s=require('node:net').connect(${port},'127.0.0.1');` +
  `s.on('error',(e)=>{console.error(e.message);process.exit(1)});` +
  `s.pipe(process.stdout);process.stdin.pipe(s);` +
  `s.on('close',()=>process.exit(0));process.stdin.on('end',()=>s.destroy())`

/**
 * Opens a connection to a port inside a container by a program that the engine starts there, because a remote engine publishes
 * ports on its own machine only. Throws a MirrorError (exit 4) when the container does not run or the engine does not answer.
 */
export async function openTunnel(
  { containers }: Pick<DockerEngine, 'containers'>,
  container: string,
  port: number,
): Promise<Duplex> {
  try {
    return await containers.exec(container, [nodeInImage, '-e', renderTunnelProgram(port)])
  } catch (error) {
    if (!(error instanceof DockerError)) throw error
    throw new MirrorError(`The mirror in the container cannot be reached: ${error.message}.`, {
      exit: exitCode.missing,
      hints: ['mirror logs', 'mirror up'],
      cause: error,
    })
  }
}

/** Holds the path of Node in the mirror's images. */
export const nodeInImage = '/usr/local/bin/node'
