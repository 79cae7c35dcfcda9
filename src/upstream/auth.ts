import type { LookupAddress } from 'node:dns'
import { LRUCache } from 'lru-cache'
import { untilAborted } from '../lib/async.ts'
import type { Clock } from '../lib/time.ts'
import { parseChallenges } from '../oci/headers.ts'
import type { Identity } from '../oci/registry.ts'
import { toUpstreamError } from './failures.ts'
import type { Credential, Credentials, Identify } from './identity.ts'
import {
  createBasicAuthorization,
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

/** Limits the attempts: with a remembered challenge, without authorization, with an old token, with a new one. */
const maxSends = 4
/** Lists the statuses by which registries hide content from anonymous requests. */
const hidingStatuses = [401, 403, 404]
/** Sets the time for which the response to `/v2/` is remembered. */
const pingTtlMs = 5 * 60_000
const maxTargets = 16
const maxRepositories = 1000
/** Limits the characters of a scope; a longer scope in a challenge is replaced. */
const maxScopeLength = 1000

interface AuthorizerOptions {
  readonly host: string
  readonly url: URL
  readonly tokenHosts: readonly string[]
  readonly credentials: Credentials
  readonly identify: Identify
  readonly tokens: TokenCache
  readonly clock: Clock
  /** Sends an anonymous GET of `/v2/`, to which registries respond with their challenge. */
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

/** Sends a request with this value of the Authorization header. */
type SendAuthorized = (authorization: string | undefined) => Promise<TransportResponse>

interface AuthorizedCall {
  /** Names the repository. */
  readonly name: string
  readonly credential: Credential | undefined
  readonly signal?: AbortSignal | undefined
}

/** Creates the authorizer of an upstream: answers its challenges with tokens, with a password, or anonymously. */
export function createAuthorizer(options: AuthorizerOptions) {
  const { host, identify, tokens, clock } = options
  // The upstream's last challenge, so that the first request for the next repository carries authorization.
  let remembered: Challenge | undefined
  const findChallenge = createChallengeFinder(options)

  return {
    /**
     * Sends a request about a repository, and repeats it while a better Authorization header can avoid the refusal. Tokens are
     * requested anonymously only when there is no credential.
     */
    async send(
      { name, credential, signal }: AuthorizedCall,
      send: SendAuthorized,
    ): Promise<{ readonly response: TransportResponse; readonly identity: Identity }> {
      const startedAt = clock.monotonic()
      let current = credential
      let refusedGuess: { readonly challenge: Challenge; readonly error: UpstreamError } | undefined
      let used = await guess()
      let guessed = used !== undefined
      let unasked: Challenge | undefined

      for (let sends = 1; ; sends++) {
        const response = await send(used?.header)
        const isOwn = response.redirectHost === undefined
        if (unasked && isOwn && response.status !== 401) remembered = unasked
        const isRetried = isOwn && sends < maxSends && (await prepareRetry(response))
        if (!isRetried) return { response, identity: identify(current, host) }
        response.discard()
      }

      async function prepareRetry(response: TransportResponse): Promise<boolean> {
        const challenge = response.status === 401 ? (readChallenge(response) ?? used?.challenge) : undefined
        try {
          return await (challenge ? answerChallenge(challenge) : showCredential(response))
        } catch (error) {
          response.discard()
          throw error
        }
      }

      /** Sends the credential unasked: some registries respond to anonymous requests with 404 or 403 and no challenge. */
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

      /** Chooses the authorization for a retry after a 401; false when there is none to try. */
      async function answerChallenge(challenge: Challenge): Promise<boolean> {
        const wasGuessed = guessed
        guessed = false
        if (used?.token) {
          tokens.drop(used.request, used.token)
          // Retries without authorization, because a token for another repository can make a registry name another realm (nvcr.io).
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
        return { header: createBasicAuthorization(current.username, current.password), challenge }
      }

      async function authorizeByToken(challenge: Challenge & BearerChallenge): Promise<Authorization> {
        if (current && !mayReceiveCredential(challenge.realm, options.url, options.tokenHosts)) {
          throw createUntrustedRealmError(host, challenge.realm)
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

/** Creates the function that finds a registry's challenge by `ping`; undefined when there is none. Concurrent calls share one ping. */
function createChallengeFinder({ host, clock, ping }: AuthorizerOptions) {
  let known: { readonly challenge: Challenge | undefined; readonly until: number } | undefined
  let flight: Promise<Challenge | undefined> | undefined

  async function discover(): Promise<Challenge | undefined> {
    const response = await ping()
    if (response.status === 429 || response.status >= 500) throw await toUpstreamError(host, response, clock)
    response.discard()
    const isOwn = response.redirectHost === undefined && response.status === 401
    known = { challenge: isOwn ? readChallenge(response) : undefined, until: clock.monotonic() + pingTtlMs }
    return known.challenge
  }

  return async (signal: AbortSignal | undefined): Promise<Challenge | undefined> => {
    if (known && clock.monotonic() < known.until) return known.challenge
    // Checked before a request begins, because no caller would await its failure.
    signal?.throwIfAborted()
    flight ??= discover().finally(() => (flight = undefined))
    return untilAborted(flight, signal)
  }
}

function createUntrustedRealmError(host: string, realm: URL): UpstreamError {
  const message =
    `${host} asks to send its credential to ${realm.protocol}//${realm.host}, which is not known to belong to it. ` +
    `If it does, add ${realm.host} to upstreams."${host}".tokenHosts.`
  return new UpstreamError('denied', 401, message)
}

/** Describes the authentication that a 401 response asks for. */
type Challenge =
  | ({ readonly scheme: 'bearer'; readonly scope: string | undefined } & BearerChallenge)
  | { readonly scheme: 'basic' }

/** Returns the challenge to answer: Bearer before Basic; undefined when there is neither. */
function readChallenge(response: TransportResponse): Challenge | undefined {
  const challenges = parseChallenges(response.header('www-authenticate') ?? '')
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

/** Checks whether two challenges are the same except for the repository. */
function isSameChallenge(a: Challenge, b: Challenge): boolean {
  if (a.scheme === 'basic' || b.scheme === 'basic') return a.scheme === b.scheme
  return a.realm.href === b.realm.href && a.service === b.service
}

interface RedirectTargetsOptions extends TransportOptions {
  readonly tokenHosts: readonly string[]
  readonly clock: Clock
}

/** Creates the targets of an upstream's redirects; each opens at its first challenge. */
export function createRedirectTargets(options: RedirectTargetsOptions): RedirectTargets {
  const { clock } = options
  const targets = new LRUCache<string, ReturnType<typeof open>>({ max: maxTargets })

  function open(url: URL) {
    const transport = createTransport({ ...options, host: url.host, guard: createTargetGuard(url, options) })
    return {
      tokens: createTokenCache(url.host, { transport, clock }),
      /** Remembers the target's last token request, by repository. */
      remembered: new LRUCache<string, TokenRequest>({ max: maxRepositories }),
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
      const response = await ask(guessed && `Bearer ${guessed.value}`)
      if (response.status !== 401) return response
      // Opened after the first response, because the guard knows the target's address class only after a connection.
      const target = targets.get(url.origin) ?? open(url)
      targets.set(url.origin, target)
      if (known && guessed) {
        target.tokens.drop(known, guessed)
        if (guessed.obtainedAt >= startedAt) return response
      }
      const request = toTokenRequest(readChallenge(response), repository, url)
      if (!request) return response
      response.discard()
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

/** Gets a token for a remembered request; undefined when it is refused, so that the target sends a new challenge. */
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

/** Converts a challenge to an anonymous token request; undefined for a challenge that needs a credential. */
function toTokenRequest(challenge: Challenge | undefined, repository: string, url: URL): TokenRequest | undefined {
  if (challenge?.scheme !== 'bearer') return undefined
  if (url.protocol === 'https:' && challenge.realm.protocol !== 'https:') return undefined
  const { scope } = challenge
  const wanted = scope && scope.length <= maxScopeLength ? scope : pullScope(repository)
  return { challenge, scope: wanted, credential: undefined }
}

/** Creates the guard for a target's realm: it may not be more private than the target, and the upstream's guard applies too. */
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
    isAlwaysAllowed: (to) => guard.isAlwaysAllowed(to) && narrower.isAlwaysAllowed(to),
    checkLiteral(to) {
      guard.checkLiteral(to)
      narrower.checkLiteral(to)
    },
    lookup: narrower.lookup,
    getClass: (to) => narrower.getClass(to),
  }
}
