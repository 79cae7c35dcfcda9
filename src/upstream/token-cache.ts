import { LRUCache } from 'lru-cache'
import type { Clock } from '../lib/time.ts'
import type { Credential } from './credential.ts'
import { fingerprintOf } from './identity.ts'
import type { Exchange } from './transport.ts'
import { requestToken, type BearerChallenge, type Token } from './tokens.ts'
import { untilAborted } from '../lib/async.ts'

/** The tokens of one upstream, by realm, service, scope and the very credential that got them. */
export interface TokenCache {
  /** A token that is good for a while yet; one request serves all who wait for the same. */
  get(request: TokenRequest, signal: AbortSignal | undefined): Promise<Token>
  /** Forgets a token that was refused, unless another one has taken its place. */
  drop(request: TokenRequest, token: Token): void
}

export interface TokenRequest {
  readonly challenge: BearerChallenge
  /** Of one repository: registries refuse tokens that have grown too long. */
  readonly scope: string
  readonly credential: Credential | undefined
}

const mostTokens = 1000

export function createTokenCache(host: string, deps: { exchange: Exchange; clock: Clock }): TokenCache {
  const tokens = new LRUCache<string, Token>({ max: mostTokens })
  const flights = new Map<string, Promise<Token>>()

  async function fetchToken(key: string, { challenge, scope, credential }: TokenRequest): Promise<Token> {
    try {
      const token = await requestToken(host, challenge, scope, credential, deps)
      tokens.set(key, token)
      return token
    } finally {
      flights.delete(key)
    }
  }

  return {
    async get(request, signal) {
      // Before a request begins whose failure nobody would be there to meet.
      signal?.throwIfAborted()
      const key = keyOf(request)
      const known = tokens.get(key)
      if (known && deps.clock.monotonic() < known.refreshAt) return known
      const flight = flights.get(key) ?? fetchToken(key, request)
      flights.set(key, flight)
      return untilAborted(flight, signal)
    },
    drop(request, token) {
      const key = keyOf(request)
      if (tokens.peek(key) === token) tokens.delete(key)
    },
  }
}

function keyOf({ challenge: { realm, service }, scope, credential }: TokenRequest): string {
  return JSON.stringify([realm.href, service, scope, fingerprintOf(credential)])
}

/** The scope in which a repository is read. */
export const pullScope = (name: string) => `repository:${name}:pull`
