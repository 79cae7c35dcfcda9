import type { LookupAddress } from 'node:dns'
import { LRUCache } from 'lru-cache'
import { untilAborted } from '../lib/async.ts'
import type { Clock } from '../lib/time.ts'
import { parseChallenges } from '../oci/headers.ts'
import type { Identity } from '../oci/registry.ts'
import { toUpstreamError } from './failures.ts'
import type { Credential, Credentials, Identify } from './identity.ts'
import {
  basicAuthorization,
  type BearerChallenge,
  createTokenCache,
  pullScope,
  type AccessToken,
  type TokenCache,
  type TokenRequest,
} from './tokens.ts'
import type { RedirectTargets } from './transport.ts'
import { type TransportResponse, createTransport, type TransportOptions } from './transport.ts'
import { type AddressGuard, createAddressGuard, mayReceiveCredential, findRepository } from './trust.ts'
import { UpstreamError } from './upstream.ts'

/** Answers an upstream's challenges: with tokens, with a password, or as nobody. */
interface Authorizer {
  /**
   * Sends a request about a repository until it is not answered with a 401 that could be mended. `send` gets the Authorization
   * header's value. Without a credential the upstream is asked as nobody; with one never.
   */
  send(
    call: {
      readonly name: string
      readonly credential: Credential | undefined
      readonly signal?: AbortSignal | undefined
    },
    send: (authorization: string | undefined) => Promise<TransportResponse>,
  ): Promise<{ readonly answer: TransportResponse; readonly identity: Identity }>
}

interface AuthorizerOptions {
  readonly host: string
  readonly url: URL
  readonly tokenHosts: readonly string[]
  readonly credentials: Credentials
  readonly identify: Identify
  readonly tokens: TokenCache
  readonly clock: Clock
  /** GET of `/v2/`, as nobody: where clients ask first what a registry wants. */
  readonly ping: () => Promise<TransportResponse>
}

type Authorization =
  | {
      readonly header: string
      readonly challenge: Challenge
      readonly request: TokenRequest
      readonly token: AccessToken
    }
  | { readonly header: string; readonly challenge: Challenge; readonly token?: undefined }

/** As a guess, without, with an old token, with a new one. */
const maxSends = 4
/** Answers by which registries hide from nobody what somebody may see. */
const hidingStatuses = [401, 403, 404]
/** How long it is remembered that `/v2/` wants nothing. */
const pingTtlMs = 5 * 60_000

export function createAuthorizer(options: AuthorizerOptions): Authorizer {
  const { host, identify, tokens, clock } = options
  // What the upstream last asked for, so that the next repository is not asked about twice.
  let remembered: Challenge | undefined
  const findChallenge = createChallengeFinder(options)

  return {
    async send({ name, credential, signal }, send) {
      const startedAt = clock.monotonic()
      let current = credential
      let refusedGuess: { readonly challenge: Challenge; readonly error: UpstreamError } | undefined
      let used = await guess()
      let guessed = used !== undefined
      let unasked: Challenge | undefined

      for (let sends = 1; ; sends++) {
        const answer = await send(used?.header)
        const isOwn = answer.redirectHost === undefined
        if (unasked && isOwn && answer.status !== 401) remembered = unasked
        const mended = isOwn && sends < maxSends && (await isMended(answer))
        if (!mended) return { answer, identity: identify(current, host) }
        answer.discard()
      }

      async function isMended(answer: TransportResponse): Promise<boolean> {
        const challenge = answer.status === 401 ? (readChallenge(answer) ?? used?.challenge) : undefined
        try {
          return await (challenge ? mend(challenge) : showCredential(answer))
        } catch (error) {
          answer.discard()
          throw error
        }
      }

      /** Registries answer 404 or 403 to nobody, without a challenge, for what the credential's owner may see. */
      async function showCredential({ status }: TransportResponse): Promise<boolean> {
        if (!current || used || !hidingStatuses.includes(status)) return false
        if (refusedGuess) throw refusedGuess.error
        unasked = (await findChallenge(signal)) ?? { scheme: 'basic' }
        used = await authorize(unasked)
        return used !== undefined
      }

      async function guess(): Promise<Authorization | undefined> {
        if (!remembered) return undefined
        const challenge = remembered
        try {
          return await authorize(challenge)
        } catch (error) {
          if (!(error instanceof UpstreamError) || (error.failure !== 'denied' && error.failure !== 'invalid'))
            throw error
          refusedGuess = { challenge, error }
          return undefined
        }
      }

      /** Decides how to ask again after a 401; false when there is no better way. */
      async function mend(challenge: Challenge): Promise<boolean> {
        const wasGuessed = guessed
        guessed = false
        if (used?.token) {
          tokens.drop(used.request, used.token)
          // A token for another repository can make a registry name another realm (nvcr.io): ask without.
          if (wasGuessed && !isSameChallenge(challenge, used.challenge)) {
            used = undefined
            return true
          }
          if (used.token.obtainedAt >= startedAt) return false
        } else if (used && isSameChallenge(challenge, used.challenge)) {
          const renewed = current && (await options.credentials.renew(current))
          if (!renewed) return false
          current = renewed
        }
        if (refusedGuess && isSameChallenge(challenge, refusedGuess.challenge)) throw refusedGuess.error
        used = await authorize(challenge)
        if (used) remembered = challenge
        return used !== undefined
      }

      async function authorize(challenge: Challenge): Promise<Authorization | undefined> {
        if (current?.kind === 'registry-token') return { header: `Bearer ${current.token}`, challenge }
        if (challenge.scheme === 'bearer') return authorizeByToken(challenge)
        if (current?.kind !== 'password') return undefined
        return { header: basicAuthorization(current.username, current.password), challenge }
      }

      async function authorizeByToken(challenge: Challenge & BearerChallenge): Promise<Authorization> {
        if (current && !mayReceiveCredential(challenge.realm, options.url, options.tokenHosts)) {
          throw untrustedRealm(host, challenge.realm)
        }
        const request = { challenge, scope: pullScope(name), credential: current }
        try {
          const token = await tokens.get(request, signal)
          return { header: `Bearer ${token.value}`, challenge, request, token }
        } catch (error) {
          if (!current || !(error instanceof UpstreamError) || error.failure !== 'denied') throw error
          const renewed = await options.credentials.renew(current)
          if (!renewed) throw error
          current = renewed
          const token = await tokens.get({ ...request, credential: renewed }, signal)
          return { header: `Bearer ${token.value}`, challenge, request: { ...request, credential: renewed }, token }
        }
      }
    },
  }
}

/** Finds what a registry wants that has not said so by itself; undefined when it wants nothing. Asks once for all who ask. */
function createChallengeFinder({ host, clock, ping }: AuthorizerOptions) {
  let known: { readonly challenge: Challenge | undefined; readonly until: number } | undefined
  let flight: Promise<Challenge | undefined> | undefined

  async function discover(): Promise<Challenge | undefined> {
    const answer = await ping()
    if (answer.status === 429 || answer.status >= 500) throw await toUpstreamError(host, answer, clock)
    answer.discard()
    const isOwn = answer.redirectHost === undefined && answer.status === 401
    known = { challenge: isOwn ? readChallenge(answer) : undefined, until: clock.monotonic() + pingTtlMs }
    return known.challenge
  }

  return async (signal: AbortSignal | undefined): Promise<Challenge | undefined> => {
    if (known && clock.monotonic() < known.until) return known.challenge
    // Before a request begins whose failure nobody would be there to meet.
    signal?.throwIfAborted()
    flight ??= discover().finally(() => (flight = undefined))
    return untilAborted(flight, signal)
  }
}

function untrustedRealm(host: string, realm: URL): UpstreamError {
  const message =
    `${host} wants its credential sent to ${realm.protocol}//${realm.host}, which is not known to belong to it. ` +
    `If it does, add ${realm.host} to upstreams."${host}".tokenHosts.`
  return new UpstreamError('denied', 401, message)
}

/** What a 401 answer asks for. */
type Challenge =
  | ({ readonly scheme: 'bearer'; readonly scope: string | undefined } & BearerChallenge)
  | { readonly scheme: 'basic' }

/** The challenge of an answer that can be met: a token's before a password's. */
function readChallenge(answer: TransportResponse): Challenge | undefined {
  const challenges = parseChallenges(answer.header('www-authenticate') ?? '')
  for (const { scheme, parameters } of challenges) {
    const realm = parameters.get('realm') ?? ''
    if (scheme !== 'bearer' || !URL.canParse(realm)) continue
    const url = new URL(realm)
    if (url.protocol !== 'http:' && url.protocol !== 'https:') continue
    url.hash = ''
    return { scheme: 'bearer', realm: url, service: parameters.get('service'), scope: parameters.get('scope') }
  }
  return challenges.some(({ scheme }) => scheme === 'basic') ? { scheme: 'basic' } : undefined
}

/** Whether two challenges ask for the same, whatever the repository. */
function isSameChallenge(a: Challenge, b: Challenge): boolean {
  if (a.scheme === 'basic' || b.scheme === 'basic') return a.scheme === b.scheme
  return a.realm.href === b.realm.href && a.service === b.service
}

interface RedirectTargetsOptions extends TransportOptions {
  readonly tokenHosts: readonly string[]
  readonly clock: Clock
}

interface Target {
  readonly tokens: TokenCache
  /** By repository: what the target asked for last. */
  readonly remembered: LRUCache<string, TokenRequest>
  close(): Promise<void>
}

const maxTargets = 16
const maxRepositories = 1000
/** A longer scope is not repeated. */
const maxScopeLength = 1000

export function createRedirectTargets(options: RedirectTargetsOptions): RedirectTargets {
  const { clock } = options
  const targets = new LRUCache<string, Target>({ max: maxTargets })

  function open(url: URL): Target {
    const transport = createTransport({ ...options, host: url.host, guard: createTargetGuard(url, options) })
    return {
      tokens: createTokenCache(url.host, { transport, clock }),
      remembered: new LRUCache({ max: maxRepositories }),
      close: () => transport.close(),
    }
  }

  return {
    async send(url, signal, ask) {
      const before = targets.get(url.origin)
      const repository = findRepository(url)!
      const startedAt = clock.monotonic()

      const known = before?.remembered.get(repository)
      const guessed = before && known && (await getTokenUnlessRefused(before.tokens, known, signal))
      const answer = await ask(guessed && `Bearer ${guessed.value}`)
      if (answer.status !== 401) return answer
      // Not before it was connected to: then it is known how near it is.
      const target = targets.get(url.origin) ?? open(url)
      targets.set(url.origin, target)
      if (known && guessed) {
        target.tokens.drop(known, guessed)
        if (guessed.obtainedAt >= startedAt) return answer
      }
      const request = toTokenRequest(readChallenge(answer), repository, url)
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
async function getTokenUnlessRefused(
  tokens: TokenCache,
  request: TokenRequest,
  signal: AbortSignal | undefined,
): Promise<AccessToken | undefined> {
  try {
    return await tokens.get(request, signal)
  } catch (error) {
    if (error instanceof UpstreamError && (error.failure === 'denied' || error.failure === 'invalid')) return undefined
    throw error
  }
}

/** What to ask the target's realm for; undefined for a challenge that cannot be answered without a credential. */
function toTokenRequest(challenge: Challenge | undefined, repository: string, url: URL): TokenRequest | undefined {
  if (challenge?.scheme !== 'bearer') return undefined
  if (url.protocol === 'https:' && challenge.realm.protocol !== 'https:') return undefined
  const { scope } = challenge
  const wanted = scope && scope.length <= maxScopeLength ? scope : pullScope(repository)
  return { challenge, scope: wanted, credential: undefined }
}

/** Lets the target name no realm that is more private than the target itself, nor one that the upstream may not name. */
function createTargetGuard(url: URL, { guard, tokenHosts }: RedirectTargetsOptions): AddressGuard {
  const own = guard.getClass(url)
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
    getClass: (to) => narrower.getClass(to),
  }
}
