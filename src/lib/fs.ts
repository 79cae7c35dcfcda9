import { X509Certificate } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, mkdir, mkdtemp, open, rename, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { errnoOf, MirrorError, systemError } from './errors.ts'
import { describeForeign, findForeign } from './ownership.ts'

/** A whole, or its pieces one after the other, so that not all of a large file is in memory. */
type FileContent = string | Uint8Array | Iterable<Uint8Array>

/**
 * Replaces a file so that a reader, or a crash at any moment, sees the old content or the new, never a part:
 * temp file in the same folder, fsync, rename, fsync of the folder. Missing folders are made with mode 0700.
 */
export async function writeFileAtomic(path: string, content: FileContent, mode = 0o600): Promise<void> {
  const folder = dirname(path)
  await makeFolder(folder)
  // Fetched here, for a program that only reads files starts sooner without it.
  const { randomBytes } = process.getBuiltinModule('node:crypto')
  await replaceFile(path, join(folder, `.${basename(path)}.${randomBytes(8).toString('hex')}`), content, { mode })
}

/**
 * The same by a temp file of this name, which has to lie in the same folder. `prepare`: what else the file has to be before it
 * takes the place.
 */
export async function replaceFile(
  path: string,
  temporary: string,
  content: FileContent,
  { mode = 0o600, prepare }: { mode?: number; prepare?: (file: FileHandle) => Promise<void> } = {},
): Promise<void> {
  try {
    const file = await open(temporary, 'wx', mode)
    try {
      await writeFile(file, content)
      await prepare?.(file)
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(temporary, path)
  } catch (error) {
    await rm(temporary, { force: true })
    throw error
  }
  await syncFolder(dirname(path))
}

/**
 * Makes a folder and what is missing above it, durably. Resolves with the uppermost that was made; undefined when it was there already.
 * Node's own recursive way never ends below a folder that was removed while it is mounted or open: each of its turns finds
 * that the folder is there, and that nothing can be made in it.
 */
export async function makeFolder(path: string, mode = 0o700): Promise<string | undefined> {
  try {
    return await makeSingleFolder(path, mode)
  } catch (error) {
    const parent = dirname(path)
    if (errnoOf(error) !== 'ENOENT' || parent === path) throw error
    const first = await makeFolder(parent, mode)
    return (await makeSingleFolder(path, mode)) === undefined ? first : (first ?? path)
  }
}

async function makeSingleFolder(path: string, mode: number): Promise<string | undefined> {
  try {
    await mkdir(path, { mode })
  } catch (error) {
    // Where nothing may be made, what is there already need not be: the reason is not always EEXIST.
    if (errnoOf(error) === 'ENOENT' || !(await isFolder(path))) throw error
    return undefined
  }
  await syncParent(dirname(path))
  return path
}

/** Where the folder above may be written but not read, or its file system has no such call, the system looks after it. */
const harmlessSyncCodes = ['EACCES', 'EPERM', 'EINVAL', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EISDIR']

async function syncParent(parent: string): Promise<void> {
  try {
    await syncFolder(parent)
  } catch (error) {
    if (!harmlessSyncCodes.includes(errnoOf(error) ?? '')) throw error
  }
}

/** Makes renames, unlinks and new entries of a folder durable. Windows cannot open folders and needs none of it. */
export async function syncFolder(folder: string): Promise<void> {
  if (process.platform === 'win32') return
  const handle = await open(folder, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

async function isFolder(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory()
  } catch {
    return false // The reason is the one that mkdir gave.
  }
}

/** Whether there is a file or folder at this path. */
export async function isThere(path: string): Promise<boolean> {
  try {
    await stat(path)
    return true
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false
    throw error
  }
}

/** What a look at a process tells; undefined when it has ended meanwhile, or is another user's and not ours to see. */
export async function ifVisible<T>(look: Promise<T>): Promise<T | undefined> {
  try {
    return await look
  } catch (error) {
    if (['ENOENT', 'ESRCH', 'EACCES', 'EPERM', 'ENOTDIR'].includes(errnoOf(error) ?? '')) return undefined
    throw error
  }
}

/** What is asked of a file or a folder; undefined where there is none. */
export async function orAbsent<T>(ask: () => Promise<T>): Promise<T | undefined> {
  try {
    return await ask()
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return undefined
    throw error
  }
}

/** More than any file that a mirror writes about itself. */
const maxSmallFileBytes = 1024 * 1024

/**
 * The text of a file that holds little. Throws the system's error, and EFBIG for a file of more than `limit` bytes: it is not
 * what it was when it was written, and would not fit into memory.
 */
export async function readSmallFile(path: string, limit = maxSmallFileBytes): Promise<string> {
  // A pipe in its place would keep everybody waiting.
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  try {
    const { size } = await file.stat()
    if (size > limit) throw systemError('EFBIG', 'read', `${path} has ${size} bytes, more than ${limit}`)
    const buffer = Buffer.alloc(size + 1)
    let length = 0
    for (;;) {
      const { bytesRead } = await file.read(buffer, length, buffer.length - length, length)
      length += bytesRead
      if (bytesRead === 0 || length === buffer.length) break
    }
    return buffer.toString('utf8', 0, length)
  } finally {
    await file.close()
  }
}

/** Where to go when the folder that the environment names is not safe. */
const defaultParents = ['/tmp', '/var/tmp']

/**
 * Makes a folder for files of a moment, mode 0700, with a name that cannot be guessed; whoever makes it removes it. Its parent is
 * TMPDIR unless others could move the folder away from there: each part of the path is root's or ours, and who may write it is
 * only us, or everyone in a sticky folder. Throws MirrorError where no such parent is found.
 */
export async function temporaryFolder(prefix: string): Promise<string> {
  return mkdtemp(join(findSafeParent(), prefix))
}

function findSafeParent(): string {
  const named = tmpdir()
  const uid = process.geteuid?.()
  // On Windows it lies in the user's profile.
  if (uid === undefined) return named
  const safe = [named, ...defaultParents].find((path) => findForeign(path, { uid }) === undefined)
  if (safe !== undefined) return safe
  throw new MirrorError(
    `There is no safe folder for temporary files: ${describeForeign(findForeign(named, { uid })!)}.`,
    {
      hints: ['TMPDIR=DIR mirror …   (a folder that only you can write, and only you or root can move)'],
    },
  )
}

/** The certificates of a PEM text, in its order and without what stands around them; undefined when one cannot be read. */
export function readCertificates(pem: string): X509Certificate[] | undefined {
  try {
    const blocks = pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? []
    return blocks.map((block) => new X509Certificate(block))
  } catch {
    // OpenSSL says it in many ways; each means the same.
    return undefined
  }
}
