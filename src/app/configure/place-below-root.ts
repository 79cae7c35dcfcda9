import { filesBelow } from '../../clients/files/local.ts'
import type { ClientPlace, Machine } from '../../clients/types.ts'

/** A place as it is below `--root`, where a link means what it would mean if that were `/`. */
export function placeBelowRoot({ detached, root }: Machine, place: ClientPlace): ClientPlace {
  return detached ? { ...place, files: filesBelow(root) } : place
}
