import { existsSync } from 'node:fs'
import { mkdir, rmdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { onTestFinished } from 'vitest'

const root = '/sys/fs/cgroup/memory'

/** Whether a process can be given a limit of memory here: as root, with control groups of the first version. */
export const canLimitMemory = process.getuid?.() === 0 && existsSync(join(root, 'memory.limit_in_bytes'))

let made = 0

/** A program that runs another one with so much memory, and no swap; its group is gone after the test. */
export async function memoryLimit(bytes: number): Promise<string[]> {
  const group = join(root, `mirror-test-${process.pid}-${(made += 1)}`)
  await mkdir(group)
  onTestFinished(async () => {
    // What ran in it has been ended, and may take a moment to be gone.
    for (let tries = 0; ; tries++) {
      try {
        return await rmdir(group)
      } catch (error) {
        if (tries === 50) throw error
        await sleep(100)
      }
    }
  })
  await writeFile(join(group, 'memory.limit_in_bytes'), String(bytes))
  if (existsSync(join(group, 'memory.memsw.limit_in_bytes')))
    await writeFile(join(group, 'memory.memsw.limit_in_bytes'), String(bytes))
  return ['sh', '-c', `echo $$ >'${group}/cgroup.procs' && exec "$@"`, 'sh']
}
