import { lstat, readlink } from 'node:fs/promises'
import { isAbsolute, join, parse, relative, sep } from 'node:path'
import { errnoOf, systemError } from '../lib/errors.ts'

/** As many symbolic links as Linux follows. */
export const mostHops = 40

/**
 * Where a path leads for a program whose `/` is `root`, as chroot(2) has it: an absolute link starts there again, and nothing
 * leads above it. What is not there yet is taken for what it is called. Throws what the system says of links that go round.
 */
export async function resolveBelow(root: string, path: string): Promise<string> {
  const left = partsOf(relative(root, path))
  const at: string[] = []
  let hops = 0
  while (left.length > 0) {
    const part = left.shift()!
    if (part === '..') at.pop()
    else {
      const link = await linkAt(join(root, ...at, part))
      if (link === undefined) at.push(part)
      else {
        if (++hops > mostHops) throw systemError('ELOOP', 'readlink', `ELOOP: too many links, '${path}'`)
        if (isAbsolute(link)) at.length = 0
        left.unshift(...partsOf(link.slice(parse(link).root.length)))
      }
    }
  }
  return join(root, ...at)
}

/** Whether a path is that of the root, or of something in it, by its name. */
export function isBelow(root: string, path: string): boolean {
  const below = relative(root, path)
  return !isAbsolute(below) && below.split(sep)[0] !== '..'
}

function partsOf(path: string): string[] {
  return path.split(sep === '\\' ? /[\\/]/ : sep).filter((part) => part !== '' && part !== '.')
}

async function linkAt(path: string): Promise<string | undefined> {
  try {
    return (await lstat(path)).isSymbolicLink() ? await readlink(path) : undefined
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return undefined
    throw error
  }
}
