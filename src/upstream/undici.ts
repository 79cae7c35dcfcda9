import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { Socket } from 'node:net'
import { LRUCache } from 'lru-cache'
import type { Dispatcher } from 'undici'
import { createDeferred, type Deferred } from '../lib/async.ts'
import { createSocksConnector, type Proxies, type Proxy } from './proxy.ts'
import type { AddressGuard } from './trust.ts'

/** Limits the bytes that wait for the reader; beyond this the upstream is paused. */
const maxBufferedBytes = 256 * 1024
/** https://github.com/nodejs/undici/blob/v7.30.2/docs/docs/api/DiagnosticsChannel.md#undiciclientconnected */
const connectedChannel = 'undici:client:connected'
const keepAliveMs = 15_000
/** Origins whose route is remembered: the upstream's, its token realms' and its redirects'. */
const maxRoutes = 100

/** Separate connections for blobs, so that a metadata request never waits behind layers. */
export type ConnectionPool = 'metadata' | 'blobs'

/** Describes the way to an origin. The proxy variables are read once, so it never changes. */
interface OriginRoute {
  readonly agent: Dispatcher
  /** Names the proxy; undefined for a direct connection. */
  readonly via: string | undefined
  /** Is true if each request checks the origin's address, because the guard may refuse it later. */
  readonly needsCheck: boolean
}

export interface AgentsOptions {
  /** Milliseconds. */
  readonly timeouts: { readonly connect: number }
  readonly guard: AddressGuard
  readonly proxies: Proxies
  /** Lists PEM certificates to trust instead of the default ones. */
  readonly certificates: string[] | undefined
  /** Is true if connections are reused; idle ones occupy file descriptors. Default: true. */
  readonly keepAlive?: boolean | undefined
}

/** Exceeds what a pull uses with its prefetches, so that no request of a client waits behind a prefetch. */
export const connectionsPerOrigin = 48

/** Loads the HTTP client; a server loads it before it reports that it is ready. */
export const loadUndici = async () => (await import('undici')).default

/** Creates the reusable connections of one upstream: direct ones, and those through proxies. Each opens on first use. */
export function createAgents({ timeouts, guard, proxies, certificates, keepAlive = true }: AgentsOptions) {
  const agents = new Map<string, Promise<Dispatcher>>()
  const routes = new LRUCache<string, OriginRoute>({ max: maxRoutes })

  async function createAgent(proxy: Proxy | undefined): Promise<Dispatcher> {
    const { Agent, ProxyAgent, buildConnector } = await loadUndici()
    resumePausedAtEnd()
    const connect = { timeout: timeouts.connect, ...(certificates && { ca: certificates }) }
    const pool = { connections: connectionsPerOrigin, keepAliveTimeout: keepAliveMs, pipelining: keepAlive ? 1 : 0 }
    if (!proxy) return new Agent({ ...pool, connect: { ...connect, lookup: guard.lookup } })
    // The guard cannot check names that the proxy resolves, only literal addresses.
    if (proxy.protocol === 'socks4' || proxy.protocol === 'socks5') {
      const secure = buildConnector(connect)
      return new Agent({ ...pool, connect: createSocksConnector(proxy, { timeout: timeouts.connect, guard, secure }) })
    }
    const { username, password } = proxy.credential ?? {}
    const pair = Buffer.from(`${username}:${password}`).toString('base64')
    return new ProxyAgent({
      ...pool,
      uri: proxy.name,
      ...(proxy.credential && { token: `Basic ${pair}` }),
      // Sends http requests without CONNECT, because many proxies allow CONNECT to port 443 only.
      proxyTunnel: false,
      requestTls: connect,
      proxyTls: connect,
    })
  }

  async function findAgent(pool: ConnectionPool, proxy: Proxy | undefined): Promise<Dispatcher> {
    const key = `${pool} ${proxy?.name ?? ''}`
    const agent = agents.get(key) ?? createAgent(proxy)
    agents.set(key, agent)
    try {
      return await agent
    } catch (error) {
      // The next request tries again.
      agents.delete(key)
      throw error
    }
  }

  async function openRoute(key: string, pool: ConnectionPool, url: URL): Promise<OriginRoute> {
    const proxy = proxies.find(url)
    const agent = await findAgent(pool, proxy)
    const route = { agent, via: proxy?.name, needsCheck: !guard.isAlwaysAllowed(url) }
    routes.set(key, route)
    return route
  }

  return {
    /** Returns the route for a request. Throws an UpstreamError when the URL's literal address is refused. */
    async find(pool: ConnectionPool, url: URL): Promise<OriginRoute> {
      const key = `${pool} ${url.origin}`
      const route = routes.get(key) ?? (await openRoute(key, pool, url))
      if (route.needsCheck) guard.checkLiteral(url)
      return route
    },
    /** Ends every connection. */
    async close(): Promise<void> {
      await Promise.all([...agents.values()].map(async (agent) => (await agent).destroy()))
    },
  }
}

export interface AgentResponse {
  readonly status: number
  /** Holds the headers by lower-case name. */
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly body: ResponseBody
}

interface DispatchOptions {
  readonly signal: AbortSignal
  /** Converts the reason for a body that broke off to the error that its reader receives. */
  readonly explain: (error: unknown) => Error
  /** Is called with the length of each chunk of the body. */
  readonly onBytes?: (bytes: number) => void
  /** Is called once, when the request is over. */
  readonly onClose: () => void
}

/** Sends one request. Rejects with the network's error or the signal's reason. */
export function dispatch(
  dispatcher: Dispatcher,
  request: Dispatcher.DispatchOptions,
  { signal, explain, onBytes, onClose }: DispatchOptions,
): Promise<AgentResponse> {
  const answered = createDeferred<AgentResponse>()
  let control: Dispatcher.DispatchController | undefined
  let body: ResponseBody | undefined
  let failed = false
  const onAbort = () => {
    control?.abort(signal.reason)
    // Rejects at once, because undici does not end a request that still waits for a connection.
    fail(signal.reason)
  }
  const close = () => {
    signal.removeEventListener('abort', onAbort)
    onClose()
  }
  const fail = (error: unknown) => {
    if (body) return body.fail(error)
    // Ignores repeated reports: the signal, undici's answer to it and the request's turn all report one abort.
    if (failed) return
    failed = true
    close()
    answered.reject(error)
  }

  signal.addEventListener('abort', onAbort, { once: true })
  dispatcher.dispatch(request, {
    onRequestStart(controller) {
      control = controller
      if (signal.aborted) controller.abort(signal.reason)
    },
    onResponseStart(controller, status, headers) {
      if (status < 200) return
      body = new ResponseBody({ control: controller, explain, onClose: close })
      answered.resolve({ status, headers, body })
    },
    onResponseData(_, chunk) {
      onBytes?.(chunk.length)
      body?.push(chunk)
    },
    onResponseEnd: () => body?.end(),
    onResponseError: (_, error) => fail(error),
  })
  return answered.promise
}

/** Controls a response that is under way. */
interface ResponseControl {
  pause(): void
  resume(): void
  /** Ends its connection. */
  abort(reason: Error): void
}

interface ResponseBodyOptions {
  readonly control: ResponseControl
  /** Converts the reason for a body that broke off to the error that its reader receives. */
  readonly explain: (error: unknown) => Error
  /** Is called once, when the body is over. */
  readonly onClose: () => void
}

/**
 * Reads a body as it arrives from the network, to be read once. It is no stream, because a stream would cost more than everything
 * else.
 */
export class ResponseBody implements AsyncIterableIterator<Uint8Array> {
  readonly #options: ResponseBodyOptions
  readonly #chunks: Uint8Array[] = []
  #bytes = 0
  #paused = false
  #closed = false
  #failure: { readonly error: unknown } | undefined
  #reader: Deferred<IteratorResult<Uint8Array>> | undefined
  /** Bytes that may still be read and dropped; undefined while the body has a reader. */
  #bytesToDump: number | undefined
  #dumpTimer: NodeJS.Timeout | undefined

  constructor(options: ResponseBodyOptions) {
    this.#options = options
  }

  [Symbol.asyncIterator](): this {
    return this
  }

  next(): Promise<IteratorResult<Uint8Array>> {
    const chunk = this.#chunks.shift()
    if (chunk) {
      this.#bytes -= chunk.length
      if (this.#bytes < maxBufferedBytes) this.#resume()
      return Promise.resolve({ done: false, value: chunk })
    }
    if (this.#failure) return Promise.reject(this.#options.explain(this.#failure.error))
    if (this.#closed) return Promise.resolve({ done: true, value: undefined })
    this.#reader = createDeferred()
    return this.#reader.promise
  }

  /** Ends the connection, and rejects a pending read. */
  return(): Promise<IteratorResult<Uint8Array>> {
    this.destroy()
    return Promise.resolve({ done: true, value: undefined })
  }

  push(chunk: Uint8Array): void {
    if (this.#bytesToDump !== undefined) {
      this.#bytesToDump -= chunk.length
      if (this.#bytesToDump < 0) this.destroy()
      return
    }
    if (this.#reader) return this.#settleReader((reader) => reader.resolve({ done: false, value: chunk }))
    this.#chunks.push(chunk)
    this.#bytes += chunk.length
    if (this.#bytes < maxBufferedBytes) return
    this.#paused = true
    this.#options.control.pause()
  }

  end(): void {
    this.#close()
    this.#settleReader((reader) => reader.resolve({ done: true, value: undefined }))
  }

  fail(error: unknown): void {
    if (this.#closed) return
    this.#failure = { error }
    this.#close()
    this.#settleReader((reader) => reader.reject(this.#options.explain(error)))
  }

  /** Ends the connection unless the body is complete. */
  destroy(): void {
    this.#chunks.length = 0
    if (this.#closed) return
    const discarded = new Error('the body was discarded')
    this.#close()
    this.#settleReader((reader) => reader.reject(this.#options.explain(discarded)))
    this.#options.control.abort(discarded)
  }

  /** Reads and drops the rest to keep the connection: at most `limit` bytes, for at most `milliseconds`. */
  dump(limit: number, milliseconds: number): void {
    if (this.#closed) return
    this.#bytesToDump = limit - this.#bytes
    this.#chunks.length = 0
    this.#dumpTimer = setTimeout(() => this.destroy(), milliseconds).unref()
    this.#resume()
  }

  #resume(): void {
    if (!this.#paused) return
    this.#paused = false
    this.#options.control.resume()
  }

  #settleReader(give: (reader: Deferred<IteratorResult<Uint8Array>>) => void): void {
    const reader = this.#reader
    this.#reader = undefined
    if (reader) give(reader)
  }

  #close(): void {
    if (this.#closed) return
    this.#closed = true
    clearTimeout(this.#dumpTimer)
    this.#options.onClose()
  }
}

/**
 * Resumes every paused connection of undici that ends or breaks. undici 7 asserts in a listener that the parser is not paused then,
 * which would end the process. Repeated calls have no effect. https://github.com/nodejs/undici/issues/5360, fixed in undici 8, which
 * does not run on Node 20.
 */
function resumePausedAtEnd(): void {
  unsubscribe(connectedChannel, watchSocket)
  subscribe(connectedChannel, watchSocket)
}

function watchSocket(message: unknown): void {
  const { socket } = message as { socket: Socket }
  for (const event of ['end', 'error', 'close']) socket.prependListener(event, resumeParser)
}

function resumeParser(this: Socket): void {
  const key = Object.getOwnPropertySymbols(this).find(({ description }) => description === 'parser')
  const parser = key && (this as unknown as Record<symbol, { paused?: boolean; resume(): void } | null>)[key]
  if (!parser?.paused) return
  // Delivers the chunk that was held back; nothing after the connection broke.
  parser.resume()
  parser.paused = false
}
