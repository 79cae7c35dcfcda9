import { Slots } from '../lib/async.ts'
import { redact } from '../lib/logger.ts'
import { type AgentsOptions, connectionsPerOrigin, createAgents, type Lane } from './agents.ts'
import { dispatch, type Response } from './dispatch.ts'
import { bodyFailure, requestFailure } from './network-failure.ts'
import type { RedirectTargets } from './redirect-targets.ts'
import { createRepositoryShare, type Release } from './repository-share.ts'
import { redirectTarget, repositoryIn } from './trust.ts'
import { UpstreamError } from './upstream.ts'

/** The one door to the network: connections, deadlines, redirects. No retry and no credential of its own. */
export interface Exchange {
  /** One request and its redirects. Throws an UpstreamError when no answer comes, or the signal's reason. */
  send(request: ExchangeRequest): Promise<Answer>
  /** Ends every connection. */
  close(): Promise<void>
}

export interface ExchangeRequest {
  readonly method: 'GET' | 'HEAD' | 'POST'
  readonly url: URL
  /** Lower-case names. `authorization` goes no further than the origin of `url`. */
  readonly headers: Readonly<Record<string, string>>
  readonly body?: string
  readonly lane: Lane
  /** What it is about: one repository may not hold every connection. */
  readonly repository?: string | undefined
  readonly signal?: AbortSignal | undefined
  /** Answers the challenges of registries that the request is redirected to. */
  readonly targets?: RedirectTargets | undefined
}

export interface Answer {
  readonly status: number
  /** The host, with its port, of another origin that answered than the one that was asked. */
  readonly foreign: string | undefined
  /** Whether that is no registry either: an object store, a content delivery network. */
  readonly storage: boolean
  /** The value of a header, by its lower-case name; several values are joined. */
  readonly header: (name: string) => string | undefined
  /** Read once, or discarded. Throws an UpstreamError when it breaks off; stopping early ends the connection. */
  readonly body: AsyncIterable<Uint8Array>
  /** Lets go of the body. */
  discard(): void
}

export interface ExchangeOptions extends AgentsOptions {
  /** The upstream's name, for messages. */
  readonly host: string
  /** Milliseconds. */
  readonly timeouts: { readonly connect: number; readonly headers: number; readonly idle: number }
  readonly userAgent: string
  /** Requests under way, of all upstreams together; no limit when not given. */
  readonly requests?: Slots | undefined
}

const mostHops = 5
/** How long a blob waits for a connection while nothing comes of the blobs before it, ms. */
const blobPatienceMs = 60_000
/** A body up to this size is read to keep its connection; a longer one, or one that takes its time, is cut. */
const discardBytes = 64 * 1024
const discardMs = 1000

export function createExchange(options: ExchangeOptions): Exchange {
  const { host, timeouts, guard } = options
  const agents = createAgents(options)
  const { requests = new Slots(Infinity) } = options
  const share = createRepositoryShare({
    host,
    patience: timeouts.headers,
    blobPatience: blobPatienceMs,
    requests,
    connections: connectionsPerOrigin,
  })
  /** What waits for its turn or has begun. Agents lose sight of a connection once its last request has begun, and would not end it. */
  const running = new Set<AbortController>()
  let closed = false

  const stopping = () => new UpstreamError('unavailable', 503, `${host} is no longer asked: the mirror is stopping.`)

  async function ask(request: ExchangeRequest, url: URL, headers: Record<string, string>): Promise<Answer> {
    guard.checkLiteral(url)
    const { agent, via } = await agents.find(request.lane, url)
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
          explain: (error) => bodyError(host, error, run.signal),
          onBytes: (bytes) => share.moved(request, bytes),
          onClose: finish,
        },
      )
      return answerOf(response, foreign ? url : undefined)
    } catch (error) {
      finish()
      run.signal.throwIfAborted()
      throw requestFailure({ host, target: url.host, foreign, via }, error)
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
        const isTarget = url.origin !== request.url.origin && repositoryIn(url) !== undefined
        const answer =
          isTarget && request.targets ? await request.targets.send(url, request.signal, asked) : await asked()
        const location = answer.header('location')
        if (!isRedirect(answer.status) || location === undefined) return answer
        answer.discard()
        const target = redirectTarget(url, location)
        if (typeof target === 'string') throw refusedRedirect(host, target)
        if (request.method === 'POST') throw refusedRedirect(host, 'what is posted holds a secret')
        if (hops === mostHops)
          throw refusedRedirect(host, `it is the sixth in a row, to ${redact(withoutQuery(target))}`)
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

function answerOf({ status, headers, body }: Response, elsewhere: URL | undefined): Answer {
  let discarded = false
  let isRead = false
  return {
    status,
    foreign: elsewhere?.host,
    storage: elsewhere !== undefined && repositoryIn(elsewhere) === undefined,
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
function bodyError(host: string, error: unknown, { aborted, reason }: AbortSignal): Error {
  return aborted && reason instanceof Error ? reason : bodyFailure(host, error)
}

function isRedirect(status: number): boolean {
  return status === 301 || status === 302 || status === 303 || status === 307 || status === 308
}

function refusedRedirect(host: string, why: string): UpstreamError {
  return new UpstreamError('invalid', 502, `A redirect by ${host} is not followed: ${why}.`)
}

const withoutQuery = (url: URL) => `${url.origin}${url.pathname}`
