import { onTestFinished } from 'vitest'
import { findMemoryGroups, MemoryGroup } from '../../soak/memory-group.js'

/**
 * Reports whether a process can run under a memory limit: on Linux, as root. Throws when root on Linux cannot set one, so that
 * skipped tests do not look like passed ones.
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

/** Creates a memory limit. Processes under it must end before the test does. */
export function limitMemory(bytes: number): MemoryGroup {
  const group = new MemoryGroup(findMemoryGroups(), `mirror-test-${process.pid}-${(made += 1)}`, bytes)
  onTestFinished(() => group.remove())
  return group
}
