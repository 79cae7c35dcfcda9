import { constants, lstatSync, readFileSync, readlinkSync, type Stats } from 'node:fs'
import { lstat, open, realpath } from 'node:fs/promises'
import { dirname, resolve, sep } from 'node:path'
import { getErrno } from './errors.ts'

const maxSymlinks = 40

/** Sets the size limit for files that a mirror writes about itself, bytes. Such files are much smaller. */
export const maxSmallFileBytes = 1024 * 1024

/** Describes a part of a path through which other users can change what the path leads to. */
interface ForeignPart {
  readonly path: string
  /** Holds the uid of its owner; undefined when its mode lets others write. */
  readonly owner: number | undefined
}

interface Trusted {
  /** Holds a uid that may own parts of the path, in addition to root. */
  readonly uid?: number
  /** Accepts any owner and mode of a regular file at the end of the path. */
  readonly anyFile?: boolean
}

/** Checks whether this process runs as root. */
export function isRoot(): boolean {
  return process.geteuid?.() === 0
}

/**
 * Checks whether only root can change the file at a path, or create it: root owns each folder above it and each symbolic link on the
 * way, and no other user may write to them. In a sticky folder such as /tmp, users can change only their own files, but can create
 * missing ones.
 */
export function isRootControlled(path: string): boolean {
  return findForeign(path) === undefined
}

/** Finds the first part of a path, absolute, that other users can change; undefined when there is none. */
export function findForeign(path: string, { uid = 0, anyFile = false }: Trusted = {}): ForeignPart | undefined {
  const system = lstatSync(sep)
  // Trust the owner of `/`: in a user namespace it may be the overflow user (nobody), and it can change everything anyway.
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
      // Reject a missing file that others could create first.
      if (stats === undefined)
        return isWritableByOthers(folder) && !(anyFile && isLast) ? { path: dirname(at), owner: undefined } : undefined
      const isUncheckedFile = anyFile && isLast && stats.isFile()
      if (!isUncheckedFile && !trusted.has(stats.uid)) return { path: at, owner: stats.uid }
      if (stats.isSymbolicLink()) {
        if (symlinks >= maxSymlinks) return { path: at, owner: undefined }
        return walk(resolve(dirname(at), readlinkSync(at), ...parts.slice(index + 1)), symlinks + 1)
      }
      // Skip sockets, because their mode says who may connect.
      if (!isUncheckedFile && !stats.isSocket() && !isProtected(stats)) return { path: at, owner: undefined }
      folder = stats
    }
    return undefined
  }
}

/** Describes an untrusted part for a message: `/home/alice belongs to alice`. */
export function describeForeign({ path, owner }: ForeignPart): string {
  return owner === undefined ? `others can write ${path}` : `${path} belongs to ${getUserName(owner)}`
}

/** Returns the name of a user from /etc/passwd, or `user UID` when it is not listed. */
export function getUserName(uid: number): string {
  return findPasswdFields(uid)?.[0] ?? `user ${uid}`
}

/** Returns the home folder of a user from /etc/passwd; undefined when the user is not listed. */
export function getUserHome(uid: number): string | undefined {
  return findPasswdFields(uid)?.[5]
}

function findPasswdFields(uid: number): string[] | undefined {
  try {
    const lines = readFileSync('/etc/passwd', 'utf8').split('\n')
    return lines.map((line) => line.split(':')).find((fields) => fields[2] === String(uid))
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    return undefined
  }
}

function lstatIfPresent(path: string): Stats | undefined {
  try {
    return lstatSync(path, { throwIfNoEntry: false })
  } catch (error) {
    if (getErrno(error) === 'ENOTDIR') return undefined
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

/**
 * Reads a text file of another user as root. Reads only a regular file of at most 1 MiB that this user owns, so that a link which the
 * user placed there reveals no file of others. Returns undefined for anything else, and when there is no file.
 */
export async function readOwnedFile(path: string, uid: number): Promise<string | undefined> {
  return readFileIf(path, (what) => what.uid === uid)
}

/** Reads a text file that root owns and every user may read, under the same rules. */
export async function readPublicFile(path: string): Promise<string | undefined> {
  return readFileIf(path, (what) => what.uid === 0 && (what.mode & 0o004) !== 0)
}

async function readFileIf(path: string, isAllowed: (what: Stats) => boolean): Promise<string | undefined> {
  const isAcceptable = (what: Stats) => what.isFile() && isAllowed(what) && what.size <= maxSmallFileBytes
  const real = await ignoreRefusal(() => realpath(path))
  // Check before the open, because opening a device can have effects, and again afterwards, because the file may be replaced.
  const before = real === undefined ? undefined : await ignoreRefusal(() => lstat(real))
  if (real === undefined || before === undefined || !isAcceptable(before)) return undefined
  const file = await ignoreRefusal(() => open(real, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK))
  if (file === undefined) return undefined
  try {
    return isAcceptable(await file.stat()) ? await file.readFile('utf8') : undefined
  } finally {
    await file.close()
  }
}

async function ignoreRefusal<T>(ask: () => Promise<T>): Promise<T | undefined> {
  try {
    return await ask()
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    return undefined
  }
}
