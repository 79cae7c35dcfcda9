import { createHash, createHmac } from 'node:crypto'
import { readFile, stat } from 'node:fs/promises'
import { errnoOf, exitCode, MirrorError } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { OciError } from '../oci/errors.ts'

/** An htpasswd file of bcrypt entries. https://httpd.apache.org/docs/2.4/misc/password_encryptions.html */
export interface PasswordFile {
  /** What the file holds now. Throws an OciError 503 while it cannot be used. */
  users(): Promise<Users>
  /** Why it cannot be used now, as one sentence; undefined while it can. */
  trouble(): Promise<string | undefined>
}

export interface Users {
  /** The user's hash; for a name that is not in the file, one that no password fits and that takes as long to compare. */
  hashOf(user: string): { readonly hash: string; readonly isKnown: boolean }
}

const largestFile = 1024 * 1024
/** A comparison of cost 16 takes seconds; each step more doubles it, so that 31 takes days. */
const highestCost = 16
const usualCost = 10
const bcryptEntry = /^\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}$/

/** Throws a MirrorError for a file that cannot be used. A later change of the file holds at once. */
export async function openPasswordFile(path: string, logger: Logger): Promise<PasswordFile> {
  let version = await versionOf(path)
  let users: Users | UnusableFile = await read(path)
  /** Whether the system has refused to read this version: it may read it a moment later. */
  let isUnread = false
  let reading: Promise<void> | undefined

  async function reload(): Promise<void> {
    const found = await versionOf(path)
    if (found === version && !isUnread) return
    const before = users
    try {
      users = await read(path)
      isUnread = false
      logger.info({ path }, 'read the changed password file')
    } catch (error) {
      if (!(error instanceof UnusableFile)) throw error
      users = error
      isUnread = errnoOf(error.cause) !== undefined
      const isKnown = before instanceof UnusableFile && before.message === error.message && found === version
      if (!isKnown) logger.error({ path, reason: error.why }, 'the password file cannot be used: nobody can log in')
    }
    version = found
  }

  async function latest(): Promise<Users | UnusableFile> {
    await (reading ??= reload().finally(() => (reading = undefined)))
    return users
  }

  return {
    async trouble() {
      const found = await latest()
      return found instanceof UnusableFile ? found.message : undefined
    },
    async users() {
      const found = await latest()
      if (!(found instanceof UnusableFile)) return found
      // Who was in the file before may have been taken out of it.
      throw new OciError('UNAVAILABLE', 503, 'The password file cannot be used; the log says why.', {
        'retry-after': '1',
      })
    },
  }
}

/** Throws a MirrorError for a file that cannot be used. */
export async function checkPasswordFile(path: string): Promise<void> {
  await read(path)
}

async function read(path: string): Promise<Users> {
  try {
    if ((await stat(path)).size > largestFile) throw new UnusableFile(path, 'it is larger than 1 MiB')
    return parse(path, await readFile(path, 'utf8'))
  } catch (error) {
    const code = errnoOf(error)
    if (code === undefined) throw error
    throw new UnusableFile(path, code === 'ENOENT' ? 'it does not exist' : code, error)
  }
}

function parse(path: string, text: string): Users {
  const hashes = new Map<string, string>()
  for (const [at, line] of text.split(/\r?\n/).entries()) {
    if (line.trim() === '' || line.startsWith('#')) continue
    const colon = line.indexOf(':')
    const hash = line.slice(colon + 1).trim()
    const cost = Number(bcryptEntry.exec(hash)?.[1])
    if (colon < 1 || !(cost >= 4)) throw new UnusableFile(path, `line ${at + 1} is not a user name and a bcrypt hash`)
    if (cost > highestCost)
      throw new UnusableFile(
        path,
        `line ${at + 1} has a bcrypt cost of ${cost}, and more than ${highestCost} is not accepted`,
      )
    hashes.set(line.slice(0, colon), hash)
  }
  const costs = [...hashes.values()].map(costOf)
  // A name keeps its cost over restarts, and without the file nobody can compute which one it is.
  const key = createHash('sha256').update(text).digest()
  return {
    hashOf(user) {
      const hash = hashes.get(user)
      if (hash !== undefined) return { hash, isKnown: true }
      const number = createHmac('sha256', key).update(user).digest().readUInt32BE()
      return { hash: decoyOf(costs[number % costs.length] ?? usualCost), isKnown: false }
    },
  }
}

function costOf(hash: string): number {
  return Number(bcryptEntry.exec(hash)![1])
}

function decoyOf(cost: number): string {
  return `$2b$${String(cost).padStart(2, '0')}$CwTycUXWue0Thq9StjUM0uJ8z8vyJjVqK3v0F9kz6m3gK6cQJc1uS`
}

/** Undefined while there is no file. */
async function versionOf(path: string): Promise<string | undefined> {
  try {
    const { mtimeMs, ctimeMs, size, ino } = await stat(path)
    return `${mtimeMs} ${ctimeMs} ${size} ${ino}`
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    return undefined
  }
}

class UnusableFile extends MirrorError {
  readonly why: string

  constructor(path: string, why: string, cause?: unknown) {
    super(`The password file ${path} cannot be used: ${why}.`, {
      cause,
      exit: exitCode.usage,
      // -c empties a file that exists.
      hints: [`htpasswd ${errnoOf(cause) === 'ENOENT' ? '-cB' : '-B'} '${path}' USER`],
    })
    this.why = why
  }
}
