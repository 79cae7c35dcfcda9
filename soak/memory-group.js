// Limits the memory of processes with the kernel's control groups of version 1 or 2. Requires root.
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

const mountedAt = '/sys/fs/cgroup'
/** Names the kernel's files. */
const versions = {
  1: { limit: 'memory.limit_in_bytes', swap: 'memory.memsw.limit_in_bytes', events: 'memory.oom_control' },
  2: { limit: 'memory.max', swap: 'memory.swap.max', events: 'memory.events' },
}

/**
 * Finds the folder in which groups with a memory limit can be created. Throws an Error with the reason when none can.
 * @param {string} [root] where the system has its control groups
 */
export function findMemoryGroups(root = mountedAt) {
  const found = locate(root)
  if (!found) throw new Error(`There is no memory controller below ${root}, neither of version 1 nor of version 2.`)
  const probe = join(found.folder, `mirror-probe-${process.pid}`)
  try {
    if (found.version === 2) handOutMemory(found.folder)
    mkdirSync(probe)
    rmdirSync(probe)
  } catch (error) {
    const why = error.code === 'EBUSY' ? ': processes are in that group itself; move them to one below it' : ''
    throw new Error(`No group can be made in ${found.folder} (${error.code}${why}).`, { cause: error })
  }
  return found
}

/** @returns {{ folder: string, version: 1 | 2 } | undefined} */
function locate(root) {
  if (existsSync(join(root, 'memory', versions[1].limit))) return { folder: join(root, 'memory'), version: 1 }
  // Look in `unified`, too: systems with both versions have version 2 there.
  const folder = [root, join(root, 'unified')].find((each) => listOf(each, 'cgroup.controllers').includes('memory'))
  return folder === undefined ? undefined : { folder, version: 2 }
}

/** Allows memory limits for the groups below the folder. */
function handOutMemory(folder) {
  if (!listOf(folder, 'cgroup.subtree_control').includes('memory'))
    writeFileSync(join(folder, 'cgroup.subtree_control'), '+memory')
}

function listOf(folder, file) {
  const path = join(folder, file)
  return existsSync(path) ? readFileSync(path, 'utf8').trim().split(/\s+/) : []
}

/** Runs processes with a common memory limit and no swap. */
export class MemoryGroup {
  #folder
  #names

  /** @param {{ folder: string, version: 1 | 2 }} groups from `findMemoryGroups` @param {string} name @param {number} bytes */
  constructor({ folder, version }, name, bytes) {
    this.#folder = join(folder, name)
    this.#names = versions[version]
    mkdirSync(this.#folder)
    writeFileSync(this.#path(this.#names.limit), String(bytes))
    // Set the swap limit if the file exists: version 1 counts memory and swap together, and a kernel without swap has no file.
    const swap = this.#path(this.#names.swap)
    if (existsSync(swap)) writeFileSync(swap, String(version === 1 ? bytes : 0))
  }

  /** Returns a wrapper that runs its arguments in the group. */
  get wrapper() {
    return ['sh', '-c', `echo $$ >'${this.#path('cgroup.procs')}' && exec "$@"`, 'sh']
  }

  /** Counts the processes that the kernel killed because the memory was used up. */
  get kills() {
    return Number(/^oom_kill (\d+)$/m.exec(readFileSync(this.#path(this.#names.events), 'utf8'))?.[1] ?? 0)
  }

  /** Removes the group when its processes have ended. */
  async remove() {
    for (let tries = 0; ; tries++) {
      try {
        return rmdirSync(this.#folder)
      } catch (error) {
        // Try again, because a process that has just ended stays in its group for a moment.
        if (tries === 100) throw error
        await sleep(50)
      }
    }
  }

  #path(file) {
    return join(this.#folder, file)
  }
}
