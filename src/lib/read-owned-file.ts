import { constants, type Stats } from 'node:fs'
import { lstat, open, realpath } from 'node:fs/promises'
import { errnoOf } from './errors.ts'

/** More than any file that a mirror writes about itself. */
const mostBytes = 1024 * 1024

/**
 * The text of another user's file, read by root: only what that user owns, and nothing that is no regular file, so that a link
 * the user has put there gives away nothing of others. Undefined for anything else, and for what is not there.
 */
export async function readOwnedFile(path: string, uid: number): Promise<string | undefined> {
  return readIf(path, (what) => what.uid === uid)
}

/** The same for what root owns and everyone may read. */
export async function readPublicFile(path: string): Promise<string | undefined> {
  return readIf(path, (what) => what.uid === 0 && (what.mode & 0o004) !== 0)
}

async function readIf(path: string, isAllowed: (what: Stats) => boolean): Promise<string | undefined> {
  const isRight = (what: Stats) => what.isFile() && isAllowed(what) && what.size <= mostBytes
  const real = await orUnreadable(() => realpath(path))
  // Opening a device may already do something; what was put in its place meanwhile is looked at again.
  const seen = real === undefined ? undefined : await orUnreadable(() => lstat(real))
  if (real === undefined || seen === undefined || !isRight(seen)) return undefined
  const file = await orUnreadable(() => open(real, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK))
  if (file === undefined) return undefined
  try {
    return isRight(await file.stat()) ? await file.readFile('utf8') : undefined
  } finally {
    await file.close()
  }
}

async function orUnreadable<T>(ask: () => Promise<T>): Promise<T | undefined> {
  try {
    return await ask()
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    return undefined
  }
}
