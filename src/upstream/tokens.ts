import { LRUCache } from 'lru-cache'
import { untilAborted } from '../lib/async.ts'
import { readJsonObject } from '../lib/json.ts'
import { redact } from '../lib/logger.ts'
import type { Clock } from '../lib/time.ts'
import { readWholeBody } from './body.ts'
import { isDenial, toLimitError, readReason, parseReason, withReason } from './failures.ts'
import { type Credential, getFingerprint, getSecrets } from './identity.ts'
import { TransientError } from './retry.ts'
import type { TransportResponse, Transport, TransportRequest } from './transport.ts'
import { UpstreamError } from './upstream.ts'

const maxTokens = 1000
const maxResponseBytes = 1024 * 1024
const clientId = 'dev-mirror'

export interface TokenRequest {
  readonly challenge: BearerChallenge
  /** Holds the scope of a single repository, because registries refuse tokens that grow too long. */
  readonly scope: string
  readonly credential: Credential | undefined
}

/** Keeps the access tokens of one upstream. */
export type TokenCache = ReturnType<typeof createTokenCache>

/** Creates the cache of an upstream's access tokens, by realm, service, scope and credential. */
export function createTokenCache(host: string, deps: { transport: Transport; clock: Clock }) {
  const tokens = new LRUCache<string, AccessToken>({ max: maxTokens })
  const pending = new Map<string, Promise<AccessToken>>()

  async function fetchToken(key: string, { challenge, scope, credential }: TokenRequest): Promise<AccessToken> {
    try {
      const token = await requestToken(host, challenge, scope, credential, deps)
      tokens.set(key, token)
      return token
    } finally {
      pending.delete(key)
    }
  }

  return {
    /** Returns a token that stays valid for a while. Concurrent calls for the same token share one request. */
    async get(request: TokenRequest, signal: AbortSignal | undefined): Promise<AccessToken> {
      // Checked before a request begins, because no caller would await its failure.
      signal?.throwIfAborted()
      const key = toKey(request)
      const known = tokens.get(key)
      if (known && deps.clock.monotonic() < known.refreshAt) return known
      const flight = pending.get(key) ?? fetchToken(key, request)
      pending.set(key, flight)
      return untilAborted(flight, signal)
    },
    /** Forgets a refused token, unless another one has replaced it. */
    drop(request: TokenRequest, token: AccessToken): void {
      const key = toKey(request)
      if (tokens.peek(key) === token) tokens.delete(key)
    },
  }
}

function toKey({ challenge: { realm, service }, scope, credential }: TokenRequest): string {
  return JSON.stringify([realm.href, service, scope, getFingerprint(credential)])
}

/** Returns the scope that allows to pull a repository. */
export const pullScope = (name: string) => `repository:${name}:pull`

/** Describes the realm and service of a Bearer challenge. */
export interface BearerChallenge {
  readonly realm: URL
  readonly service: string | undefined
}

export interface AccessToken {
  readonly value: string
  /** Monotonic ms. */
  readonly obtainedAt: number
  /** Monotonic ms: the time from which the token has to be replaced. */
  readonly refreshAt: number
}

/**
 * Requests a token from a realm: by GET, with Basic authentication for a password, or by POST for a refresh token.
 * https://distribution.github.io/distribution/spec/auth/token/ and …/oauth/
 */
async function requestToken(
  host: string,
  challenge: BearerChallenge,
  scope: string,
  credential: Credential | undefined,
  { transport, clock }: { transport: Transport; clock: Clock },
): Promise<AccessToken> {
  const response = await transport.send(createTransportRequest(challenge, scope, credential))
  const where = `${host} (${redact(challenge.realm.origin + challenge.realm.pathname)})`
  if (response.status !== 200) throw await toTokenError(where, response, credential, clock)
  const token = parseToken(
    await readJsonObject(await readWholeBody(response, maxResponseBytes, where)),
    clock.monotonic(),
  )
  if (!token) throw new UpstreamError('invalid', 502, `${where} answered without a token.`)
  return token
}

/** Returns the Authorization header's value for a user name and password. */
export function createBasicAuthorization(username: string, password: string): string {
  return `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`
}

function createTransportRequest(
  challenge: BearerChallenge,
  scope: string,
  credential: Credential | undefined,
): TransportRequest {
  const parameters: [string, string][] = [['scope', scope]]
  if (challenge.service !== undefined) parameters.unshift(['service', challenge.service])
  if (credential?.kind === 'identity-token') {
    const form = new URLSearchParams([
      ['grant_type', 'refresh_token'],
      ...parameters,
      ['client_id', clientId],
      ['refresh_token', credential.token],
    ])
    const headers = { 'content-type': 'application/x-www-form-urlencoded' }
    return { method: 'POST', url: challenge.realm, headers, body: form.toString(), pool: 'metadata' }
  }
  const url = new URL(challenge.realm)
  for (const [name, value] of parameters) url.searchParams.append(name, value)
  if (credential?.kind !== 'password') return { method: 'GET', url, headers: {}, pool: 'metadata' }
  url.searchParams.append('account', credential.username)
  const headers = { authorization: createBasicAuthorization(credential.username, credential.password) }
  return { method: 'GET', url, headers, pool: 'metadata' }
}

async function toTokenError(
  where: string,
  response: TransportResponse,
  credential: Credential | undefined,
  clock: Clock,
): Promise<UpstreamError> {
  const { status } = response
  const secrets = getSecrets(credential)
  if (status === 429) return toLimitError(where, response, clock, (text) => parseReason(text, secrets))
  const reason = await readReason(response, secrets)
  const message = withReason(`${where} answered ${status} when asked for a token`, reason)
  if (status >= 500) return new TransientError('unavailable', 502, message, { breaksCircuit: true })
  // Servers differ in the status for a refused refresh token: RFC 6749 §5.2 says 400.
  if (status === 400 || isDenial(status)) {
    const whom = credential ? 'refused the credential' : 'gives no token without a credential'
    return new UpstreamError('denied', status === 400 ? 401 : status, withReason(`${where} ${whom}`, reason))
  }
  return new UpstreamError('invalid', 502, message)
}

function parseToken(json: Record<string, unknown> | undefined, now: number): AccessToken | undefined {
  const value = json?.['token'] || json?.['access_token']
  if (typeof value !== 'string' || !/^[\x21-\x7e]+$/.test(value)) return undefined
  const expiresIn = json?.['expires_in']
  const lifetimeMs = (typeof expiresIn === 'number' && expiresIn > 0 ? expiresIn : 60) * 1000
  return { value, obtainedAt: now, refreshAt: now + Math.max(lifetimeMs - 10_000, lifetimeMs / 2) }
}
