import { randomUUID } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import type { Reply } from './faulty-server.ts'

export interface AuthOptions {
  readonly scheme: 'basic' | 'bearer'
  /** Passwords by user name. */
  readonly users?: Readonly<Record<string, string>>
  /** Repositories that only users may read; all of them for `basic`. */
  readonly private?: readonly string[]
  /** `expires_in` of a token, seconds; `null` omits it. */
  readonly expiresIn?: number | null
  /** Real lifetime of a token, ms. */
  readonly livesFor?: number
  /** Another URL of the token endpoint. */
  readonly realm?: string
}

/** Authorizes the requests to a registry. https://distribution.github.io/distribution/spec/auth/token/ */
export interface Auth {
  /** Returns the refusal, or undefined when the request may pass. `name`: the repository of the request, if any. */
  refuse(request: IncomingMessage, name: string | undefined): Reply | undefined
  /** Answers a request to the token endpoint. */
  token(request: IncomingMessage): Reply
}

export function createAuth(options: AuthOptions, url: () => string): Auth {
  const { users = {}, expiresIn = 300, livesFor = Infinity } = options
  const tokens = new Map<string, { scope: string; user: string | undefined; diesAt: number }>()

  /** Returns the user of an `Authorization: Basic`; `null` when the password is wrong. */
  function userOf(request: IncomingMessage): string | null | undefined {
    const encoded = /^Basic (.+)$/.exec(request.headers.authorization ?? '')?.[1]
    if (encoded === undefined) return undefined
    const [name = '', password] = Buffer.from(encoded, 'base64').toString().split(':')
    return users[name] === password ? name : null
  }

  return {
    refuse(request, name) {
      if (options.scheme === 'basic') {
        const user = userOf(request)
        return user ? undefined : refusal('Basic realm="test"')
      }
      const scope = name === undefined ? '' : `repository:${name}:pull`
      const bearer = /^Bearer (.+)$/.exec(request.headers.authorization ?? '')?.[1]
      const token = tokens.get(bearer ?? '')
      const good = token && token.scope === scope && token.diesAt > performance.now()
      if (good && (token.user !== undefined || !options.private?.includes(name ?? ''))) return undefined
      const realm = options.realm ?? `${url()}/token`
      return refusal(`Bearer realm="${realm}",service="test"${scope && `,scope="${scope}"`}`)
    },
    token(request) {
      const user = userOf(request)
      if (user === null) return refusal('Basic realm="token"')
      const scope = new URL(request.url!, url()).searchParams.get('scope') ?? ''
      const token = `token-${randomUUID()}`
      tokens.set(token, { scope, user, diesAt: performance.now() + livesFor })
      const body = { token, ...(expiresIn === null ? {} : { expires_in: expiresIn }) }
      return { status: 200, headers: { 'content-type': 'application/json' }, body: Buffer.from(JSON.stringify(body)) }
    },
  }
}

function refusal(challenge: string): Reply {
  return {
    status: 401,
    headers: { 'www-authenticate': challenge, 'content-type': 'application/json' },
    body: Buffer.from('{"errors":[{"code":"UNAUTHORIZED"}]}'),
  }
}
