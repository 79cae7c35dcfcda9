import { errnoOf, reserveOf } from '../lib/errors.ts'
import { formatBytes } from '../lib/units.ts'
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
  return tellUnwritable(task)
}

/** Runs a task that writes; a disk that takes nothing, for whatever lasting reason, becomes an OciError 507 that says so. */
export async function tellUnwritable<T>(task: () => Promise<T>): Promise<T> {
  try {
    return await task()
  } catch (error) {
    const minFree = reserveOf(error)
    const why = minFree === undefined ? reasons[errnoOf(error) ?? ''] : reserved(minFree)
    throw why === undefined ? error : new OciError('DENIED', 507, `${why} What is there can still be pulled.`)
  }
}

const noPermission =
  'The mirror may not write to the folder of its data. Give the folder back to the user who runs it; mirror status names it.'

/** The folder is not named here: the client may be on another machine. */
function reserved(minFree: number): string {
  return `The disk with the data of the mirror would have less than ${formatBytes(minFree)} free, which cache.minFree reserves. Free space on it, or lower cache.minFree; mirror status names its folder.`
}

/** By the system's error. An I/O error is none of them: the next try may succeed. */
const reasons: Readonly<Record<string, string>> = {
  ENOSPC: 'The disk with the data of the mirror is full. Free space on it; mirror status names its folder.',
  EDQUOT: 'The disk quota of the user who runs the mirror is used up. Free space, or raise the quota.',
  EROFS:
    'The disk with the data of the mirror is mounted read-only. Remount it, or use another folder: mirror up --data DIR.',
  EACCES: noPermission,
  EPERM: noPermission,
}

function isDiskFull(error: unknown): boolean {
  const code = errnoOf(error)
  return code === 'ENOSPC' || code === 'EDQUOT'
}
