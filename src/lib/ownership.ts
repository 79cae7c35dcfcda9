import { constants, lstatSync, readFileSync, readlinkSync, type Stats } from 'node:fs'
import { lstat, open, realpath } from 'node:fs/promises'
import { dirname, resolve, sep } from 'node:path'
import { errnoOf } from './errors.ts'

const maxSymlinks = 40

/** The part of a path by which others can change what is there. */
interface ForeignPart {
  readonly path: string
  /** The user it belongs to; undefined where it is the mode that lets others write. */
  readonly owner: number | undefined
}

interface Trusted {
  /** Whose a part may be besides root's. */
  readonly uid?: number
  /** The file at the end may be anybody's: it is replaced, or read for what it is. */
  readonly anyFile?: boolean
}

/** Whether this process is root. */
export function isRoot(): boolean {
  return process.geteuid?.() === 0
}

/**
 * Whether only root can change what is at a path, or what will be made there: each folder above it, and each symbolic link on
 * the way, is root's, and nobody else may write it. In a sticky folder such as /tmp each user changes only what is their own, but
 * makes what is missing.
 */
export function isOnlyRoots(path: string): boolean {
  return findForeign(path) === undefined
}

/** Why `isOnlyRoots` is false: the first such part of the path, absolute; undefined where there is none. */
export function findForeign(path: string, { uid = 0, anyFile = false }: Trusted = {}): ForeignPart | undefined {
  const system = lstatSync(sep)
  // In a user namespace that knows only some users, the folder above all belongs to nobody; its owner can do everything anyway.
  const trusted = new Set([0, uid, system.uid])
  if (!isProtected(system)) return { path: sep, owner: undefined }
  return walk(resolve(path), 0)

  function walk(whole: string, symlinks: number): ForeignPart | undefined {
    const parts = whole.split(sep).filter((part) => part !== '')
    let at: string = sep
    let folder = system
    for (const [index, part] of parts.entries()) {
      at = resolve(at, part)
      const stats = lstatIfPresent(at)
      const isLast = index === parts.length - 1
      // What is made there will be ours, unless others are first.
      if (stats === undefined)
        return isWritableByOthers(folder) && !(anyFile && isLast) ? { path: dirname(at), owner: undefined } : undefined
      const isUncheckedFile = anyFile && isLast && stats.isFile()
      if (!isUncheckedFile && !trusted.has(stats.uid)) return { path: at, owner: stats.uid }
      if (stats.isSymbolicLink()) {
        if (symlinks >= maxSymlinks) return { path: at, owner: undefined }
        return walk(resolve(dirname(at), readlinkSync(at), ...parts.slice(index + 1)), symlinks + 1)
      }
      // The mode of a socket says who may connect.
      if (!isUncheckedFile && !stats.isSocket() && !isProtected(stats)) return { path: at, owner: undefined }
      folder = stats
    }
    return undefined
  }
}

/** `/home/alice belongs to alice`, for a message. */
export function describeForeign({ path, owner }: ForeignPart): string {
  return owner === undefined ? `others can write ${path}` : `${path} belongs to ${userName(owner)}`
}

/** The name of a user, or their number where the system's list does not have it. */
export function userName(uid: number): string {
  return findPasswdFields(uid)?.[0] ?? `user ${uid}`
}

/** The home folder of a user, by the system's list. */
export function userHome(uid: number): string | undefined {
  return findPasswdFields(uid)?.[5]
}

function findPasswdFields(uid: number): string[] | undefined {
  try {
    const lines = readFileSync('/etc/passwd', 'utf8').split('\n')
    return lines.map((line) => line.split(':')).find((fields) => fields[2] === String(uid))
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    return undefined
  }
}

function lstatIfPresent(path: string): Stats | undefined {
  try {
    return lstatSync(path, { throwIfNoEntry: false })
  } catch (error) {
    if (errnoOf(error) === 'ENOTDIR') return undefined
    throw error
  }
}

function isProtected(what: Stats): boolean {
  const isSticky = (what.mode & 0o1000) !== 0
  return !isWritableByOthers(what) || isSticky
}

function isWritableByOthers({ mode }: Stats): boolean {
  return (mode & 0o022) !== 0
}

/** More than any file that a mirror writes about itself. */
const maxSmallFileBytes = 1024 * 1024

/**
 * The text of another user's file, read by root: only what that user owns, and nothing that is no regular file, so that a link
 * the user has put there gives away nothing of others. Undefined for anything else, and for what is not there.
 */
export async function readOwnedFile(path: string, uid: number): Promise<string | undefined> {
  return readFileIf(path, (what) => what.uid === uid)
}

/** The same for what root owns and everyone may read. */
export async function readPublicFile(path: string): Promise<string | undefined> {
  return readFileIf(path, (what) => what.uid === 0 && (what.mode & 0o004) !== 0)
}

async function readFileIf(path: string, isAllowed: (what: Stats) => boolean): Promise<string | undefined> {
  const isAcceptable = (what: Stats) => what.isFile() && isAllowed(what) && what.size <= maxSmallFileBytes
  const real = await orUndefinedIfRefused(() => realpath(path))
  // Opening a device may already do something; what was put in its place meanwhile is looked at again.
  const before = real === undefined ? undefined : await orUndefinedIfRefused(() => lstat(real))
  if (real === undefined || before === undefined || !isAcceptable(before)) return undefined
  const file = await orUndefinedIfRefused(() =>
    open(real, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK),
  )
  if (file === undefined) return undefined
  try {
    return isAcceptable(await file.stat()) ? await file.readFile('utf8') : undefined
  } finally {
    await file.close()
  }
}

async function orUndefinedIfRefused<T>(ask: () => Promise<T>): Promise<T | undefined> {
  try {
    return await ask()
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    return undefined
  }
}
