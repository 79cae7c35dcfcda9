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
import { errnoOf, exitCode, MirrorError, systemError } from '../../lib/errors.ts'
import { makeFolder, orAbsent, replaceFile, syncFolder } from '../../lib/fs.ts'
import { describeForeign, findForeign, isRoot } from '../../lib/ownership.ts'
import type { FilePort } from '../types.ts'

/** What programs that run as other users may read. */
const newFileMode = 0o644
const newFolderMode = 0o755
/** Folders of client configurations are flat; anything deeper is somebody's mistake. */
const deepest = 5
/** The files of this machine. As root, what others could make lead elsewhere is not written: a MirrorError (usage). */
export const localFiles: FilePort = filesBy(realTarget)

/** The same for what stands below a folder in place of `/`: no link there leads out of it. A file beside it is this machine's. */
export function filesBelow(root: string): FilePort {
  return filesBy((path) => (isBelow(root, path) ? resolveBelow(root, path) : realTarget(path)))
}

/** `locate`: the file that a path leads to. */
function filesBy(locate: (path: string) => Promise<string>): FilePort {
  const locateToWrite = async (path: string) => {
    const target = await locate(path)
    // A link below a root leads to another place than it does on this machine.
    if (locate === realTarget) refuseOthers(path)
    refuseOthers(target)
    return target
  }
  return {
    async read(path) {
      return orAbsent(async () => {
        const target = await locate(path)
        const what = await stat(target)
        // To read from a pipe is to wait for whoever writes to it.
        if (!what.isFile()) throw systemError('EINVAL', 'read', 'it is no regular file')
        const { mode, uid, gid } = what
        return { bytes: await readFile(target), mode: mode & 0o7777, uid, gid }
      })
    },

    async list(folder) {
      return listBelow(folder, deepest, locate)
    },

    async write(path, content, attributes) {
      const target = await locateToWrite(path)
      const folder = dirname(target)
      const made = await makeFolders(folder)
      const prepare = async (file: FileHandle) => {
        if (attributes && process.platform !== 'win32') await takeOver(file, attributes)
        await file.chmod(attributes?.mode ?? newFileMode)
      }
      await replaceFile(target, join(folder, temporaryName(basename(target))), content, { prepare })
      return made
    },

    async remove(path) {
      const target = await locateToWrite(path)
      await rm(target, { force: true })
      await orAbsent(() => syncFolder(dirname(target)))
    },

    async mayWrite(path) {
      const target = await locateToWrite(path)
      const there = await orAbsent(() => stat(target))
      if (there && !mayGiveTo(there)) return false
      let folder = dirname(target)
      while ((await orAbsent(() => stat(folder))) === undefined && folder !== dirname(folder)) folder = dirname(folder)
      try {
        await access(folder, constants.W_OK | constants.X_OK)
        return true
      } catch (error) {
        if (errnoOf(error) === undefined) throw error
        return false
      }
    },

    async tidy(path) {
      await removeLeftovers(dirname(await locateToWrite(path)))
    },

    async removeFolder(path) {
      const parent = await locateToWrite(dirname(path))
      try {
        await rmdir(join(parent, basename(path)))
      } catch (error) {
        if (!['ENOENT', 'ENOTEMPTY', 'EEXIST', 'ENOTDIR'].includes(errnoOf(error) ?? '')) throw error
      }
    },
  }
}

/** Whose the file itself is does not matter: it is replaced, and stays theirs. */
function refuseOthers(path: string): void {
  const found = isRoot() ? findForeign(path, { anyFile: true }) : undefined
  if (found === undefined) return
  throw new MirrorError(
    `As root, mirror writes nothing that other users could make lead elsewhere, so ${path} is left alone: ${describeForeign(found)}.`,
    { exit: exitCode.usage, hints: ['run the command without sudo, as the user whose file it is'] },
  )
}

/** The file that a path leads to; a link to a file that is not there yet leads to where that file will be. */
async function realTarget(path: string, hops = 0): Promise<string> {
  const real = await orAbsent(() => realpath(path))
  if (real !== undefined) return real
  const link = await orAbsent(() => readlinkOf(path))
  if (link === undefined || hops > mostHops) return path
  return realTarget(resolve(await realpath(dirname(path)), link), hops + 1)
}

async function readlinkOf(path: string): Promise<string | undefined> {
  return (await lstat(path)).isSymbolicLink() ? readlink(path) : undefined
}

async function makeFolders(folder: string): Promise<string[]> {
  const first = await makeFolder(folder, newFolderMode)
  if (first === undefined) return []
  const made: string[] = []
  for (let at = folder; ; at = dirname(at)) {
    made.unshift(at)
    if (at === first || at === dirname(at)) return made
  }
}

/** Its owner as it was, where we may. Only a superuser can give files away, and then the owner is ours already. */
async function takeOver(file: FileHandle, { uid, gid }: { uid: number; gid: number }): Promise<void> {
  const { uid: ourUid, gid: ourGid } = await file.stat()
  if (ourUid !== uid || ourGid !== gid) await file.chown(uid, gid)
}

/** Whether a file that takes its place can have the same owner and group. */
function mayGiveTo({ uid, gid }: { uid: number; gid: number }): boolean {
  const us = process.geteuid?.()
  if (us === undefined || us === 0) return true
  return uid === us && (gid === process.getegid!() || process.getgroups!().includes(gid))
}

async function listBelow(folder: string, depth: number, locate: (path: string) => Promise<string>): Promise<string[]> {
  const names = (await orAbsent(async () => readdir(await locate(folder)))) ?? []
  const found: string[] = []
  for (const name of names.toSorted()) {
    if (isTemporary(name)) continue
    const path = join(folder, name)
    // Through links, as the clients look.
    const what = await orAbsent(async () => stat(await locate(path)))
    if (what?.isFile()) found.push(path)
    else if (what?.isDirectory() && depth > 1) found.push(...(await listBelow(path, depth - 1, locate)))
  }
  return found
}

/** The name of a file that is being written beside the one it will take the place of: it says whose it is, if it is left. */
function temporaryName(name: string): string {
  return `.${name}.mirror-${process.pid}-${randomBytes(8).toString('hex')}`
}

/** Whether a file is, or was, on its way to take the place of another. */
function isTemporary(name: string): boolean {
  return ownerOf(name) !== undefined
}

/** Removes the files that a process of ours was writing in a folder when it was killed. */
async function removeLeftovers(folder: string): Promise<void> {
  for (const name of await namesIn(folder)) {
    const owner = ownerOf(name)
    if (owner !== undefined && !isAlive(owner)) await rm(join(folder, name), { force: true })
  }
}

/** The id of the process that made it. */
function ownerOf(name: string): number | undefined {
  const pid = /^\..+\.mirror-(\d{1,10})-[0-9a-f]{16}$/.exec(name)?.[1]
  return pid === undefined ? undefined : Number(pid)
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    if (errnoOf(error) === 'ESRCH') return false
    if (errnoOf(error) === 'EPERM') return true
    throw error
  }
}

/** What cannot be listed is nothing to tidy up. */
async function namesIn(folder: string): Promise<string[]> {
  try {
    return await readdir(folder)
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    return []
  }
}

/** As many symbolic links as Linux follows. */
const mostHops = 40

/**
 * Where a path leads for a program whose `/` is `root`, as chroot(2) has it: an absolute link starts there again, and nothing
 * leads above it. What is not there yet is taken for what it is called. Throws what the system says of links that go round.
 */
export async function resolveBelow(root: string, path: string): Promise<string> {
  const left = partsOf(relative(root, path))
  const at: string[] = []
  let hops = 0
  while (left.length > 0) {
    const part = left.shift()!
    if (part === '..') at.pop()
    else {
      const link = await linkAt(join(root, ...at, part))
      if (link === undefined) at.push(part)
      else {
        if (++hops > mostHops) throw systemError('ELOOP', 'readlink', `ELOOP: too many links, '${path}'`)
        if (isAbsolute(link)) at.length = 0
        left.unshift(...partsOf(link.slice(parse(link).root.length)))
      }
    }
  }
  return join(root, ...at)
}

/** Whether a path is that of the root, or of something in it, by its name. */
export function isBelow(root: string, path: string): boolean {
  const below = relative(root, path)
  return !isAbsolute(below) && below.split(sep)[0] !== '..'
}

function partsOf(path: string): string[] {
  return path.split(sep === '\\' ? /[\\/]/ : sep).filter((part) => part !== '' && part !== '.')
}

async function linkAt(path: string): Promise<string | undefined> {
  try {
    return (await lstat(path)).isSymbolicLink() ? await readlink(path) : undefined
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return undefined
    throw error
  }
}
