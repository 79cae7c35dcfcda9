import { readFileSync } from 'node:fs'
import { errnoOf } from '../lib/errors.ts'

/** Descriptors the process needs for itself: its runtime, store and log, and connections to upstreams. */
const ownDescriptors = 32

/**
 * How many clients may be connected so that each still gets a file to read from: a descriptor that is missing in the middle
 * of an answer helps nobody. Undefined where the platform does not tell its limit.
 */
export function connectionLimit(): number | undefined {
  try {
    const match = /^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))
    return match ? Math.max(4, Math.floor((Number(match[1]) - ownDescriptors) / 2)) : undefined
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    return undefined
  }
}
