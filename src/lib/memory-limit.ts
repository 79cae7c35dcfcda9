import { totalmem } from 'node:os'

/**
 * The memory that this process may have, bytes. In a container it is the container's, which `constrainedMemory` knows; without a
 * limit that is 0, or larger than any machine.
 */
export function memoryLimit(): number {
  return Math.min(process.constrainedMemory() || Infinity, totalmem())
}
