import { UpstreamError } from './upstream.ts'

/** Who we are to an upstream. */
export type Credential =
  | { readonly kind: 'password'; readonly username: string; readonly password: string }
  /** An OAuth2 refresh token, as `docker login` gets it from some registries. */
  | { readonly kind: 'identity-token'; readonly token: string }
  /** A bearer token that the registry itself takes, as some tools write it into Docker's config.json. */
  | { readonly kind: 'registry-token'; readonly token: string }

/** Where an upstream's credential comes from. */
export interface Credentials {
  /** The credential as it is now; undefined when there is none. Throws an UpstreamError (denied) when it cannot be had. */
  find(): Promise<Credential | undefined>
  /** After the upstream refused a credential: another one than that, if the source has one by now. */
  renew(refused: Credential): Promise<Credential | undefined>
}

/** A credential from a user name and a secret, as Docker keeps them: the name `<token>` marks a refresh token. */
export function credentialOf(username: string, secret: string): Credential {
  if (username === '<token>') return { kind: 'identity-token', token: secret }
  return { kind: 'password', username, password: secret }
}

/** What of a credential must not be shown to anybody. */
export function secretsOf(credential: Credential | undefined): string[] {
  if (!credential) return []
  if (credential.kind !== 'password') return [credential.token]
  return [credential.password, `${credential.username}:${credential.password}`]
}

/** What of an Authorization header must not be shown to anybody. */
export function secretsIn(authorization: string): string[] {
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
 * The error of a credential that is configured and cannot be had: never a reason to ask as nobody instead. The upstream has
 * said nothing, so it is an outage and no refusal: what is cached is still served.
 */
export function unusableCredential(host: string, why: string): UpstreamError {
  return new UpstreamError('unavailable', 503, `The credential for ${host} cannot be used: ${why}.`)
}
