import { randomBytes } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { writeFileAtomic } from '../lib/atomic-file.ts'
import { errnoOf } from '../lib/errors.ts'

/** The secret that lets a command change a running mirror; made anew when the file is absent or damaged. */
export async function openAdminToken(path: string): Promise<string> {
  const known = await readAdminToken(path)
  if (known !== undefined) return known
  const token = randomBytes(32).toString('hex')
  await writeFileAtomic(path, `${token}\n`)
  return token
}

/** The token of the file, if there is one. */
async function readAdminToken(path: string): Promise<string | undefined> {
  try {
    const token = (await readFile(path, 'utf8')).trim()
    return /^[0-9a-f]{64}$/.test(token) ? token : undefined
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw error
  }
}
