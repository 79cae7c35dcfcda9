import { isCaFile } from './ca-file.ts'
import type { FileChange } from './client-config.ts'

/**
 * The order in which files are written: a CA is there before what names it, and goes after it. In between, or ended there, a
 * client would refuse the registry for the missing file.
 */
export function inWritingOrder(changes: readonly FileChange[]): FileChange[] {
  return changes.toSorted((one, other) => turnOf(one) - turnOf(other))
}

function turnOf({ path, after }: FileChange): number {
  if (!isCaFile(path)) return 0
  return after === undefined ? 1 : -1
}
