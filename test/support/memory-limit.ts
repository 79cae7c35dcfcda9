import { onTestFinished } from 'vitest'
import { findMemoryGroups, MemoryGroup } from '../../soak/memory-group.js'

/**
 * Whether a process can be given a limit of memory: on Linux, by root. Throws where that should be possible and is not, so that
 * nobody takes tests for passed that have not run.
 */
export function canLimitMemory(): boolean {
  if (process.platform !== 'linux' || process.getuid?.() !== 0) return false
  try {
    findMemoryGroups()
    return true
  } catch (error) {
    throw new Error('The tests with little memory cannot run here. Run them where control groups can be made.', {
      cause: error,
    })
  }
}

let made = 0

/** A limit of memory. What runs under it must end before the test does. */
export function limitMemory(bytes: number): MemoryGroup {
  const group = new MemoryGroup(findMemoryGroups(), `mirror-test-${process.pid}-${(made += 1)}`, bytes)
  onTestFinished(() => group.remove())
  return group
}
