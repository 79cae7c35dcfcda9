import { subscribe, unsubscribe } from 'node:diagnostics_channel'
import type { Socket } from 'node:net'
import type { Dispatcher } from 'undici'
import { deferred, type Deferred } from '../lib/async.ts'
import { createSocksConnector, type Proxies, type Proxy } from './proxy.ts'
import type { AddressGuard } from './trust.ts'

export interface AgentResponse {
  readonly status: number
  /** By lower-case names. */
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly body: ResponseBody
}

interface DispatchOptions {
  readonly signal: AbortSignal
  /** The reason for a body that broke off, as its reader shall have it. */
  readonly explain: (error: unknown) => Error
  /** Called for each piece of the body, with its length. */
  readonly onBytes?: (bytes: number) => void
  /** Called once, when nothing more will come of it. */
  readonly onClose: () => void
}

/** One request. Rejects with what the network, or the signal, says. */
export function dispatch(
  dispatcher: Dispatcher,
  request: Dispatcher.DispatchOptions,
  { signal, explain, onBytes, onClose }: DispatchOptions,
): Promise<AgentResponse> {
  const answered = deferred<AgentResponse>()
  let control: Dispatcher.DispatchController | undefined
  let body: ResponseBody | undefined
  let failed = false
  const onAbort = () => {
    control?.abort(signal.reason)
    // It may still wait for a connection, where nothing can end it but its turn.
    fail(signal.reason)
  }
  const close = () => {
    signal.removeEventListener('abort', onAbort)
    onClose()
  }
  const fail = (error: unknown) => {
    if (body) return body.fail(error)
    // An abort is told of by its signal, by undici in answer to it, or at the request's turn: by the first of them.
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

/** What can be done with a response that is under way. */
interface ResponseControl {
  pause(): void
  resume(): void
  /** Ends its connection. */
  abort(reason: Error): void
}

interface ResponseBodyOptions {
  readonly control: ResponseControl
  /** The reason for a body that broke off, as its reader shall have it. */
  readonly explain: (error: unknown) => Error
  /** Called once, when nothing more will come. */
  readonly onClose: () => void
}

/** Bytes that wait for the reader; beyond that the upstream waits. */
const maxBufferedBytes = 256 * 1024

/** A body as it comes from the network, to be read once: without a stream between, which would cost more than all the rest. */
export class ResponseBody implements AsyncIterableIterator<Uint8Array> {
  readonly #options: ResponseBodyOptions
  readonly #chunks: Uint8Array[] = []
  #bytes = 0
  #paused = false
  #closed = false
  #failure: { readonly error: unknown } | undefined
  #reader: Deferred<IteratorResult<Uint8Array>> | undefined
  /** Bytes that may still be read for nobody; undefined for a body that somebody reads. */
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
    this.#reader = deferred()
    return this.#reader.promise
  }

  /** Stopping early ends the connection; who waits for a chunk is told so. */
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

  /** Ends the connection, if there is more to come. */
  destroy(): void {
    this.#chunks.length = 0
    if (this.#closed) return
    const gone = new Error('the body was let go of')
    this.#close()
    this.#settleReader((reader) => reader.reject(this.#options.explain(gone)))
    this.#options.control.abort(gone)
  }

  /** Reads what is left for nobody, to keep the connection: so many bytes at most, for so long (ms). */
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

/** https://github.com/nodejs/undici/blob/v7.30.2/docs/docs/api/DiagnosticsChannel.md#undiciclientconnected */
const connectedChannel = 'undici:client:connected'

/**
 * Has every connection of undici go on when it ends, or breaks, while it waits for a slow reader. undici 7 asserts there that it
 * does not wait, in a listener of its own: with an answer that is the connection's last, the process would end. May be called
 * again. https://github.com/nodejs/undici/issues/5360, mended in 8, which Node 20 does not run.
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
  // Brings what was held back, of which there is no more than one chunk; nothing, where the connection broke.
  parser.resume()
  parser.paused = false
}

/** Blobs have connections of their own, so that a question never waits behind layers. */
export type ConnectionPool = 'metadata' | 'blobs'

/** The connections of one upstream, kept and used again: direct ones, and those through proxies. */
interface Agents {
  /** Where a request is sent, and the proxy's name when it goes through one. */
  find(pool: ConnectionPool, url: URL): Promise<{ readonly agent: Dispatcher; readonly via: string | undefined }>
  /** Ends every connection. */
  close(): Promise<void>
}

export interface AgentsOptions {
  /** Milliseconds. */
  readonly timeouts: { readonly connect: number }
  readonly guard: AddressGuard
  readonly proxies: Proxies
  /** PEM certificates to trust instead of the usual ones. */
  readonly certificates: string[] | undefined
  /** Whether connections are kept for the next request; there have to be descriptors for them. */
  readonly keepAlive?: boolean | undefined
}

/** More than a pull uses with all that is fetched ahead, so that nothing a client asks for waits behind what it did not. */
export const connectionsPerOrigin = 48
const keepAliveMs = 15_000

/** Loads the HTTP client; a server does so before it says that it is ready. */
export const loadUndici = async () => (await import('undici')).default

export function createAgents({ timeouts, guard, proxies, certificates, keepAlive = true }: AgentsOptions): Agents {
  const agents = new Map<string, Promise<Dispatcher>>()

  async function createAgent(proxy: Proxy | undefined): Promise<Dispatcher> {
    const { Agent, ProxyAgent, buildConnector } = await loadUndici()
    resumePausedAtEnd()
    const connect = { timeout: timeouts.connect, ...(certificates && { ca: certificates }) }
    const pool = { connections: connectionsPerOrigin, keepAliveTimeout: keepAliveMs, pipelining: keepAlive ? 1 : 0 }
    if (!proxy) return new Agent({ ...pool, connect: { ...connect, lookup: guard.lookup } })
    // Names that the proxy resolves cannot be judged here, only literal addresses.
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
      // A proxy is asked in the plain way for http, for many allow CONNECT to port 443 only.
      proxyTunnel: false,
      requestTls: connect,
      proxyTls: connect,
    })
  }

  return {
    async find(pool, url) {
      const proxy = proxies.find(url)
      const key = `${pool} ${proxy?.name ?? ''}`
      const agent = agents.get(key) ?? createAgent(proxy)
      agents.set(key, agent)
      try {
        return { agent: await agent, via: proxy?.name }
      } catch (error) {
        // The next request tries again.
        agents.delete(key)
        throw error
      }
    },
    async close() {
      await Promise.all([...agents.values()].map(async (agent) => (await agent).destroy()))
    },
  }
}
