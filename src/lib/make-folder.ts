import { mkdir, stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import { errnoOf } from './errors.ts'

/**
 * Makes a folder and what is missing above it. Resolves with the uppermost that was made; undefined when it was there already.
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
    return path
  } catch (error) {
    // Where nothing may be made, what is there already need not be: the reason is not always EEXIST.
    if (errnoOf(error) === 'ENOENT' || !(await isFolder(path))) throw error
    return undefined
  }
}

async function isFolder(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory()
  } catch {
    return false // The reason is the one that mkdir gave.
  }
}
