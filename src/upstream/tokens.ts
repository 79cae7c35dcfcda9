import { readJsonObject } from '../lib/json.ts'
import { redact } from '../lib/logger.ts'
import type { Clock } from '../lib/time.ts'
import { readSmallBody } from './body.ts'
import { type Credential, secretsOf } from './credential.ts'
import { readReason, reasonIn, withReason } from './failures.ts'
import { limitFailure } from './limited-error.ts'
import { isDenial } from './refusal.ts'
import { TransientError } from './transient-error.ts'
import type { Answer, Exchange, ExchangeRequest } from './transport.ts'
import { UpstreamError } from './upstream.ts'

/** What a Bearer challenge asks a token for. */
export interface BearerChallenge {
  readonly realm: URL
  readonly service: string | undefined
}

export interface Token {
  readonly value: string
  /** Monotonic ms. */
  readonly obtainedAt: number
  /** Monotonic ms: ask for another one from then on. */
  readonly refreshAt: number
}

const answerBytes = 1024 * 1024
const clientId = 'dev-mirror'

/**
 * Asks a realm for a token: by GET, with Basic when there is a password, or by POST for a refresh token.
 * https://distribution.github.io/distribution/spec/auth/token/ and …/oauth/
 */
export async function requestToken(
  host: string,
  challenge: BearerChallenge,
  scope: string,
  credential: Credential | undefined,
  { exchange, clock }: { exchange: Exchange; clock: Clock },
): Promise<Token> {
  const answer = await exchange.send(requestFor(challenge, scope, credential))
  const where = `${host} (${redact(challenge.realm.origin + challenge.realm.pathname)})`
  if (answer.status !== 200) throw await refusal(where, answer, credential, clock)
  const token = parseToken(await readJsonObject(await readSmallBody(answer, answerBytes, where)), clock.monotonic())
  if (!token) throw new UpstreamError('invalid', 502, `${where} answered with something that holds no token.`)
  return token
}

/** The Authorization header's value for a user name and password. */
export function basicAuthorization(username: string, password: string): string {
  return `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`
}

function requestFor(challenge: BearerChallenge, scope: string, credential: Credential | undefined): ExchangeRequest {
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
    return { method: 'POST', url: challenge.realm, headers, body: form.toString(), lane: 'questions' }
  }
  const url = new URL(challenge.realm)
  for (const [name, value] of parameters) url.searchParams.append(name, value)
  if (credential?.kind !== 'password') return { method: 'GET', url, headers: {}, lane: 'questions' }
  url.searchParams.append('account', credential.username)
  const headers = { authorization: basicAuthorization(credential.username, credential.password) }
  return { method: 'GET', url, headers, lane: 'questions' }
}

async function refusal(
  where: string,
  answer: Answer,
  credential: Credential | undefined,
  clock: Clock,
): Promise<UpstreamError> {
  const { status } = answer
  const secrets = secretsOf(credential)
  if (status === 429) return limitFailure(where, answer, clock, (text) => reasonIn(text, secrets))
  const reason = await readReason(answer, secrets)
  const message = withReason(`${where} answered ${status} when asked for a token`, reason)
  if (status >= 500) return new TransientError('unavailable', 502, message, { breaksCircuit: true })
  // Servers differ in the status for a refused refresh token: RFC 6749 §5.2 says 400.
  if (status === 400 || isDenial(status)) {
    const whom = credential ? 'refused the credential' : 'gives no token without a credential'
    return new UpstreamError('denied', status === 400 ? 401 : status, withReason(`${where} ${whom}`, reason))
  }
  return new UpstreamError('invalid', 502, message)
}

function parseToken(answer: Record<string, unknown> | undefined, now: number): Token | undefined {
  const value = answer?.['token'] || answer?.['access_token']
  if (typeof value !== 'string' || !/^[\x21-\x7e]+$/.test(value)) return undefined
  const told = answer?.['expires_in']
  const lifetimeMs = (typeof told === 'number' && told > 0 ? told : 60) * 1000
  return { value, obtainedAt: now, refreshAt: now + Math.max(lifetimeMs - 10_000, lifetimeMs / 2) }
}
