import type { X509Certificate } from 'node:crypto'
import { constants, existsSync } from 'node:fs'
import { type FileHandle, mkdir, mkdtemp, open, rename, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { getErrno, MirrorError, createSystemError } from './errors.ts'
import { describeForeign, findForeign, maxSmallFileBytes } from './ownership.ts'

/** Lists the error codes of an fsync that cannot be done: the folder is not readable, or its file system has no such call. */
const harmlessSyncCodes = ['EACCES', 'EPERM', 'EINVAL', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EISDIR']
/** Parents to try when TMPDIR is not safe. */
const defaultParents = ['/tmp', '/var/tmp']

/** Holds the whole content, or its pieces in order, so that a large file need not be in memory as a whole. */
type FileContent = string | Uint8Array | Iterable<Uint8Array> | AsyncIterable<Uint8Array>

/**
 * Replaces a file atomically: temp file in the same folder, fsync, rename, fsync of the folder. Readers, and a crash at any
 * moment, see the old content or the new one, never a part. Creates missing folders with mode 0700.
 */
export async function writeFileAtomic(path: string, content: FileContent, mode = 0o600): Promise<void> {
  const folder = dirname(path)
  await makeFolder(folder)
  // Load the module here, because a program that only reads files starts faster without it.
  const { randomBytes } = process.getBuiltinModule('node:crypto')
  await replaceFile(path, join(folder, `.${basename(path)}.${randomBytes(8).toString('hex')}`), content, { mode })
}

/**
 * Replaces a file atomically through the temp file `temporary`, which must lie in the same folder. `prepare` changes the temp file
 * (owner, mode …) before the rename.
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
 * Creates a folder and its missing parents, durably. Resolves with the uppermost folder that was created; undefined when the folder
 * exists. Node's recursive `mkdir` never ends below a folder that was removed while it is mounted or open: in each round it finds
 * the folder, and cannot create anything in it.
 */
export async function makeFolder(path: string, mode = 0o700): Promise<string | undefined> {
  try {
    return await makeSingleFolder(path, mode)
  } catch (error) {
    const parent = dirname(path)
    if (getErrno(error) !== 'ENOENT' || parent === path) throw error
    const first = await makeFolder(parent, mode)
    return (await makeSingleFolder(path, mode)) === undefined ? first : (first ?? path)
  }
}

async function makeSingleFolder(path: string, mode: number): Promise<string | undefined> {
  try {
    await mkdir(path, { mode })
  } catch (error) {
    // Accept an existing folder for any error: on a read-only file system mkdir does not fail with EEXIST.
    if (getErrno(error) === 'ENOENT' || !(await isFolder(path))) throw error
    return undefined
  }
  await syncParent(dirname(path))
  return path
}

async function syncParent(parent: string): Promise<void> {
  try {
    await syncFolder(parent)
  } catch (error) {
    if (!harmlessSyncCodes.includes(getErrno(error) ?? '')) throw error
  }
}

/** Makes renames, unlinks and new entries of a folder durable. Does nothing on Windows, which cannot open folders. */
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
    return false // The caller throws the error of mkdir.
  }
}

/** Checks whether a file or folder exists at this path. */
export async function pathExists(path: string): Promise<boolean> {
  try {
    await stat(path)
    return true
  } catch (error) {
    if (getErrno(error) === 'ENOENT') return false
    throw error
  }
}

/** Resolves with what /proc tells of a process; undefined when the process has ended, or when access is denied. */
export async function ifVisible<T>(look: Promise<T>): Promise<T | undefined> {
  try {
    return await look
  } catch (error) {
    if (['ENOENT', 'ESRCH', 'EACCES', 'EPERM', 'ENOTDIR'].includes(getErrno(error) ?? '')) return undefined
    throw error
  }
}

/** Resolves with the result of a file operation; undefined when the file or folder does not exist. */
export async function ignoreMissing<T>(ask: () => Promise<T>): Promise<T | undefined> {
  try {
    return await ask()
  } catch (error) {
    if (getErrno(error) === 'ENOENT' || getErrno(error) === 'ENOTDIR') return undefined
    throw error
  }
}

/**
 * Reads a small text file. Throws system errors, and EFBIG for a file of more than `limit` bytes: such a file is damaged, and might
 * not fit into memory.
 */
export async function readSmallFile(path: string, limit = maxSmallFileBytes): Promise<string> {
  // O_NONBLOCK: a pipe at this path would block the open.
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  try {
    const { size } = await file.stat()
    if (size > limit) throw createSystemError('EFBIG', 'read', `${path} has ${size} bytes, more than ${limit}`)
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

/**
 * Creates a temporary folder with mode 0700 and a random name; the caller removes it. Its parent is TMPDIR, or /tmp or /var/tmp
 * when other users could move the folder away from there: each part of the path must belong to root or this user, and must not be
 * writable by others unless it is sticky. Throws a MirrorError when no parent is safe.
 */
export async function createTemporaryFolder(prefix: string): Promise<string> {
  return mkdtemp(join(findSafeParent(), prefix))
}

function findSafeParent(): string {
  const named = tmpdir()
  const uid = process.geteuid?.()
  // On Windows the folder lies in the user's profile.
  if (uid === undefined) return named
  const safe = [named, ...defaultParents].find((path) => findForeign(path, { uid }) === undefined)
  if (safe !== undefined) return safe
  throw new MirrorError(`No safe folder for temporary files: ${describeForeign(findForeign(named, { uid })!)}.`, {
    hints: ['TMPDIR=DIR mirror …   (a folder that only you can write to, and only you or root can move)'],
  })
}

/** Parses the certificates of a PEM text in order, ignoring the text around them; undefined when one is invalid. */
export function parseCertificates(pem: string): X509Certificate[] | undefined {
  try {
    const crypto = process.getBuiltinModule('node:crypto')
    const blocks = pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? []
    return blocks.map((block) => new crypto.X509Certificate(block))
  } catch {
    // OpenSSL throws many kinds of errors for the same thing.
    return undefined
  }
}

/** Returns the folder of this package, whether this code runs from the sources or from the bundle. Throws when there is none. */
export function findPackageRoot(): string {
  const start = dirname(fileURLToPath(import.meta.url))
  let folder = start
  while (!existsSync(join(folder, 'package.json'))) {
    if (folder === dirname(folder)) throw new Error(`No package.json at or above ${start}`)
    folder = dirname(folder)
  }
  return folder
}
