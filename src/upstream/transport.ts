import * as tls from 'node:tls'
import { Slots } from '../lib/async.ts'
import { exitCode, MirrorError } from '../lib/errors.ts'
import { parseCertificates } from '../lib/fs.ts'
import { redact } from '../lib/logger.ts'
import { toBodyError, toRequestError } from './network-errors.ts'
import { resolveRedirect, findRepository } from './trust.ts'
import {
  type AgentsOptions,
  connectionsPerOrigin,
  createAgents,
  dispatch,
  type ConnectionPool,
  type AgentResponse,
} from './undici.ts'
import { UpstreamError } from './upstream.ts'

const maxRedirects = 5
/** Limits the wait of a blob for a connection while the blobs before it make no progress, ms. */
const maxBlobWaitMs = 60_000
/** Limits for discarding a body: a body within them is read to keep its connection; beyond them the connection is closed. */
const discardBytes = 64 * 1024
const discardMs = 1000

export interface TransportRequest {
  readonly method: 'GET' | 'HEAD' | 'POST'
  readonly url: URL
  /** Lower-case names. A redirect to another origin drops `authorization`. */
  readonly headers: Readonly<Record<string, string>>
  readonly body?: string
  readonly pool: ConnectionPool
  /** Names the repository that the request concerns; its share of the connections is limited. */
  readonly repository?: string | undefined
  readonly signal?: AbortSignal | undefined
  /** Answers the challenges of registries to which the request is redirected. */
  readonly targets?: RedirectTargets | undefined
}

export interface TransportResponse {
  readonly status: number
  /** Names the host, with its port, that responded after a redirect to another origin; undefined without one. */
  readonly redirectHost: string | undefined
  /** Is true if that host is not a registry but an object store or a content delivery network. */
  readonly isStorage: boolean
  /** Returns a header by its lower-case name; several values are joined. */
  readonly header: (name: string) => string | undefined
  /**
   * Holds the body, to be read once or discarded. Throws an UpstreamError when it breaks off; stopping early ends the connection.
   */
  readonly body: AsyncIterable<Uint8Array>
  /** Discards the body. */
  discard(): void
}

export interface TransportOptions extends AgentsOptions {
  /** Names the upstream, for messages. */
  readonly host: string
  /** Milliseconds. */
  readonly timeouts: { readonly connect: number; readonly headers: number; readonly idle: number }
  readonly userAgent: string
  /** Limits the concurrent requests of all upstreams together; no limit when absent. */
  readonly requests?: Slots | undefined
}

/** Manages the network connections of one upstream. */
export type Transport = ReturnType<typeof createTransport>

/**
 * Creates the transport of an upstream: sends requests over the network, with connections and their shares, deadlines and redirects,
 * without retries and credentials.
 */
export function createTransport(options: TransportOptions) {
  const { host, timeouts } = options
  const agents = createAgents(options)
  const { requests = new Slots(Infinity) } = options
  const share = createRepositoryShare({
    host,
    maxWaitMs: timeouts.headers,
    maxBlobWaitMs: maxBlobWaitMs,
    requests,
    connections: connectionsPerOrigin,
  })
  /**
   * Tracks the requests that wait or run. `close` aborts them itself, because an agent does not end a connection whose last request
   * has begun.
   */
  const running = new Set<AbortController>()
  let closed = false

  const stopping = () =>
    new UpstreamError('unavailable', 503, `${host} is no longer contacted: the mirror is stopping.`)

  async function ask(request: TransportRequest, url: URL, headers: Record<string, string>): Promise<TransportResponse> {
    const { agent, via } = await agents.find(request.pool, url)
    request.signal?.throwIfAborted()
    if (closed) throw stopping()
    const isRedirected = url.origin !== request.url.origin
    const run = new AbortController()
    const onAbort = () => run.abort(request.signal?.reason)
    let leave: Release | undefined
    const finish = () => {
      leave?.()
      request.signal?.removeEventListener('abort', onAbort)
      running.delete(run)
    }
    request.signal?.addEventListener('abort', onAbort, { once: true })
    running.add(run)
    try {
      leave = await share.enter({ ...request, signal: run.signal })
      run.signal.throwIfAborted()
      const response = await dispatch(
        agent,
        {
          origin: url.origin,
          path: url.pathname + url.search,
          method: request.method,
          headers,
          body: request.body ?? null,
          headersTimeout: timeouts.headers,
          bodyTimeout: timeouts.idle,
        },
        {
          signal: run.signal,
          explain: (error) => explainBodyError(host, error, run.signal),
          onBytes: (bytes) => share.recordBytes(request, bytes),
          onClose: finish,
        },
      )
      return toTransportResponse(response, isRedirected ? url : undefined)
    } catch (error) {
      finish()
      run.signal.throwIfAborted()
      throw toRequestError({ host, target: url.host, isRedirected, via }, error)
    }
  }

  return {
    /** Sends one request and follows its redirects. Throws an UpstreamError when no response arrives, or the signal's reason. */
    async send(request: TransportRequest): Promise<TransportResponse> {
      const headers: Record<string, string> = {
        'user-agent': options.userAgent,
        'accept-encoding': 'identity',
        ...request.headers,
      }
      let url = request.url
      for (let hops = 0; ; hops++) {
        const to = url
        const asked = (authorization?: string) =>
          ask(request, to, authorization === undefined ? { ...headers } : { ...headers, authorization })
        const isTarget = url.origin !== request.url.origin && findRepository(url) !== undefined
        const response =
          isTarget && request.targets ? await request.targets.send(url, request.signal, asked) : await asked()
        const location = response.header('location')
        if (!isRedirect(response.status) || location === undefined) return response
        response.discard()
        const target = resolveRedirect(url, location)
        if (typeof target === 'string') throw createRefusedRedirectError(host, target)
        if (request.method === 'POST') throw createRefusedRedirectError(host, 'the request body contains a secret')
        if (hops === maxRedirects)
          throw createRefusedRedirectError(host, `it is the sixth in a row, to ${redact(stripQuery(target))}`)
        // https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pull: never across host boundaries.
        if (target.origin !== url.origin) delete headers['authorization']
        url = target
      }
    },
    /** Returns true if no request waits or runs, and no body arrives. */
    isIdle: () => running.size === 0,
    /** Ends every connection; requests that wait or run fail. */
    async close(): Promise<void> {
      closed = true
      for (const run of running) run.abort(stopping())
      await agents.close()
    },
  }
}

function toTransportResponse(
  { status, headers, body }: AgentResponse,
  redirectUrl: URL | undefined,
): TransportResponse {
  let discarded = false
  let isRead = false
  return {
    status,
    redirectHost: redirectUrl?.host,
    isStorage: redirectUrl !== undefined && findRepository(redirectUrl) === undefined,
    header(name) {
      const value = headers[name]
      return Array.isArray(value) ? value.join(', ') : value
    },
    body: {
      [Symbol.asyncIterator]() {
        isRead = true
        return body
      },
    },
    discard() {
      if (discarded) return
      discarded = true
      if (isRead) body.destroy()
      else body.dump(discardBytes, discardMs)
    },
  }
}

/** Returns the signal's reason for a body that the mirror aborted, otherwise the network's failure. */
function explainBodyError(host: string, error: unknown, { aborted, reason }: AbortSignal): Error {
  return aborted && reason instanceof Error ? reason : toBodyError(host, error)
}

function isRedirect(status: number): boolean {
  return status === 301 || status === 302 || status === 303 || status === 307 || status === 308
}

function createRefusedRedirectError(host: string, why: string): UpstreamError {
  return new UpstreamError('invalid', 502, `A redirect by ${host} is not followed: ${why}.`)
}

const stripQuery = (url: URL) => `${url.origin}${url.pathname}`

/**
 * Returns the certificates to trust with a custom CA: this CA and the default ones, because a corporate registry may redirect to public
 * storage. Throws a MirrorError when the text contains no certificate, or a broken one.
 */
export function getTrustedCertificates(pem: string, host: string): string[] {
  const own = parseCertificates(pem)
  if (own === undefined || own.length === 0) {
    throw new MirrorError(`The CA for ${host} is not a PEM certificate.`, {
      exit: exitCode.usage,
      hints: [`Check the file that upstreams."${host}".ca names`],
    })
  }
  return [...getMachineCertificates(), ...own.map(String)]
}

function getMachineCertificates(): readonly string[] {
  // Exists in newer versions of Node; it includes NODE_EXTRA_CA_CERTS and the system's store.
  if ('getCACertificates' in tls && typeof tls.getCACertificates === 'function') {
    return tls.getCACertificates('default') as string[]
  }
  return tls.rootCertificates
}

/**
 * Lists the registries that an upstream redirects to, as lscr.io does to ghcr.io. They require their own tokens, which the mirror
 * requests anonymously: they must not receive the upstream's credential.
 */
export interface RedirectTargets {
  /** Sends a request to a URL of a repository, and answers the target's challenge. `ask` receives the Authorization header's value. */
  send(
    url: URL,
    signal: AbortSignal | undefined,
    ask: (authorization: string | undefined) => Promise<TransportResponse>,
  ): Promise<TransportResponse>
  close(): Promise<void>
}

/** Returns the slots of a request. */
type Release = () => void

interface ShareRequest {
  readonly repository?: string | undefined
  readonly pool: ConnectionPool
  readonly signal?: AbortSignal | undefined
}

interface RepositoryShareOptions {
  /** Names the upstream; also the owner of its slots. */
  readonly host: string
  /** Limits the wait of a metadata request for a slot, ms. */
  readonly maxWaitMs: number
  /** Limits the wait of a blob while the blobs before it make no progress, ms. */
  readonly maxBlobWaitMs: number
  /** Limits the requests of all upstreams together, because each holds a connection. No upstream gets all of them. */
  readonly requests: Slots
  /** Limits the connections to one origin, per pool. */
  readonly connections: number
}

/**
 * Creates the bounds for the concurrent requests of an upstream and of each of its repositories, so that one that hangs cannot occupy
 * all connections. An upstream gets at most half of them (see `Slots`). A repository gets a quarter of its upstream's share for metadata,
 * and three quarters for blobs, because a pull fetches many.
 */
export function createRepositoryShare(options: RepositoryShareOptions) {
  const { host, requests, connections } = options
  const getLimit = (pool: ConnectionPool) => {
    const part = pool === 'metadata' ? 1 / 4 : 3 / 4
    return Math.max(1, Math.floor(Math.min(connections, requests.maxPerOwner) * part))
  }
  /** Slots by pool and repository. */
  const shares = new Map<string, Slots>()

  const take = (slots: Slots, { pool, signal }: ShareRequest, owner?: string) =>
    pool === 'blobs'
      ? slots.take(Math.max(options.maxWaitMs, options.maxBlobWaitMs), { signal, owner, extendOnProgress: true })
      : slots.take(options.maxWaitMs, { signal, owner })

  async function enterShare(key: string, request: ShareRequest): Promise<Release> {
    const slots = shares.get(key) ?? new Slots(getLimit(request.pool))
    shares.set(key, slots)
    const release = await take(slots, request)
    if (!release) throw createTooManyRequestsError(`Too many requests for this repository are waiting for ${host}.`)
    return () => {
      release()
      if (slots.isUnused && shares.get(key) === slots) shares.delete(key)
    }
  }

  return {
    /** Waits for a slot. Throws an UpstreamError (503) when none is free in time, or the signal's reason. */
    async enter(request: ShareRequest): Promise<Release> {
      const key = toKey(request)
      const leaveShare = key === undefined ? undefined : await enterShare(key, request)
      try {
        const leave = await take(requests, request, host)
        if (!leave) throw createTooManyRequestsError(`Too many requests to ${host} are under way.`)
        return () => {
          leave()
          leaveShare?.()
        }
      } catch (error) {
        leaveShare?.()
        throw error
      }
    },
    /** Records progress of a body, so that blobs behind it keep waiting. */
    recordBytes(request: ShareRequest, bytes: number): void {
      const key = toKey(request)
      if (key !== undefined) shares.get(key)?.recordProgress(bytes)
      requests.recordProgress(bytes, host)
    },
  }
}

function toKey({ repository, pool }: ShareRequest): string | undefined {
  return repository && `${pool} ${repository}`
}

function createTooManyRequestsError(message: string): UpstreamError {
  return new UpstreamError('unavailable', 503, message, { retryAfterSeconds: 1 })
}
