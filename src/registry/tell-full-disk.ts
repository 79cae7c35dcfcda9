import { errnoOf } from '../lib/errors.ts'
import { OciError } from '../oci/errors.ts'

/** Runs a task that writes; a disk without room becomes a 507 that says so. */
export async function tellFullDisk<T>(task: () => Promise<T>): Promise<T> {
  try {
    return await task()
  } catch (error) {
    const code = errnoOf(error)
    if (code !== 'ENOSPC' && code !== 'EDQUOT') throw error
    throw new OciError(
      'DENIED',
      507,
      'The disk of the registry is full, up to the reserve of cache.minFree. Free space.',
    )
  }
}
