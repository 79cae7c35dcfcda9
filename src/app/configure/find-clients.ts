import { access, constants } from 'node:fs/promises'
import { delimiter, join } from 'node:path'
import type { ClientName } from '../../clients/client-config.ts'
import { errnoOf } from '../../lib/errors.ts'
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

const programs = ['docker', 'podman', 'containerd', 'kind', 'k3d', 'k3s', 'minikube'] as const satisfies ClientName[]

/** The clients whose program is on the PATH; quicker than `findClients`, because none is run. */
export async function findPrograms(env: Machine['env']): Promise<ClientName[]> {
  const folders = (env['PATH'] ?? '').split(delimiter).filter((folder) => folder !== '')
  const found = await Promise.all(
    programs.map(async (name) => {
      const places = await Promise.all(folders.map((folder) => isProgram(join(folder, name))))
      return places.includes(true) ? [name] : []
    }),
  )
  return found.flat()
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
