import { randomBytes } from 'node:crypto'
import { readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { errnoOf } from '../lib/errors.ts'

/** The name of a file that is being written beside the one it will take the place of: it says whose it is, if it is left. */
export function temporaryName(name: string): string {
  return `.${name}.mirror-${process.pid}-${randomBytes(8).toString('hex')}`
}

/** Whether a file is, or was, on its way to take the place of another. */
export function isTemporary(name: string): boolean {
  return ownerOf(name) !== undefined
}

/** Removes the files that a process of ours was writing in a folder when it was killed. */
export async function removeLeftovers(folder: string): Promise<void> {
  for (const name of await namesIn(folder)) {
    const owner = ownerOf(name)
    if (owner !== undefined && !isAlive(owner)) await rm(join(folder, name), { force: true })
  }
}

/** The id of the process that made it. */
function ownerOf(name: string): number | undefined {
  const pid = /^\..+\.mirror-(\d{1,10})-[0-9a-f]{16}$/.exec(name)?.[1]
  return pid === undefined ? undefined : Number(pid)
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    if (errnoOf(error) === 'ESRCH') return false
    if (errnoOf(error) === 'EPERM') return true
    throw error
  }
}

/** What cannot be listed is nothing to tidy up. */
async function namesIn(folder: string): Promise<string[]> {
  try {
    return await readdir(folder)
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    return []
  }
}
