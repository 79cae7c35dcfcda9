import { allAdapters } from './client-adapters.ts'
import type { ClientAdapter, Machine } from './client-adapter.ts'

export interface FoundClient {
  readonly adapter: ClientAdapter
  /** `podman 4.3.1` */
  readonly what: string
}

/** The clients that are on this machine; none where nobody may be asked. */
export async function findClients(machine: Machine): Promise<FoundClient[]> {
  if (machine.detached) return []
  const found = await Promise.all(
    (await allAdapters()).map(async (adapter) => ({ adapter, what: await adapter.find(machine) })),
  )
  return found.flatMap(({ adapter, what }) => (what === undefined ? [] : { adapter, what }))
}
