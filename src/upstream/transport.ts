import * as tls from 'node:tls'
import { Slots } from '../lib/async.ts'
import { codeOf, exitCode, isConnectionFailure, MirrorError } from '../lib/errors.ts'
import { parseCertificates } from '../lib/fs.ts'
import { redact } from '../lib/logger.ts'
import { findProcessFaultCode } from '../lib/system-errors.ts'
import { createRepositoryShare, type Release } from './repository-share.ts'
import { type Outage, TransientError } from './retry.ts'
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
/** Maximum wait of a blob for a connection while the blobs before it make no progress, ms. */
const maxBlobWaitMs = 60_000
/** Limits for discarding a body: a body within them is read to keep its connection; beyond them the connection is closed. */
const discardBytes = 64 * 1024
const discardMs = 1000

const connectFailures = new Map([
  ['ECONNREFUSED', 'refused the connection'],
  ['EHOSTUNREACH', 'cannot be reached'],
  ['ENETUNREACH', 'cannot be reached'],
  ['EADDRNOTAVAIL', 'cannot be reached'],
])

const unresolvedCodes = new Set(['ENOTFOUND', 'EAI_AGAIN'])

const timeouts = new Map<string, { readonly why: string; readonly outage: Outage }>([
  ['UND_ERR_CONNECT_TIMEOUT', { why: 'did not accept the connection in time', outage: 'unreachable' }],
  ['ETIMEDOUT', { why: 'did not accept the connection in time', outage: 'unreachable' }],
  ['UND_ERR_HEADERS_TIMEOUT', { why: 'did not answer in time', outage: 'silent' }],
])

const certificateCode =
  /^(CERT_|ERR_TLS_CERT|UNABLE_TO_|SELF_SIGNED_|DEPTH_ZERO_|ERR_SSL_|EPROTO$|HOSTNAME_MISMATCH$|INVALID_CA$)/

/** Sends requests over the network: connections, deadlines and redirects, without retries and credentials. */
export interface Transport {
  /** Sends one request and follows its redirects. Throws an UpstreamError when no response arrives, or the signal's reason. */
  send(request: TransportRequest): Promise<TransportResponse>
  /** Ends every connection. */
  close(): Promise<void>
}

export interface TransportRequest {
  readonly method: 'GET' | 'HEAD' | 'POST'
  readonly url: URL
  /** Lower-case names. A redirect to another origin drops `authorization`. */
  readonly headers: Readonly<Record<string, string>>
  readonly body?: string
  readonly pool: ConnectionPool
  /** The repository that the request concerns; its share of the connections is limited. */
  readonly repository?: string | undefined
  readonly signal?: AbortSignal | undefined
  /** Answers the challenges of registries to which the request is redirected. */
  readonly targets?: RedirectTargets | undefined
}

export interface TransportResponse {
  readonly status: number
  /** The host, with its port, that responded after a redirect to another origin; undefined without one. */
  readonly redirectHost: string | undefined
  /** True if that host is not a registry but an object store or a content delivery network. */
  readonly isStorage: boolean
  /** Returns a header by its lower-case name; several values are joined. */
  readonly header: (name: string) => string | undefined
  /** The body, to be read once or discarded. Throws an UpstreamError when it breaks off; stopping early ends the connection. */
  readonly body: AsyncIterable<Uint8Array>
  /** Discards the body. */
  discard(): void
}

export interface TransportOptions extends AgentsOptions {
  /** The upstream's name, for messages. */
  readonly host: string
  /** Milliseconds. */
  readonly timeouts: { readonly connect: number; readonly headers: number; readonly idle: number }
  readonly userAgent: string
  /** Limits the concurrent requests of all upstreams together; no limit when absent. */
  readonly requests?: Slots | undefined
}

export function createTransport(options: TransportOptions): Transport {
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
  /** Requests that wait or run. `close` aborts them itself, because an agent does not end a connection whose last request has begun. */
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
    async send(request) {
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
        if (typeof target === 'string') throw refusedRedirect(host, target)
        if (request.method === 'POST') throw refusedRedirect(host, 'the request body contains a secret')
        if (hops === maxRedirects)
          throw refusedRedirect(host, `it is the sixth in a row, to ${redact(stripQuery(target))}`)
        // https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pull: never across host boundaries.
        if (target.origin !== url.origin) delete headers['authorization']
        url = target
      }
    },
    async close() {
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

function refusedRedirect(host: string, why: string): UpstreamError {
  return new UpstreamError('invalid', 502, `A redirect by ${host} is not followed: ${why}.`)
}

const stripQuery = (url: URL) => `${url.origin}${url.pathname}`

/**
 * Returns the certificates to trust with a custom CA: this CA and the default ones, because a corporate registry may redirect to public
 * storage. Throws a MirrorError when the text contains no certificate, or a broken one.
 */
export function trustedCertificates(pem: string, host: string): string[] {
  const own = parseCertificates(pem)
  if (own === undefined || own.length === 0) {
    throw new MirrorError(`The CA for ${host} is not a PEM certificate.`, {
      exit: exitCode.usage,
      hints: [`Check the file that upstreams."${host}".ca names`],
    })
  }
  return [...machineCertificates(), ...own.map(String)]
}

function machineCertificates(): readonly string[] {
  // Exists in newer versions of Node; it includes NODE_EXTRA_CA_CERTS and the system's store.
  if ('getCACertificates' in tls && typeof tls.getCACertificates === 'function') {
    return tls.getCACertificates('default') as string[]
  }
  return tls.rootCertificates
}

interface RequestTarget {
  /** The upstream's name. */
  readonly host: string
  /** The host that the request goes to, with its port. */
  readonly target: string
  /** True if a redirect led to another origin. */
  readonly isRedirected: boolean
  /** The proxy that the request goes through. */
  readonly via?: string | undefined
}

/** Converts a failure before the response to an error. A failure of storage does not count as an outage of the registry. */
function toRequestError({ host, target, isRedirected, via }: RequestTarget, error: unknown): Error {
  if (error instanceof UpstreamError || isBug(error)) return error
  const code = codeOf(error) ?? ''
  const name = target === host ? host : `${host} (${target})`
  const where = via === undefined ? name : `${name}, through the proxy ${via},`
  const refusedBy = via === undefined ? undefined : toProxyError(via, name, isRedirected, error)
  if (refusedBy) return refusedBy
  const own = findProcessFaultCode(error)
  if (own !== undefined)
    return new TransientError('unavailable', 503, `The mirror could not send a request to ${name} (${own}).`, {
      cause: error,
    })
  const why = unresolvedCodes.has(code) ? describeUnresolved(error) : connectFailures.get(code)
  const breaksCircuit = !isRedirected
  if (why) {
    const options = { breaksCircuit, outage: 'unreachable', cause: error } as const
    return new TransientError('unavailable', 502, `${where} ${why}.`, options)
  }
  const late = timeouts.get(code)
  if (late) {
    const options = { breaksCircuit, outage: late.outage, cause: error }
    return new TransientError('unavailable', 504, `${where} ${late.why}.`, options)
  }
  if (certificateCode.test(code)) {
    const message = `${where} presented a certificate that is not trusted (${code}); set upstreams."${host}".ca to trust your own CA.`
    return new UpstreamError('unavailable', 502, message, { cause: error })
  }
  return new TransientError('unavailable', 502, `${where} broke the connection (${code || 'no reason given'}).`, {
    cause: error,
  })
}

/** Names the hostname that failed, because it may be the upstream's or the proxy's. */
function describeUnresolved(error: unknown): string {
  const hostname = error instanceof Error && 'hostname' in error ? `the name ${String(error.hostname)}` : 'its name'
  return `cannot be reached: ${hostname} could not be resolved (offline, or DNS)`
}

/** Converts a proxy's refusal to connect to an error; undefined for another failure. undici reports the status only in the message. */
function toProxyError(via: string, name: string, isRedirected: boolean, error: unknown): UpstreamError | undefined {
  const status = /^Proxy (?:response|Authentication Required) \((\d{3})\)/.exec(
    error instanceof Error ? error.message : '',
  )?.[1]
  if (status === undefined) return undefined
  const why =
    status === '407' ? 'requires a user name and password, or rejected the given ones' : `refuses to connect to ${name}`
  const message = `The proxy ${via} ${why} (${status}).`
  if (Number(status) < 500) return new UpstreamError('unavailable', 502, message, { cause: error })
  return new TransientError('unavailable', 502, message, {
    breaksCircuit: !isRedirected,
    outage: 'unreachable',
    cause: error,
  })
}

/** Converts a failure within a body to an error, which does not count as an outage of the upstream (decision D6). */
function toBodyError(host: string, error: unknown): Error {
  if (error instanceof UpstreamError || isBug(error)) return error
  const code = codeOf(error) ?? ''
  const stalled = code === 'UND_ERR_BODY_TIMEOUT'
  const message = stalled
    ? `${host} stopped sending.`
    : `${host} closed the connection in the middle of the body (${code || 'no reason given'}).`
  return new TransientError('unavailable', stalled ? 504 : 502, message, { cause: error })
}

/** Checks whether an error is a bug: Node reports bad arguments with an `ERR_*` code, and other bugs have no code. */
function isBug(error: unknown): error is Error {
  const code = codeOf(error)
  return code === undefined ? error instanceof TypeError : code.startsWith('ERR_') && !isConnectionFailure(error)
}

/**
 * The registries that an upstream redirects to, as lscr.io does to ghcr.io. They require their own tokens, which the mirror requests
 * anonymously: they must not receive the upstream's credential.
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
