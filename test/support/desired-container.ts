import type { ContainerApplyRequest, DesiredContainer } from '../../src/daemon/container/spec.ts'
import { systemClock } from '../../src/lib/time.ts'
import { createFakeEngine, type FakeEngine } from './fake-engine.ts'

/** The mirror that owns the containers. */
export const owner = '/home/me/state'

export function desiredContainer(difference: Partial<DesiredContainer> = {}): DesiredContainer {
  return {
    version: '1.0.0',
    owner,
    image: { id: 'image', hasEntrypoint: false },
    configHashes: {},
    files: 'f',
    ports: {
      cache: { inside: 5055, outside: 5055 },
      registry: undefined,
      admin: { inside: 5056, outside: 5056 },
    },
    networks: [],
    data: { volume: 'mirror-data' },
    user: '1000:1000',
    memory: 512,
    env: {},
    extraCa: undefined,
    engine: { logDriver: 'json-file' },
    ...difference,
  }
}

export function engineWithImage(): FakeEngine {
  const docker = createFakeEngine()
  docker.addImage('dev-mirror:local', { id: 'image' })
  return docker
}

export function orderFor(
  desired: DesiredContainer,
  difference: Partial<ContainerApplyRequest> = {},
): ContainerApplyRequest {
  return {
    desired,
    instance: `of ${desired.memory}`,
    exportArchive: Buffer.from('tar'),
    clock: systemClock,
    signal: new AbortController().signal,
    onReady: () => Promise.resolve(),
    onRestored: () => Promise.resolve(),
    ...difference,
  }
}
