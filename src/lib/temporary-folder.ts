import { mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { MirrorError } from './errors.ts'
import { describeForeign, findForeign } from './ownership.ts'

/** Where to go when the folder that the environment names is not safe. */
const usual = ['/tmp', '/var/tmp']

/**
 * Makes a folder for files of a moment, mode 0700, with a name that cannot be guessed; whoever makes it removes it. Its parent is
 * TMPDIR unless others could move the folder away from there: each part of the path is root's or ours, and who may write it is
 * only us, or everyone in a sticky folder. Throws MirrorError where no such parent is found.
 */
export async function temporaryFolder(prefix: string): Promise<string> {
  return mkdtemp(join(safeParent(), prefix))
}

function safeParent(): string {
  const named = tmpdir()
  const uid = process.geteuid?.()
  // On Windows it lies in the user's profile.
  if (uid === undefined) return named
  const safe = [named, ...usual].find((path) => findForeign(path, { uid }) === undefined)
  if (safe !== undefined) return safe
  throw new MirrorError(
    `There is no safe folder for temporary files: ${describeForeign(findForeign(named, { uid })!)}.`,
    {
      hints: ['TMPDIR=DIR mirror …   (a folder that only you can write, and only you or root can move)'],
    },
  )
}
