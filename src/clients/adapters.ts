import { access, constants } from 'node:fs/promises'
import { delimiter, join } from 'node:path'
import { allAdapters } from '../app/configure/client-adapters.ts'
import { errnoOf } from '../lib/errors.ts'
import type { ClientName } from './client-config.ts'
import { hasEngine } from './docker/engines.ts'
import type { ClientAdapter, Machine } from './types.ts'

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

/** By the programs that `find` of each adapter looks for. */
const programs = {
  podman: ['podman', 'buildah', 'skopeo'],
  containerd: ['containerd'],
  kind: ['kind'],
  k3d: ['k3d'],
  k3s: ['k3s'],
  minikube: ['minikube'],
} as const satisfies Partial<Record<ClientName, string[]>>

/** The clients that `findClients` finds, as far as their programs on the PATH tell; quicker, because none is run. */
export async function findPrograms(machine: Pick<Machine, 'platform' | 'env' | 'home'>): Promise<ClientName[]> {
  const folders = (machine.env['PATH'] ?? '').split(delimiter).filter((folder) => folder !== '')
  const isHere = async (names: readonly string[]) => {
    const places = names.flatMap((name) => folders.map((folder) => isProgram(join(folder, name))))
    return (await Promise.all(places)).includes(true)
  }
  // The `docker` command alone pulls nothing: that takes an engine.
  const hasDocker = (await isHere(['dockerd'])) || (await hasEngine(machine))
  const found = await Promise.all(
    Object.entries(programs).map(async ([name, names]) => ((await isHere(names)) ? [name as ClientName] : [])),
  )
  return [...(hasDocker ? (['docker'] as const) : []), ...found.flat()]
}

async function isProgram(path: string): Promise<boolean> {
  try {
    await access(path, constants.X_OK)
    return true
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    return false
  }
}
