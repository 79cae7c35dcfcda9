import type { LookupAddress } from 'node:dns'
import { LRUCache } from 'lru-cache'
import type { Clock } from '../lib/time.ts'
import { createAddressGuard, type AddressGuard } from './address-guard.ts'
import { readChallenge, type Challenge } from './challenge.ts'
import { createExchange, type Answer, type ExchangeOptions } from './transport.ts'
import type { Token } from './tokens.ts'
import { createTokenCache, pullScope, type TokenCache, type TokenRequest } from './token-cache.ts'
import { repositoryIn } from './trust.ts'
import { UpstreamError } from './upstream.ts'

/**
 * The registries that an upstream redirects to, as lscr.io does to ghcr.io. They want tokens of their own, and get them as anybody
 * would: the upstream's credential is none of theirs.
 */
export interface RedirectTargets {
  /** Sends a request to a URL that names a repository, and answers the target's challenge. `ask` gets the Authorization header's value. */
  send(
    url: URL,
    signal: AbortSignal | undefined,
    ask: (authorization: string | undefined) => Promise<Answer>,
  ): Promise<Answer>
  close(): Promise<void>
}

export interface RedirectTargetsOptions extends ExchangeOptions {
  readonly tokenHosts: readonly string[]
  readonly clock: Clock
}

interface Target {
  readonly tokens: TokenCache
  /** By repository: what the target asked for last. */
  readonly remembered: LRUCache<string, TokenRequest>
  close(): Promise<void>
}

const mostTargets = 16
const mostRepositories = 1000
/** A longer scope is not repeated. */
const longestScope = 1000

export function createRedirectTargets(options: RedirectTargetsOptions): RedirectTargets {
  const { clock } = options
  const targets = new LRUCache<string, Target>({ max: mostTargets })

  function open(url: URL): Target {
    const exchange = createExchange({ ...options, host: url.host, guard: guardOf(url, options) })
    return {
      tokens: createTokenCache(url.host, { exchange, clock }),
      remembered: new LRUCache({ max: mostRepositories }),
      close: () => exchange.close(),
    }
  }

  return {
    async send(url, signal, ask) {
      const before = targets.get(url.origin)
      const repository = repositoryIn(url)!
      const startedAt = clock.monotonic()

      const known = before?.remembered.get(repository)
      const guessed = before && known && (await getOrNothing(before.tokens, known, signal))
      const answer = await ask(guessed && `Bearer ${guessed.value}`)
      if (answer.status !== 401) return answer
      // Not before it was connected to: then it is known how near it is.
      const target = targets.get(url.origin) ?? open(url)
      targets.set(url.origin, target)
      if (known && guessed) {
        target.tokens.drop(known, guessed)
        if (guessed.obtainedAt >= startedAt) return answer
      }
      const request = requestFor(readChallenge(answer), repository, url)
      if (!request) return answer
      answer.discard()
      const token = await target.tokens.get(request, signal)
      const second = await ask(`Bearer ${token.value}`)
      if (second.status !== 401) target.remembered.set(repository, request)
      return second
    },
    async close() {
      await Promise.all([...targets.values()].map((target) => target.close()))
    },
  }
}

/** A token by what is remembered; when that is refused, the target is asked again what it wants. */
async function getOrNothing(
  tokens: TokenCache,
  request: TokenRequest,
  signal: AbortSignal | undefined,
): Promise<Token | undefined> {
  try {
    return await tokens.get(request, signal)
  } catch (error) {
    if (error instanceof UpstreamError && (error.failure === 'denied' || error.failure === 'invalid')) return undefined
    throw error
  }
}

/** What to ask the target's realm for; undefined for a challenge that cannot be answered without a credential. */
function requestFor(challenge: Challenge | undefined, repository: string, url: URL): TokenRequest | undefined {
  if (challenge?.scheme !== 'bearer') return undefined
  if (url.protocol === 'https:' && challenge.realm.protocol !== 'https:') return undefined
  const { scope } = challenge
  const wanted = scope && scope.length <= longestScope ? scope : pullScope(repository)
  return { challenge, scope: wanted, credential: undefined }
}

/** Lets the target name no realm that is more private than the target itself, nor one that the upstream may not name. */
function guardOf(url: URL, { guard, tokenHosts }: RedirectTargetsOptions): AddressGuard {
  const own = guard.classOf(url)
  const narrower = createAddressGuard({
    host: url.host,
    url,
    ownClass: own,
    allowPrivate: own !== 'public',
    tokenHosts,
    lookup: (hostname, options, callback) =>
      guard.lookup(hostname, options, (error, addresses) => callback(error, addresses as LookupAddress[])),
  })
  return {
    checkLiteral(to) {
      guard.checkLiteral(to)
      narrower.checkLiteral(to)
    },
    lookup: narrower.lookup,
    classOf: (to) => narrower.classOf(to),
  }
}
