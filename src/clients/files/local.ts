import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import {
  access,
  type FileHandle,
  lstat,
  readdir,
  readFile,
  readlink,
  realpath,
  rm,
  rmdir,
  stat,
} from 'node:fs/promises'
import { basename, dirname, isAbsolute, join, parse, relative, resolve, sep } from 'node:path'
import { getErrno, exitCode, MirrorError, createSystemError } from '../../lib/errors.ts'
import { makeFolder, ignoreMissing, replaceFile, syncFolder } from '../../lib/fs.ts'
import { describeForeign, findForeign, isRoot } from '../../lib/ownership.ts'
import type { FilePort } from '../types.ts'

/** Lets programs that run as other users read new files and folders. */
const newFileMode = 0o644
const newFolderMode = 0o755
/** Limits the levels of folders to list. Folders of client configurations are flat. */
const maxDepth = 5
/** Limits the symbolic links to follow, as Linux does. */
const maxLinks = 40

/**
 * Accesses the files of this machine. As root it writes to no path that another user could redirect: `write` and `remove` throw a
 * MirrorError (usage).
 */
export const localFiles: FilePort = createFilePort(resolveLinks)

/**
 * Accesses the files of a tree whose `/` is `root`: no link in it leads out of it. A path outside `root` means a file of this
 * machine.
 */
export function createRootedFiles(root: string): FilePort {
  return createFilePort((path) => (isBelow(root, path) ? resolveBelow(root, path) : resolveLinks(path)))
}

/** Creates a file port. `locate` resolves the symbolic links of a path. */
function createFilePort(locate: (path: string) => Promise<string>): FilePort {
  const locateToWrite = async (path: string) => {
    const target = await locate(path)
    // Skip the unresolved path below another root: its links mean other files on this machine.
    if (locate === resolveLinks) refuseForeignPath(path)
    refuseForeignPath(target)
    return target
  }
  return {
    async read(path) {
      return ignoreMissing(async () => {
        const target = await locate(path)
        const stats = await stat(target)
        // Refuse a pipe: reading it waits for a writer.
        if (!stats.isFile()) throw createSystemError('EINVAL', 'read', 'it is no regular file')
        const { mode, uid, gid } = stats
        return { bytes: await readFile(target), mode: mode & 0o7777, uid, gid }
      })
    },

    async list(folder) {
      return listBelow(folder, maxDepth, locate)
    },

    async write(path, content, attributes) {
      const target = await locateToWrite(path)
      const folder = dirname(target)
      const created = await makeFolders(folder)
      const prepare = async (file: FileHandle) => {
        const keepsOwner = attributes !== undefined && process.platform !== 'win32'
        await file.chmod(keepsOwner ? await restoreOwner(file, attributes, target) : (attributes?.mode ?? newFileMode))
      }
      await replaceFile(target, join(folder, createTemporaryName(basename(target))), content, { prepare })
      return created
    },

    async remove(path) {
      const target = await locateToWrite(path)
      await rm(target, { force: true })
      await ignoreMissing(() => syncFolder(dirname(target)))
    },

    async mayWrite(path) {
      const target = await locateToWrite(path)
      const existing = await ignoreMissing(() => stat(target))
      // The group is a wish: see describeLoss.
      if (existing && !canKeepOwner(existing)) return false
      let folder = dirname(target)
      while ((await ignoreMissing(() => stat(folder))) === undefined && folder !== dirname(folder))
        folder = dirname(folder)
      try {
        await access(folder, constants.W_OK | constants.X_OK)
        return true
      } catch (error) {
        if (getErrno(error) === undefined) throw error
        return false
      }
    },

    async describeLoss(path) {
      const existing = await ignoreMissing(async () => stat(await locateToWrite(path)))
      if (existing === undefined || canKeepGroup(existing)) return undefined
      const mode = existing.mode & 0o7777
      const narrowed = withoutGroup(mode)
      const access = narrowed === mode ? '' : `, and its mode becomes ${narrowed.toString(8).padStart(4, '0')}`
      return `${path} gets your group, because you are not in its group (${existing.gid})${access}.`
    },

    async tidy(path) {
      await removeLeftovers(dirname(await locateToWrite(path)))
    },

    async removeFolder(path) {
      const parent = await locateToWrite(dirname(path))
      try {
        await rmdir(join(parent, basename(path)))
      } catch (error) {
        if (!['ENOENT', 'ENOTEMPTY', 'EEXIST', 'ENOTDIR'].includes(getErrno(error) ?? '')) throw error
      }
    },
  }
}

/** Throws a MirrorError (usage), as root, if another user could redirect the path. The owner of the file itself does not matter. */
function refuseForeignPath(path: string): void {
  const found = isRoot() ? findForeign(path, { anyFile: true }) : undefined
  if (found === undefined) return
  throw new MirrorError(
    `As root, mirror writes to no path that other users could redirect, so ${path} is left alone: ${describeForeign(found)}.`,
    { exit: exitCode.usage, hints: ['run the command without sudo, as the user who owns the file'] },
  )
}

/** Resolves the symbolic links of a path, also those to a file that does not exist yet. */
async function resolveLinks(path: string, followedLinks = 0): Promise<string> {
  const real = await ignoreMissing(() => realpath(path))
  if (real !== undefined) return real
  const link = await readLink(path)
  if (link === undefined || followedLinks > maxLinks) return path
  return resolveLinks(resolve(await realpath(dirname(path)), link), followedLinks + 1)
}

async function makeFolders(folder: string): Promise<string[]> {
  const first = await makeFolder(folder, newFolderMode)
  if (first === undefined) return []
  const created: string[] = []
  for (let at = folder; ; at = dirname(at)) {
    created.unshift(at)
    if (at === first || at === dirname(at)) return created
  }
}

/**
 * Gives a new file the owner of the file that it replaces, and the group where this process may. Returns its mode. Throws a
 * MirrorError (usage) for an owner that it cannot keep.
 */
async function restoreOwner(
  file: FileHandle,
  { mode, uid, gid }: { mode: number; uid: number; gid: number },
  path: string,
): Promise<number> {
  const current = await file.stat()
  if (current.uid === uid && current.gid === gid) return mode
  try {
    await file.chown(uid, gid)
    return mode
  } catch (cause) {
    // The system knows no such owner in a user namespace (EINVAL).
    if (!['EPERM', 'EINVAL'].includes(getErrno(cause) ?? '')) throw cause
    if (current.uid === uid) return withoutGroup(mode)
    throw new MirrorError(`${path} belongs to the user ${uid}, so only that user or root can replace it.`, {
      exit: exitCode.usage,
      hints: ['run the command again as the owner of the file, or with sudo'],
      cause,
    })
  }
}

/**
 * Returns the mode for a file in another group than before. Members of the new group had the access of others, and members of the old
 * one get it, so both get what both had.
 */
function withoutGroup(mode: number): number {
  const shared = (mode >> 3) & mode & 0o7
  return (mode & 0o5700) | (shared << 3) | shared
}

/** Returns whether this process can give a file this owner. */
function canKeepOwner({ uid }: { uid: number }): boolean {
  const ownUid = process.geteuid?.()
  return ownUid === undefined || ownUid === 0 || uid === ownUid
}

/** Returns whether this process can give a file this group. */
function canKeepGroup({ gid }: { gid: number }): boolean {
  if (process.geteuid === undefined || process.geteuid() === 0) return true
  return gid === process.getegid!() || process.getgroups!().includes(gid)
}

async function listBelow(folder: string, depth: number, locate: (path: string) => Promise<string>): Promise<string[]> {
  const names = (await ignoreMissing(async () => readdir(await locate(folder)))) ?? []
  const found: string[] = []
  for (const name of names.toSorted()) {
    if (isTemporary(name)) continue
    const path = join(folder, name)
    // Follow links, as the clients do.
    const stats = await ignoreMissing(async () => stat(await locate(path)))
    if (stats?.isFile()) found.push(path)
    else if (stats?.isDirectory() && depth > 1) found.push(...(await listBelow(path, depth - 1, locate)))
  }
  return found
}

/** Returns a name for the file that will replace another one. The process id in it tells leftovers from files in use. */
function createTemporaryName(name: string): string {
  return `.${name}.mirror-${process.pid}-${randomBytes(8).toString('hex')}`
}

/** Returns whether a file was written to replace another one. */
function isTemporary(name: string): boolean {
  return parseWriterPid(name) !== undefined
}

/** Removes the temporary files of mirror processes that were killed. */
async function removeLeftovers(folder: string): Promise<void> {
  for (const name of await listNames(folder)) {
    const owner = parseWriterPid(name)
    if (owner !== undefined && !isAlive(owner)) await rm(join(folder, name), { force: true })
  }
}

/** Returns the id of the process that wrote a temporary file; undefined for another file. */
function parseWriterPid(name: string): number | undefined {
  const pid = /^\..+\.mirror-(\d{1,10})-[0-9a-f]{16}$/.exec(name)?.[1]
  return pid === undefined ? undefined : Number(pid)
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    if (getErrno(error) === 'ESRCH') return false
    if (getErrno(error) === 'EPERM') return true
    throw error
  }
}

/** Lists a folder; returns no names for a folder that cannot be listed. */
async function listNames(folder: string): Promise<string[]> {
  try {
    return await readdir(folder)
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    return []
  }
}

/**
 * Resolves a path for a program whose `/` is `root`, like chroot(2): an absolute link starts at `root`, and `..` leads no higher.
 * Parts that do not exist are kept as they are. Throws ELOOP for more than 40 links.
 */
export async function resolveBelow(root: string, path: string): Promise<string> {
  const remaining = splitPath(relative(root, path))
  const at: string[] = []
  let followedLinks = 0
  while (remaining.length > 0) {
    const part = remaining.shift()!
    if (part === '..') at.pop()
    else {
      const link = await readLink(join(root, ...at, part))
      if (link === undefined) at.push(part)
      else {
        if (++followedLinks > maxLinks) throw createSystemError('ELOOP', 'readlink', `ELOOP: too many links, '${path}'`)
        if (isAbsolute(link)) at.length = 0
        remaining.unshift(...splitPath(link.slice(parse(link).root.length)))
      }
    }
  }
  return join(root, ...at)
}

/** Returns whether a path is `root` or below it, by name alone. */
export function isBelow(root: string, path: string): boolean {
  const below = relative(root, path)
  return !isAbsolute(below) && below.split(sep)[0] !== '..'
}

function splitPath(path: string): string[] {
  return path.split(sep === '\\' ? /[\\/]/ : sep).filter((part) => part !== '' && part !== '.')
}

/** Returns the target of a symbolic link; undefined for anything else, and where there is nothing. */
async function readLink(path: string): Promise<string | undefined> {
  return ignoreMissing(async () => ((await lstat(path)).isSymbolicLink() ? readlink(path) : undefined))
}
