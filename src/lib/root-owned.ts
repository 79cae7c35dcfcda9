import { lstat, readlink } from 'node:fs/promises'
import { dirname, resolve, sep } from 'node:path'
import { orAbsent } from './or-absent.ts'

const mostHops = 40

/**
 * Whether only root can change what is at a path, or what will be made there: each folder above it, and each symbolic link on
 * the way, is root's, and nobody else may write it. In a sticky folder such as /tmp each user changes only what is their own.
 */
export async function isOnlyRoots(path: string): Promise<boolean> {
  return check(resolve(path), 0)
}

async function check(path: string, hops: number): Promise<boolean> {
  const parts = path.split(sep).filter((part) => part !== '')
  let at: string = sep
  if (!(await isSafe(at))) return false
  for (const part of parts) {
    at = resolve(at, part)
    const what = await orAbsent(() => lstat(at))
    // What is made there will be root's.
    if (what === undefined) return true
    if (what.uid !== 0) return false
    if (what.isSymbolicLink()) {
      if (hops >= mostHops) return false
      const rest = path.slice(at.length)
      return check(`${resolve(dirname(at), await readlink(at))}${rest}`, hops + 1)
    }
    if (!isClosed(what)) return false
  }
  return true
}

async function isSafe(path: string): Promise<boolean> {
  const what = await lstat(path)
  return what.uid === 0 && isClosed(what)
}

function isClosed({ mode }: { mode: number }): boolean {
  const othersWrite = (mode & 0o022) !== 0
  const isSticky = (mode & 0o1000) !== 0
  return !othersWrite || isSticky
}
