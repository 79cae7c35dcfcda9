import { MirrorError, exitCode } from '../../lib/errors.ts'
import { nearest } from '../../config/schema.ts'
import { clientNames, type ClientName } from '../../clients/client-config.ts'
import type { ClientAdapter } from '../../clients/types.ts'

/** Each client's adapter, loaded when it is asked for. */
const load: Partial<Record<ClientName, () => Promise<ClientAdapter>>> = {
  docker: async () => (await import('../../clients/docker/docker.ts')).dockerAdapter,
  buildkit: async () => (await import('../../clients/buildkit/buildkit.ts')).buildkitAdapter,
  containerd: async () => (await import('../../clients/containerd/containerd.ts')).containerdAdapter,
  podman: async () => (await import('../../clients/podman/podman.ts')).podmanAdapter,
  kind: async () => (await import('../../clients/kind/kind.ts')).kindAdapter,
  kaniko: async () => (await import('./kaniko.ts')).kanikoAdapter,
  k3d: async () => (await import('./k3d.ts')).k3dAdapter,
  k3s: async () => (await import('./k3s.ts')).k3sAdapter,
  minikube: async () => (await import('./minikube.ts')).minikubeAdapter,
  testcontainers: async () => (await import('./testcontainers.ts')).testcontainersAdapter,
  skaffold: async () => (await import('./skaffold.ts')).skaffoldAdapter,
  tilt: async () => (await import('./tilt.ts')).tiltAdapter,
}

/** The adapter of a client that the user names. Throws MirrorError (usage). */
export async function adapterOf(name: string): Promise<ClientAdapter> {
  const client = clientNames.find((known) => known === name)
  const adapter = client && load[client]
  if (adapter) return adapter()
  const meant = nearest(name, Object.keys(load))
  const question = meant === undefined ? '' : ` Did you mean ${meant}?`
  throw new MirrorError(`There is no client ${JSON.stringify(name)}.${question}`, {
    exit: exitCode.usage,
    hints: [`mirror configure CLIENT, with one of: ${Object.keys(load).join(', ')}`],
  })
}

export async function allAdapters(): Promise<ClientAdapter[]> {
  return Promise.all(Object.values(load).map((adapter) => adapter()))
}
