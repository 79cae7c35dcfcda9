import { errnoOf } from './errors.ts'

/** What a look at a process tells; undefined when it has ended meanwhile, or is another user's and not ours to see. */
export async function ifVisible<T>(look: Promise<T>): Promise<T | undefined> {
  try {
    return await look
  } catch (error) {
    if (['ENOENT', 'ESRCH', 'EACCES', 'EPERM', 'ENOTDIR'].includes(errnoOf(error) ?? '')) return undefined
    throw error
  }
}
