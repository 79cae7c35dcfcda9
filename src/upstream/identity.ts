import { createHmac, randomBytes } from 'node:crypto'
import { parseObject } from '../lib/json.ts'
import { anonymousIdentity, type Identity, parseIdentity } from '../oci/registry.ts'
import { UpstreamError } from './upstream.ts'

/** Limits the characters of a token; no registry issues longer ones. */
const maxTokenLength = 64 * 1024
/** Claims that identify a token and its time, not its account. https://www.rfc-editor.org/rfc/rfc7519#section-4.1 */
const volatileClaims = new Set(['exp', 'iat', 'nbf', 'jti'])
const processKey = randomBytes(32)

/** Describes a credential for an upstream. */
export type Credential =
  | { readonly kind: 'password'; readonly username: string; readonly password: string }
  /** Holds an OAuth2 refresh token, as `docker login` receives it from some registries. */
  | { readonly kind: 'identity-token'; readonly token: string }
  /** Holds a bearer token that the registry itself accepts, as some tools write it into Docker's config.json. */
  | { readonly kind: 'registry-token'; readonly token: string }

/** Provides an upstream's credential. */
export interface Credentials {
  /** Returns the current credential; undefined when there is none. Throws an UpstreamError (unavailable) when it cannot be read. */
  find(): Promise<Credential | undefined>
  /** Returns a credential other than the refused one, if the source has one by now; undefined otherwise. */
  renew(refused: Credential): Promise<Credential | undefined>
}

/** Makes a credential of a user name and a secret, as Docker stores them: the name `<token>` marks a refresh token. */
export function toCredential(username: string, secret: string): Credential {
  if (username === '<token>') return { kind: 'identity-token', token: secret }
  return { kind: 'password', username, password: secret }
}

/** Lists the parts of a credential that no message may show. */
export function getSecrets(credential: Credential | undefined): string[] {
  if (!credential) return []
  if (credential.kind !== 'password') return [credential.token]
  return [credential.password, `${credential.username}:${credential.password}`]
}

/** Lists the parts of an Authorization header that no message may show. */
export function parseSecrets(authorization: string): string[] {
  const [scheme = '', value = ''] = authorization.split(' ')
  if (scheme !== 'Basic') return [value]
  const pair = Buffer.from(value, 'base64').toString()
  return [value, pair, pair.slice(pair.indexOf(':') + 1)]
}

export function isSameCredential(a: Credential, b: Credential): boolean {
  if (a.kind === 'password') return b.kind === 'password' && a.username === b.username && a.password === b.password
  return a.kind === b.kind && a.token === b.token
}

/**
 * Creates the error for a configured credential that cannot be read. The request never falls back to anonymous. The upstream
 * refused nothing, so the error is an outage, and cached content is still served.
 */
export function createUnusableCredentialError(host: string, why: string, fault?: CredentialFault): UpstreamError {
  return new CredentialError(host, why, fault)
}

/** Tells what makes a credential of Docker's config.json unusable: the file, or the helper that the setting `key` names. */
export type CredentialFault =
  | { readonly in: 'config' | 'unreadable-config' }
  | { readonly in: 'missing-helper' | 'failed-helper'; readonly program: string; readonly key: string }

/** Reports a credential that cannot be used. */
export class CredentialError extends UpstreamError {
  /** Is undefined for credentials from elsewhere than Docker's config.json. */
  readonly fault: CredentialFault | undefined

  constructor(host: string, why: string, fault: CredentialFault | undefined) {
    super('unavailable', 503, `The credential for ${host} cannot be used: ${why}.`)
    this.fault = fault
  }
}

/**
 * Derives the identity of a credential: `anonymous`, or a keyed hash that reveals nothing about the credential without the key. Two
 * credentials share an identity only if the upstream certainly grants both the same rights.
 */
export type Identify = (credential: Credential | undefined, host: string) => Identity

/**
 * Creates the function that derives identities with this key.
 *
 * A user name does not identify an account: every user is `AWS` to ECR and `oauth2accesstoken` to Google, and ghcr.io ignores the
 * name beside a token. So the identity covers the secret too, and a credential with another secret has no grants until the upstream
 * has answered it. A JSON Web Token (such as Azure's refresh tokens) names its account itself: its claims count, without those that
 * change with every token.
 */
export function createIdentify(key: Uint8Array): Identify {
  const known = new WeakMap<Credential, { readonly host: string; readonly identity: Identity }>()
  return (credential, host) => {
    if (!credential) return anonymousIdentity
    const before = known.get(credential)
    if (before?.host === host) return before.identity
    const identity = toIdentity(key, credential, host)
    known.set(credential, { host, identity })
    return identity
  }
}

function toIdentity(key: Uint8Array, credential: Credential, host: string): Identity {
  const [username, secret] = getParts(credential)
  const account = findAccount(secret)
  const kind = account === undefined ? 'credential' : 'account'
  return parseIdentity(`${kind}-${computeKeyedHash(key, [host, credential.kind, username, account ?? secret])}`)
}

/** Names exactly this credential within this process: a key for what belongs to it alone, such as access tokens. */
export function getFingerprint(credential: Credential | undefined): string {
  if (!credential) return 'anonymous'
  return computeKeyedHash(processKey, [credential.kind, ...getParts(credential)])
}

function getParts(credential: Credential): [username: string, secret: string] {
  return credential.kind === 'password' ? [credential.username, credential.password] : ['', credential.token]
}

function computeKeyedHash(key: Uint8Array, parts: readonly string[]): string {
  return createHmac('sha256', key).update(JSON.stringify(parts)).digest('hex').slice(0, 32)
}

/** Returns the lasting claims of a JSON Web Token that names an issuer and a subject; undefined for any other secret. */
function findAccount(secret: string): string | undefined {
  const [header, claims, signature, more] = secret.length > maxTokenLength ? [] : secret.split('.')
  if (!header || !claims || !signature || more !== undefined) return undefined
  if (typeof parseObject(decode(header))?.['alg'] !== 'string') return undefined
  const all = parseObject(decode(claims)) ?? {}
  if (![all['iss'], all['sub']].every((claim) => typeof claim === 'string' && claim !== '')) return undefined
  const lasting = Object.entries(all).filter(([claim]) => !volatileClaims.has(claim))
  return JSON.stringify(lasting.toSorted(([a], [b]) => (a < b ? -1 : 1)))
}

function decode(part: string): string {
  return Buffer.from(part, 'base64url').toString()
}
