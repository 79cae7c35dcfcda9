import { createHash } from 'node:crypto'
import { readFile, stat } from 'node:fs/promises'
import type { IncomingMessage } from 'node:http'
import { errnoOf, exitCode, MirrorError } from '../lib/errors.ts'
import { OciError } from '../oci/errors.ts'
import { KeyedQueue } from '../store/keyed-queue.ts'

/** The user's name. Throws an OciError 401 for a request without good credentials. */
export type Authorize = (request: IncomingMessage) => Promise<string>

interface Users {
  readonly hashes: ReadonlyMap<string, string>
  /** Of the file, so that a change of it is seen. */
  readonly version: string
  /** Credentials that were found good: bcrypt takes long on purpose, and a push is many requests. */
  readonly good: Set<string>
}

const mostRemembered = 1000
/** Compared with when there is no such user, so that the answer takes as long. */
const nobodysHash = '$2b$10$CwTycUXWue0Thq9StjUM0uJ8z8vyJjVqK3v0F9kz6m3gK6cQJc1uS'

/**
 * Basic authentication against an htpasswd file of bcrypt entries; changes of the file hold at once. Throws MirrorError for
 * a file that cannot be used. https://www.rfc-editor.org/rfc/rfc7617
 */
export async function createBasicAuth(path: string): Promise<Authorize> {
  const { compare } = await import('bcryptjs')
  let users = await readUsers(path)
  const turns = new KeyedQueue<'all'>()
  return async (request) => {
    const version = await versionOf(path)
    if (version !== undefined && version !== users.version) users = await readUsers(path)
    const given = /^Basic +([A-Za-z0-9+/=]+)$/i.exec(request.headers.authorization ?? '')?.[1]
    if (given === undefined) throw unauthorized()
    const key = createHash('sha256').update(given).digest('base64')
    const { hashes, good } = users
    const text = Buffer.from(given, 'base64').toString()
    const colon = text.indexOf(':')
    const user = text.slice(0, Math.max(0, colon))
    if (good.has(key)) return user
    const hash = hashes.get(user)
    // One at a time: each holds up everything else in slices, and a client's first requests all carry the same.
    const isGood = await turns.run(
      'all',
      async () => good.has(key) || compare(text.slice(colon + 1), hash ?? nobodysHash),
    )
    if (!isGood || hash === undefined || colon === -1) throw unauthorized()
    if (good.size < mostRemembered) good.add(key)
    return user
  }
}

async function readUsers(path: string): Promise<Users> {
  try {
    const version = (await versionOf(path)) ?? ''
    const hashes = new Map<string, string>()
    for (const line of (await readFile(path, 'utf8')).split(/\r?\n/)) {
      if (line.trim() === '' || line.startsWith('#')) continue
      const colon = line.indexOf(':')
      const hash = line.slice(colon + 1).trim()
      if (colon < 1 || !/^\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}$/.test(hash))
        throw unusable(path, 'a line is no bcrypt entry')
      hashes.set(line.slice(0, colon), hash)
    }
    return { hashes, version, good: new Set() }
  } catch (error) {
    const code = errnoOf(error)
    throw code === undefined ? error : unusable(path, code)
  }
}

async function versionOf(path: string): Promise<string | undefined> {
  try {
    const { mtimeMs, size, ino } = await stat(path)
    return `${mtimeMs} ${size} ${ino}`
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    return undefined
  }
}

function unusable(path: string, why: string): MirrorError {
  return new MirrorError(`The password file ${path} cannot be used: ${why}.`, {
    exit: exitCode.usage,
    hints: [`htpasswd -cB '${path}' USER`],
  })
}

function unauthorized(): OciError {
  return new OciError('UNAUTHORIZED', 401, 'This registry needs a user name and a password.', {
    'www-authenticate': 'Basic realm="mirror", charset="UTF-8"',
  })
}
