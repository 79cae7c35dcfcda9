import { statfs } from 'node:fs/promises'
import { errnoOf } from '../lib/errors.ts'

/** Bytes that an ordinary user may still write to the file system of a path; Infinity where it does not tell. */
export async function freeSpace(path: string): Promise<number> {
  try {
    const { bavail, bsize } = await statfs(path)
    return bavail * bsize
  } catch (error) {
    if (errnoOf(error) === 'ENOSYS') return Infinity
    throw error
  }
}
