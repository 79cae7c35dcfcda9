import { copyFile, stat, truncate } from 'node:fs/promises'
import { errnoOf } from '../lib/errors.ts'

/**
 * Keeps a log that programs append to below a size: what is beyond goes to `<file>.1`. The file is emptied, not replaced, for
 * a running mirror holds it open.
 */
export async function limitLog(file: string, mostBytes = 16 * 1024 * 1024): Promise<void> {
  try {
    if ((await stat(file)).size <= mostBytes) return
    await copyFile(file, `${file}.1`)
    await truncate(file)
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error
  }
}
