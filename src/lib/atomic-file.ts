import { open, rename, rm, writeFile, type FileHandle } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { makeFolder, syncFolder } from './fs.ts'

/** A whole, or its pieces one after the other, so that not all of a large file is in memory. */
export type FileContent = string | Uint8Array | Iterable<Uint8Array>

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
