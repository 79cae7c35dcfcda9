import { createHash, createHmac, randomBytes } from 'node:crypto'
import { readFile, stat } from 'node:fs/promises'
import type { IncomingMessage } from 'node:http'
import { LRUCache } from 'lru-cache'
import { getErrno, exitCode, MirrorError } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { normalizeAddress } from '../lib/network.ts'
import type { Clock } from '../lib/time.ts'
import { OciError } from '../oci/errors.ts'
import { PasswordQueue, startPasswordThread } from './passwords.ts'

const rememberMs = 5 * 60_000
/** Limits the entries for good passwords, and as many for wrong ones, because a client with an old password keeps sending it. */
const maxRemembered = 1000
/** Limits the characters of the header: Base64 of about 3 KB. bcrypt uses the first 72 bytes of a password. */
const maxHeaderLength = 4096
const maxFileBytes = 1024 * 1024
/** Limits the accepted bcrypt cost. A comparison of cost 16 takes seconds, and each step doubles it, so that 31 takes days. */
const maxCost = 16
const defaultCost = 10
const bcryptEntry = /^\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}$/

/** Describes a cached result of bcrypt, which is slow on purpose, while a push is many requests. */
interface CachedResult {
  readonly isGood: boolean
  /** Monotonic ms. */
  readonly until: number
}

/** Provides Basic authentication. https://www.rfc-editor.org/rfc/rfc7617 */
export type BasicAuth = Awaited<ReturnType<typeof createBasicAuth>>

/** Creates the authentication against an htpasswd file of bcrypt entries. Throws MirrorError for a file that cannot be used. */
export async function createBasicAuth(
  path: string,
  { logger, clock }: { readonly logger: Logger; readonly clock: Clock },
) {
  const file = await openPasswordFile(path, logger)
  const thread = await startPasswordThread()
  const queue = new PasswordQueue((password, hash) => thread.compare(password, hash))
  // Separate caches, so that a flood of wrong passwords evicts no good one.
  const good = new LRUCache<string, CachedResult>({ max: maxRemembered })
  const wrong = new LRUCache<string, CachedResult>({ max: maxRemembered })
  const processKey = randomBytes(32)

  function remember(key: string, isGood: boolean): void {
    const findings = isGood ? good : wrong
    findings.set(key, { isGood, until: clock.monotonic() + rememberMs })
  }

  return {
    /**
     * Returns the user's name. Throws an OciError: 401 for a request without valid credentials, 429 while too many passwords wait to be
     * compared, 503 while the password file cannot be used. `client.signal` aborts when the client disconnects.
     */
    authorize: async (request: IncomingMessage, client: { readonly signal: AbortSignal }): Promise<string> => {
      const given = parseBasicAuthorization(request.headers.authorization)
      if (!given) throw createUnauthorizedError()
      const { user, password } = given
      const { hash, isKnown } = (await file.users()).findHash(user)
      // Includes the hash in the file, so that a changed password makes another key.
      const key = createHmac('sha256', processKey)
        .update(JSON.stringify([user, password, hash]))
        .digest('base64')
      const found = good.get(key) ?? wrong.get(key)
      const isRecent = found !== undefined && clock.monotonic() < found.until
      if (found && isRecent) {
        if (!found.isGood) throw createUnauthorizedError()
        // Extends the entry on each use, so that a flood does not stop a push that is under way.
        remember(key, true)
        return user
      }
      const check = { key, address: normalizeAddress(request.socket.remoteAddress ?? ''), user, password, hash }
      const fits = await queue.run({ ...check, isTrusted: found?.isGood === true }, client.signal)
      // Reads the file again, because it may have changed meanwhile.
      const isGood = fits && isKnown && (await file.users()).findHash(user).hash === hash
      remember(key, isGood)
      if (!isGood) throw createUnauthorizedError()
      return user
    },
    /** Returns the reason for which the password file cannot be used now, as one sentence; undefined while it can. */
    getProblem: () => file.getProblem(),
    /** Ends the password thread. The listeners must be closed before. */
    close: () => thread.close(),
  }
}

/** Parses the user name and password of an Authorization header; undefined for any other text. */
function parseBasicAuthorization(
  header: string | undefined,
): { readonly user: string; readonly password: string } | undefined {
  if (header === undefined || header.length > maxHeaderLength) return undefined
  const encoded = /^Basic +([A-Za-z0-9+/=]+) *$/i.exec(header)?.[1]
  const text = encoded === undefined ? undefined : decodeUtf8(Buffer.from(encoded, 'base64'))
  const colon = text?.indexOf(':') ?? -1
  // RFC 7617 allows no control characters; bcrypt in C treats a NUL as the end of the password.
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

function createUnauthorizedError(): OciError {
  return new OciError('UNAUTHORIZED', 401, 'This registry requires a user name and a password.', {
    'www-authenticate': 'Basic realm="mirror", charset="UTF-8"',
  })
}

type Users = ReturnType<typeof parsePasswordFile>

/**
 * Opens an htpasswd file of bcrypt entries. A later change of the file takes effect at once. Throws a MirrorError for a file that cannot
 * be used. https://httpd.apache.org/docs/2.4/misc/password_encryptions.html
 */
export async function openPasswordFile(path: string, logger: Logger) {
  let version = await getFileVersion(path)
  let users: Users | UnusablePasswordFile = await readPasswordFile(path)
  /** Is true if reading this version failed, so that it has to be read again. */
  let isUnread = false
  let reading: Promise<void> | undefined

  async function reload(): Promise<void> {
    const found = await getFileVersion(path)
    if (found === version && !isUnread) return
    const before = users
    try {
      users = await readPasswordFile(path)
      isUnread = false
      logger.info({ path }, 'read the changed password file')
    } catch (error) {
      if (!(error instanceof UnusablePasswordFile)) throw error
      users = error
      isUnread = getErrno(error.cause) !== undefined
      const isKnown = before instanceof UnusablePasswordFile && before.message === error.message && found === version
      if (!isKnown) logger.error({ path, reason: error.why }, 'the password file cannot be used: no client can log in')
    }
    version = found
  }

  async function latest(): Promise<Users | UnusablePasswordFile> {
    await (reading ??= reload().finally(() => (reading = undefined)))
    return users
  }

  return {
    /** Returns the reason for which the file cannot be used now, as one sentence; undefined while it can. */
    async getProblem(): Promise<string | undefined> {
      const found = await latest()
      return found instanceof UnusablePasswordFile ? found.message : undefined
    },
    /** Returns the current users. Throws an OciError 503 while the file cannot be used. */
    async users(): Promise<Users> {
      const found = await latest()
      if (!(found instanceof UnusablePasswordFile)) return found
      // Refuses the previous users, because the changed file may no longer contain them.
      throw new OciError('UNAVAILABLE', 503, 'The password file cannot be used; the log says why.', {
        'retry-after': '1',
      })
    },
  }
}

/** Checks a password file. Throws a MirrorError for a file that cannot be used. */
export async function checkPasswordFile(path: string): Promise<void> {
  await readPasswordFile(path)
}

async function readPasswordFile(path: string): Promise<Users> {
  try {
    if ((await stat(path)).size > maxFileBytes) throw new UnusablePasswordFile(path, 'it is larger than 1 MiB')
    return parsePasswordFile(path, await readFile(path, 'utf8'))
  } catch (error) {
    const code = getErrno(error)
    if (code === undefined) throw error
    throw new UnusablePasswordFile(path, code === 'ENOENT' ? 'it does not exist' : code, error)
  }
}

function parsePasswordFile(path: string, text: string) {
  const hashes = new Map<string, string>()
  for (const [at, line] of text.split(/\r?\n/).entries()) {
    if (line.trim() === '' || line.startsWith('#')) continue
    const colon = line.indexOf(':')
    const hash = line.slice(colon + 1).trim()
    const cost = Number(bcryptEntry.exec(hash)?.[1])
    if (colon < 1 || !(cost >= 4))
      throw new UnusablePasswordFile(path, `line ${at + 1} is not a user name and a bcrypt hash`)
    if (cost > maxCost)
      throw new UnusablePasswordFile(
        path,
        `line ${at + 1} has a bcrypt cost of ${cost}, and more than ${maxCost} is not accepted`,
      )
    hashes.set(line.slice(0, colon), hash)
  }
  const costs = [...hashes.values()].map(getCost)
  // Derives the cost of unknown names from the file, so that it is the same after a restart and cannot be computed without the file.
  const key = createHash('sha256').update(text).digest()
  return {
    /** Returns the user's hash; for an unknown name, a hash that no password matches and that takes as long to compare. */
    findHash(user: string): { readonly hash: string; readonly isKnown: boolean } {
      const hash = hashes.get(user)
      if (hash !== undefined) return { hash, isKnown: true }
      const number = createHmac('sha256', key).update(user).digest().readUInt32BE()
      return { hash: createDecoyHash(costs[number % costs.length] ?? defaultCost), isKnown: false }
    },
  }
}

function getCost(hash: string): number {
  return Number(bcryptEntry.exec(hash)![1])
}

function createDecoyHash(cost: number): string {
  return `$2b$${String(cost).padStart(2, '0')}$CwTycUXWue0Thq9StjUM0uJ8z8vyJjVqK3v0F9kz6m3gK6cQJc1uS`
}

/** Identifies a version of the file; undefined while there is none. */
async function getFileVersion(path: string): Promise<string | undefined> {
  try {
    const { mtimeMs, ctimeMs, size, ino } = await stat(path)
    return `${mtimeMs} ${ctimeMs} ${size} ${ino}`
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    return undefined
  }
}

class UnusablePasswordFile extends MirrorError {
  readonly why: string

  constructor(path: string, why: string, cause?: unknown) {
    super(`The password file ${path} cannot be used: ${why}.`, {
      cause,
      exit: exitCode.usage,
      // Omits -c for an existing file, because it would empty the file.
      hints: [`htpasswd ${getErrno(cause) === 'ENOENT' ? '-cB' : '-B'} '${path}' USER`],
    })
    this.why = why
  }
}
