import { mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'

const root = '/sys/fs/cgroup/memory'

export interface MemoryCgroup {
  /** For `startMirrorProcess`: runs its arguments inside. */
  readonly wrapper: readonly string[]
  /** The most bytes that were ever in it, files among them. */
  peak(): number
  /** How often the kernel ended something in it. */
  kills(): number
}

/** Whether groups with a limit of memory can be made here: as root, with version 1 of the kernel's interface. */
export function canLimitMemory(): boolean {
  const name = join(root, `mirror-probe-${process.pid}`)
  try {
    mkdirSync(name)
    rmdirSync(name)
    return true
  } catch {
    return false
  }
}

/** Makes a group that may hold so many bytes. What runs in it must end before the test does. */
export function makeMemoryCgroup(bytes: number): MemoryCgroup {
  const folder = join(root, `mirror-test-${process.pid}-${bytes}`)
  mkdirSync(folder)
  const remove = async () => {
    for (let tries = 0; ; tries++) {
      try {
        return rmdirSync(folder)
      } catch (error) {
        // A process that has just ended is in its group for a moment.
        if (tries === 100) throw error
        await new Promise((done) => setTimeout(done, 50))
      }
    }
  }
  onTestFinished(remove)
  writeFileSync(join(folder, 'memory.limit_in_bytes'), String(bytes))
  const read = (file: string) => readFileSync(join(folder, file), 'utf8')
  return {
    wrapper: ['sh', '-c', `echo $$ > ${folder}/cgroup.procs; exec "$@"`, 'sh'],
    peak: () => Number(read('memory.max_usage_in_bytes')),
    kills: () => Number(/^oom_kill (\d+)$/m.exec(read('memory.oom_control'))?.[1] ?? 0),
  }
}
