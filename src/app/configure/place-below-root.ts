import { filesBelow } from '../../clients/local-files.ts'
import type { ClientPlace, Machine } from './client-adapter.ts'

/** A place as it is below `--root`, where a link means what it would mean if that were `/`. */
export function placeBelowRoot({ detached, root }: Machine, place: ClientPlace): ClientPlace {
  return detached ? { ...place, files: filesBelow(root) } : place
}
