import { stat } from 'node:fs/promises'
import { errnoOf } from './errors.ts'

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
