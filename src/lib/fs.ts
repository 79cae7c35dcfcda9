import { mkdir, open, stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import { errnoOf } from './errors.ts'

/**
 * Makes a folder and what is missing above it, durably. Resolves with the uppermost that was made; undefined when it was there already.
 * Node's own recursive way never ends below a folder that was removed while it is mounted or open: each of its turns finds
 * that the folder is there, and that nothing can be made in it.
 */
export async function makeFolder(path: string, mode = 0o700): Promise<string | undefined> {
  try {
    return await makeOne(path, mode)
  } catch (error) {
    const parent = dirname(path)
    if (errnoOf(error) !== 'ENOENT' || parent === path) throw error
    const first = await makeFolder(parent, mode)
    return (await makeOne(path, mode)) === undefined ? first : (first ?? path)
  }
}

async function makeOne(path: string, mode: number): Promise<string | undefined> {
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
const harmless = ['EACCES', 'EPERM', 'EINVAL', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EISDIR']

async function syncParent(parent: string): Promise<void> {
  try {
    await syncFolder(parent)
  } catch (error) {
    if (!harmless.includes(errnoOf(error) ?? '')) throw error
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
