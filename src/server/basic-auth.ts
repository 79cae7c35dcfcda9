import { createHmac, randomBytes } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import { LRUCache } from 'lru-cache'
import type { Clock } from '../lib/time.ts'
import type { Logger } from '../lib/logger.ts'
import { OciError } from '../oci/errors.ts'
import { plainAddress } from './request-guard.ts'
import { openPasswordFile } from './password-file.ts'
import { PasswordQueue } from './passwords.ts'
import { startPasswordThread } from './password-thread.ts'

/** Basic authentication. https://www.rfc-editor.org/rfc/rfc7617 */
export interface BasicAuth {
  /**
   * The user's name. Throws an OciError: 401 for a request without good credentials, 429 while too many passwords wait to be compared,
   * 503 while the password file cannot be used. `client.signal` aborts when nobody waits for the answer any more.
   */
  readonly authorize: (request: IncomingMessage, client: { readonly signal: AbortSignal }) => Promise<string>
  /** Why the password file cannot be used now, as one sentence; undefined while it can. */
  readonly trouble: () => Promise<string | undefined>
  /** Listeners are to be closed before. */
  close(): Promise<void>
}

/** What bcrypt found. It takes long on purpose, and a push is many requests. */
interface Finding {
  readonly isGood: boolean
  /** Monotonic ms. */
  readonly until: number
}

const rememberMs = 5 * 60_000
/** As many good ones, and as many wrong ones: a client with an old password asks again and again. */
const mostRemembered = 1000
/** Base64 of some 3 KB. Of a password bcrypt takes the first 72 bytes, as every registry that uses it does. */
const longestHeader = 4096

/** Authenticates against an htpasswd file of bcrypt entries. Throws MirrorError for a file that cannot be used. */
export async function createBasicAuth(
  path: string,
  { logger, clock }: { readonly logger: Logger; readonly clock: Clock },
): Promise<BasicAuth> {
  const file = await openPasswordFile(path, logger)
  const thread = await startPasswordThread()
  const queue = new PasswordQueue((password, hash) => thread.compare(password, hash))
  // Apart, so that a flood of wrong passwords displaces no good one.
  const good = new LRUCache<string, Finding>({ max: mostRemembered })
  const wrong = new LRUCache<string, Finding>({ max: mostRemembered })
  const processKey = randomBytes(32)

  function remember(key: string, isGood: boolean): void {
    const findings = isGood ? good : wrong
    findings.set(key, { isGood, until: clock.monotonic() + rememberMs })
  }

  return {
    async authorize(request, client) {
      const given = credentialIn(request.headers.authorization)
      if (!given) throw unauthorized()
      const { user, password } = given
      const { hash, isKnown } = (await file.users()).hashOf(user)
      // With the line of the file: another line for the user makes it another key.
      const key = createHmac('sha256', processKey)
        .update(JSON.stringify([user, password, hash]))
        .digest('base64')
      const found = good.get(key) ?? wrong.get(key)
      const isRecent = found !== undefined && clock.monotonic() < found.until
      if (found && isRecent) {
        if (!found.isGood) throw unauthorized()
        // As long as it is used: a push that is under way is not stopped by a flood.
        remember(key, true)
        return user
      }
      const check = { key, address: plainAddress(request.socket.remoteAddress ?? ''), user, password, hash }
      const fits = await queue.run({ ...check, isTrusted: found?.isGood === true }, client.signal)
      // The file may have changed meanwhile.
      const isGood = fits && isKnown && (await file.users()).hashOf(user).hash === hash
      remember(key, isGood)
      if (!isGood) throw unauthorized()
      return user
    },
    trouble: () => file.trouble(),
    close: () => thread.close(),
  }
}

/** The user name and password of an Authorization header; undefined for anything that is none. */
function credentialIn(header: string | undefined): { readonly user: string; readonly password: string } | undefined {
  if (header === undefined || header.length > longestHeader) return undefined
  const encoded = /^Basic +([A-Za-z0-9+/=]+) *$/i.exec(header)?.[1]
  const text = encoded === undefined ? undefined : decodeUtf8(Buffer.from(encoded, 'base64'))
  const colon = text?.indexOf(':') ?? -1
  // RFC 7617 allows no control characters; bcrypt in C takes a NUL for the end of the password.
  if (text === undefined || colon === -1 || /\p{Cc}/u.test(text)) return undefined
  return { user: text.slice(0, colon), password: text.slice(colon + 1) }
}

function decodeUtf8(bytes: Uint8Array): string | undefined {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch (error) {
    if (error instanceof TypeError) return undefined
    throw error
  }
}

function unauthorized(): OciError {
  return new OciError('UNAUTHORIZED', 401, 'This registry needs a user name and a password.', {
    'www-authenticate': 'Basic realm="mirror", charset="UTF-8"',
  })
}
