import * as tls from 'node:tls'
import { Slots } from '../lib/async.ts'
import { codeOf, exitCode, isConnectionFailure, MirrorError } from '../lib/errors.ts'
import { readCertificates } from '../lib/fs.ts'
import { redact } from '../lib/logger.ts'
import { ownFailureCode } from '../lib/system-errors.ts'
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

/** The one door to the network: connections, deadlines, redirects. No retry and no credential of its own. */
export interface Transport {
  /** One request and its redirects. Throws an UpstreamError when no answer comes, or the signal's reason. */
  send(request: TransportRequest): Promise<TransportResponse>
  /** Ends every connection. */
  close(): Promise<void>
}

export interface TransportRequest {
  readonly method: 'GET' | 'HEAD' | 'POST'
  readonly url: URL
  /** Lower-case names. `authorization` goes no further than the origin of `url`. */
  readonly headers: Readonly<Record<string, string>>
  readonly body?: string
  readonly pool: ConnectionPool
  /** What it is about: one repository may not hold every connection. */
  readonly repository?: string | undefined
  readonly signal?: AbortSignal | undefined
  /** Answers the challenges of registries that the request is redirected to. */
  readonly targets?: RedirectTargets | undefined
}

export interface TransportResponse {
  readonly status: number
  /** The host, with its port, of another origin that answered than the one that was asked. */
  readonly redirectHost: string | undefined
  /** Whether that is no registry either: an object store, a content delivery network. */
  readonly isStorage: boolean
  /** The value of a header, by its lower-case name; several values are joined. */
  readonly header: (name: string) => string | undefined
  /** Read once, or discarded. Throws an UpstreamError when it breaks off; stopping early ends the connection. */
  readonly body: AsyncIterable<Uint8Array>
  /** Lets go of the body. */
  discard(): void
}

export interface TransportOptions extends AgentsOptions {
  /** The upstream's name, for messages. */
  readonly host: string
  /** Milliseconds. */
  readonly timeouts: { readonly connect: number; readonly headers: number; readonly idle: number }
  readonly userAgent: string
  /** Requests under way, of all upstreams together; no limit when not given. */
  readonly requests?: Slots | undefined
}

const maxRedirects = 5
/** How long a blob waits for a connection while nothing comes of the blobs before it, ms. */
const maxBlobWaitMs = 60_000
/** A body up to this size is read to keep its connection; a longer one, or one that takes its time, is cut. */
const discardBytes = 64 * 1024
const discardMs = 1000

export function createTransport(options: TransportOptions): Transport {
  const { host, timeouts, guard } = options
  const agents = createAgents(options)
  const { requests = new Slots(Infinity) } = options
  const share = createRepositoryShare({
    host,
    maxWaitMs: timeouts.headers,
    maxBlobWaitMs: maxBlobWaitMs,
    requests,
    connections: connectionsPerOrigin,
  })
  /** What waits for its turn or has begun. Agents lose sight of a connection once its last request has begun, and would not end it. */
  const running = new Set<AbortController>()
  let closed = false

  const stopping = () => new UpstreamError('unavailable', 503, `${host} is no longer asked: the mirror is stopping.`)

  async function ask(request: TransportRequest, url: URL, headers: Record<string, string>): Promise<TransportResponse> {
    guard.checkLiteral(url)
    const { agent, via } = await agents.find(request.pool, url)
    request.signal?.throwIfAborted()
    if (closed) throw stopping()
    const foreign = url.origin !== request.url.origin
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
      return toTransportResponse(response, foreign ? url : undefined)
    } catch (error) {
      finish()
      run.signal.throwIfAborted()
      throw toRequestError({ host, target: url.host, foreign, via }, error)
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
        const answer =
          isTarget && request.targets ? await request.targets.send(url, request.signal, asked) : await asked()
        const location = answer.header('location')
        if (!isRedirect(answer.status) || location === undefined) return answer
        answer.discard()
        const target = resolveRedirect(url, location)
        if (typeof target === 'string') throw refusedRedirect(host, target)
        if (request.method === 'POST') throw refusedRedirect(host, 'what is posted holds a secret')
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

function toTransportResponse({ status, headers, body }: AgentResponse, elsewhere: URL | undefined): TransportResponse {
  let discarded = false
  let isRead = false
  return {
    status,
    redirectHost: elsewhere?.host,
    isStorage: elsewhere !== undefined && findRepository(elsewhere) === undefined,
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

/** An end by our own will has the signal's reason. */
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
 * The certificates to trust with an own CA: it and everything that is trusted without it, for a corporate registry redirects to
 * public storage. Throws a MirrorError when the text holds no certificate or a broken one.
 */
export function trustedCertificates(pem: string, host: string): string[] {
  const own = readCertificates(pem)
  if (own === undefined || own.length === 0) {
    throw new MirrorError(`The CA for ${host} is not a PEM certificate.`, {
      exit: exitCode.usage,
      hints: [`Check the file that upstreams."${host}".ca names`],
    })
  }
  return [...machineCertificates(), ...own.map(String)]
}

function machineCertificates(): readonly string[] {
  // Newer Node only; it knows NODE_EXTRA_CA_CERTS and the system's store as well.
  if ('getCACertificates' in tls && typeof tls.getCACertificates === 'function') {
    return tls.getCACertificates('default') as string[]
  }
  return tls.rootCertificates
}

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

interface RequestTarget {
  /** The upstream. */
  readonly host: string
  /** The host that was asked on its behalf, with its port. */
  readonly target: string
  /** Whether it is of another origin than the one that was asked first. */
  readonly foreign: boolean
  /** The proxy that it was asked through. */
  readonly via?: string | undefined
}

/** What went wrong before an answer came. Storage that cannot be reached says nothing on whether the registry is up. */
function toRequestError({ host, target, foreign, via }: RequestTarget, error: unknown): Error {
  if (error instanceof UpstreamError || isBug(error)) return error
  const code = codeOf(error) ?? ''
  const name = target === host ? host : `${host} (${target})`
  const where = via === undefined ? name : `${name}, asked through the proxy ${via},`
  const refusedBy = via === undefined ? undefined : toProxyError(via, name, foreign, error)
  if (refusedBy) return refusedBy
  const own = ownFailureCode(error)
  if (own !== undefined)
    return new TransientError('unavailable', 503, `The mirror itself could not ask ${name} (${own}).`, { cause: error })
  const why = unresolvedCodes.has(code) ? describeUnresolved(error) : connectFailures.get(code)
  const breaksCircuit = !foreign
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
    const message = `${where} could not prove who it is (${code}); a CA of your own goes to upstreams."${host}".ca.`
    return new UpstreamError('unavailable', 502, message, { cause: error })
  }
  return new TransientError('unavailable', 502, `${where} broke the connection (${code || 'no reason given'}).`, {
    cause: error,
  })
}

/** It may be the name of the upstream, or of the proxy. */
function describeUnresolved(error: unknown): string {
  const hostname = error instanceof Error && 'hostname' in error ? `the name ${String(error.hostname)}` : 'its name'
  return `cannot be reached: ${hostname} could not be resolved (offline, or DNS)`
}

/** What a proxy said that would not make a connection; undefined for another failure. undici has its status in a text only. */
function toProxyError(via: string, name: string, foreign: boolean, error: unknown): UpstreamError | undefined {
  const status = /^Proxy (?:response|Authentication Required) \((\d{3})\)/.exec(
    error instanceof Error ? error.message : '',
  )?.[1]
  if (status === undefined) return undefined
  const why = status === '407' ? 'wants a user name and a password, or other ones' : `makes no connection to ${name}`
  const message = `The proxy ${via} ${why} (${status}).`
  if (Number(status) < 500) return new UpstreamError('unavailable', 502, message, { cause: error })
  return new TransientError('unavailable', 502, message, {
    breaksCircuit: !foreign,
    outage: 'unreachable',
    cause: error,
  })
}

/** What went wrong within a body. It says nothing on whether the upstream is up (decision D6). */
function toBodyError(host: string, error: unknown): Error {
  if (error instanceof UpstreamError || isBug(error)) return error
  const code = codeOf(error) ?? ''
  const stalled = code === 'UND_ERR_BODY_TIMEOUT'
  const message = stalled ? `${host} stopped sending.` : `${host} broke off in mid-body (${code || 'no reason given'}).`
  return new TransientError('unavailable', stalled ? 504 : 502, message, { cause: error })
}

/** Node refuses arguments with an `ERR_*`, and the rest of our own mistakes have no code at all. */
function isBug(error: unknown): error is Error {
  const code = codeOf(error)
  return code === undefined ? error instanceof TypeError : code.startsWith('ERR_') && !isConnectionFailure(error)
}

/**
 * The registries that an upstream redirects to, as lscr.io does to ghcr.io. They want tokens of their own, and get them as anybody
 * would: the upstream's credential is none of theirs.
 */
export interface RedirectTargets {
  /** Sends a request to a URL that names a repository, and answers the target's challenge. `ask` gets the Authorization header's value. */
  send(
    url: URL,
    signal: AbortSignal | undefined,
    ask: (authorization: string | undefined) => Promise<TransportResponse>,
  ): Promise<TransportResponse>
  close(): Promise<void>
}
