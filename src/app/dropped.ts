import type { MirrorState } from '../admin/state.ts'

/** What a mirror that ran before had, by a flag or an older configuration, and the one that is wanted now has not. */
export interface Dropped {
  /** Docker networks whose containers reach it no longer. */
  readonly networks: readonly string[]
  /** Registries whose credentials are no longer handed to its container. */
  readonly credentials: readonly string[]
}

export const nothingDropped: Dropped = { networks: [], credentials: [] }

/** The networks, by their real names, that the running mirror serves or looks for, without those that are wanted now. */
export function droppedNetworks(running: MirrorState | undefined, wanted: readonly string[]): string[] {
  if (running === undefined) return []
  const configured = running.served?.config['networks']
  const looked = Array.isArray(configured) ? configured.filter((name) => typeof name === 'string') : []
  // Where a name stands for another one, only the addresses know.
  const served = new Set([...Object.keys(running.endpoints.networks), ...looked.filter((name) => name !== 'kind')])
  return [...served].filter((name) => !wanted.includes(name))
}
