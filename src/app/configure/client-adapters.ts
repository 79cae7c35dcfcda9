import { MirrorError, exitCode } from '../../lib/errors.ts'
import { clientNames, type ClientName } from '../../clients/client-config.ts'
import type { ClientAdapter } from './client-adapter.ts'

/** Each client's adapter, loaded when it is asked for. */
const load: Partial<Record<ClientName, () => Promise<ClientAdapter>>> = {
  docker: async () => (await import('./docker.ts')).dockerAdapter,
  buildkit: async () => (await import('./buildkit.ts')).buildkitAdapter,
  containerd: async () => (await import('./containerd.ts')).containerdAdapter,
  podman: async () => (await import('./podman.ts')).podmanAdapter,
}

/** The adapter of a client that the user names. Throws MirrorError (usage). */
export async function adapterOf(name: string): Promise<ClientAdapter> {
  const client = clientNames.find((known) => known === name)
  const adapter = client && load[client]
  if (adapter) return adapter()
  throw new MirrorError(`There is no client ${JSON.stringify(name)}.`, {
    exit: exitCode.usage,
    hints: [`mirror configure CLIENT, with one of: ${Object.keys(load).join(', ')}`],
  })
}

export async function allAdapters(): Promise<ClientAdapter[]> {
  return Promise.all(Object.values(load).map((adapter) => adapter()))
}
