import { describe, expect, inject, test } from 'vitest'
import type { Endpoints } from '../../src/admin/state.ts'
import { type KindHost, createCluster, deleteCluster, pullInNode, startKindHost } from './support/kind.ts'
import { type MirrorCommand, mirrorCommand } from './support/mirror-command.ts'
import { runnableImage } from './support/runnable-image.ts'
import { type Stage, setStage, stageAddress } from './support/scene.ts'

const { missing, newer } = inject('e2e')

const pushed = 'localhost:5001/application:1'

/** Sets up an engine for kind, a user of mirror, and an image of Docker Hub; there is no other registry. */
async function setKindStage(settings: { docker: string; containerd: string }) {
  const image = await runnableImage(21, 'oci')
  const content = { 'library/runnable': { one: image } }
  const stage = await setStage({ content, upstreamAddress: stageAddress })
  const host = await startKindHost(stage, { ...settings, kind: newer })
  const command = await mirrorCommand(stage, {
    cache: { tagFreshness: '0s' },
    upstreams: { 'docker.io': { url: stage.upstream.url, credentials: 'anonymous' } },
  })
  return { stage, host, command }
}

/** Checks that a second cluster gets the content that a deleted one pulled, though Docker Hub is gone. */
async function expectServesClusters(stage: Stage, host: KindHost, command: MirrorCommand, endpoints: Endpoints) {
  const clusterFile = await command.mirror('configure', 'kind')
  const [first] = await createCluster(host, 'one', clusterFile)
  await pullInNode(host, first!, 'docker.io/library/runnable:one')
  const missed = await command.status()
  expect(missed.cache.misses).toBeGreaterThan(0)
  expect(missed.cache.hits).toBe(0)
  await deleteCluster(host, 'one')

  await stage.upstream.disconnect()
  const [second] = await createCluster(host, 'two', clusterFile)
  await pullInNode(host, second!, 'docker.io/library/runnable:one')
  const hit = await command.status()
  expect(hit.cache.misses).toBe(missed.cache.misses)
  expect(hit.cache.hits, 'manifests and blobs').toBeGreaterThanOrEqual(5)
  expect(hit.cache.bytesFromUpstream).toBe(missed.cache.bytesFromUpstream)

  await host.docker('tag', 'local/kind-node:e2e', pushed)
  await host.docker('push', pushed)
  await pullInNode(host, second!, pushed)
  const last = await command.status()
  expect(last.registry).toMatchObject({ repositories: 1, tags: 1, manifests: 1, uploads: 0 })
  expect(last.images.map(({ name }) => name)).toStrictEqual(['docker.io/library/runnable:one'])
  expect(last.endpoints).toStrictEqual(endpoints)
  await deleteCluster(host, 'two')
}

describe.skipIf(missing !== undefined)('clusters of the real kind', () => {
  test.each([
    ["this Debian's own dockerd", { docker: '', containerd: '' }],
    ["Debian's newest dockerd", { docker: newer, containerd: newer }],
  ])('clusters on %s pull through a mirror in a container that started before them', async (_, settings) => {
    const { stage, host, command } = await setKindStage(settings)
    const up = await command.up('--runtime', 'container', '--network', 'kind')
    expect(up).toMatchObject({ outcome: 'started', container: 'mirror', moved: [] })
    expect(up.endpoints).toStrictEqual({
      cache: ['http://127.0.0.1:5055'],
      registry: ['http://127.0.0.1:5001'],
      admin: ['http://127.0.0.1:5056'],
      networks: { kind: 'http://mirror.svc:5055' },
    })
    await expectServesClusters(stage, host, command, up.endpoints)
    expect((await command.status()).runtime).toBe('container')

    await command.mirror('down')
    expect(await host.docker('ps', '--all', '--quiet')).toBe('')
    expect(await host.docker('volume', 'ls', '--quiet')).toBe('mirror-data\n')
  })

  test('clusters pull through a mirror that is a plain process, at the gateway of their network', async () => {
    const { stage, host, command } = await setKindStage({ docker: '', containerd: '' })
    await command.up('--runtime', 'process')
    // configure creates the missing network, because the cluster file needs its address.
    await command.mirror('configure', 'kind')
    expect(await host.docker('network', 'ls', '--quiet', '--filter', 'name=kind')).not.toBe('')
    const { endpoints, runtime } = await command.status()
    expect(runtime).toBe('process')
    expect(endpoints.networks).toStrictEqual({ kind: 'http://172.18.0.1:5055' })
    await expectServesClusters(stage, host, command, endpoints)
    await command.mirror('down')
  })
})
