import { errnoOf } from '../lib/errors.ts'
import { OciError } from '../oci/errors.ts'

/** Frees bytes on the disk, if so many can be had: content that can be fetched again goes. */
export type MakeRoom = (bytes: number) => Promise<void>

/** More than a line of a journal takes. */
export const journalBytes = 64 * 1024

/** Enough for a while of writing, so that room need not be made again at once. */
const generousBytes = 64 * 1024 * 1024

/**
 * Runs a task that writes, and may be run again: while the disk is full, with much and then with `least` bytes of room made
 * for it. Throws an OciError 507 when there is no room to be had.
 */
export async function withRoom<T>(makeRoom: MakeRoom, least: number, task: () => Promise<T>): Promise<T> {
  for (const bytes of [generousBytes, least]) {
    try {
      return await task()
    } catch (error) {
      if (!isDiskFull(error)) throw error
    }
    await makeRoom(bytes)
  }
  return tellFullDisk(task)
}

/** Runs a task that writes; a disk without room becomes an OciError 507 that says so. */
export async function tellFullDisk<T>(task: () => Promise<T>): Promise<T> {
  try {
    return await task()
  } catch (error) {
    if (!isDiskFull(error)) throw error
    throw new OciError(
      'DENIED',
      507,
      'The disk of the registry is full, up to the reserve of cache.minFree. Free space.',
    )
  }
}

function isDiskFull(error: unknown): boolean {
  const code = errnoOf(error)
  return code === 'ENOSPC' || code === 'EDQUOT'
}
