import { randomBytes } from 'node:crypto'
import { errnoOf } from '../lib/errors.ts'
import { readSmallFile, writeFileAtomic } from '../lib/fs.ts'

/** The secret that lets a command change a running mirror. */
export function openAdminToken(path: string): Promise<string> {
  return openSecret(path)
}

/** A secret of 64 hexadecimal digits that outlives the process; made anew when its file is absent or damaged. */
export async function openSecret(path: string): Promise<string> {
  const known = await readSecret(path)
  if (known !== undefined) return known
  const secret = randomBytes(32).toString('hex')
  await writeFileAtomic(path, `${secret}\n`)
  return secret
}

/** The secret in the file, if there is one. */
async function readSecret(path: string): Promise<string | undefined> {
  try {
    const token = (await readSmallFile(path)).trim()
    return /^[0-9a-f]{64}$/.test(token) ? token : undefined
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'EFBIG') return undefined
    throw error
  }
}
