import { describe, expect, inject, test } from 'vitest'
import { dockerSocket, startDockerd } from './support/dockerd.ts'
import { listeningAddresses } from './support/listening-addresses.ts'
import { busyboxTar, runnableImage } from './support/runnable-image.ts'
import { startScene } from './support/scene.ts'

const { missing } = inject('e2e')

describe.skipIf(missing !== undefined)('a mirror as a plain process, and a Docker network that comes and goes', () => {
  test('containers reach a mirror that is a plain process at the gateway of their network, as long as the network exists', async () => {
    const image = await runnableImage(4, 'oci')
    const scene = await startScene({
      registries: ['docker.io'],
      content: { 'library/runnable': { one: image } },
      networks: ['kind'],
      registry: true,
      env: (folder) => ({ DOCKER_HOST: `unix://${dockerSocket(folder)}` }),
    })
    const { docker, feed } = await startDockerd(scene, '', {})
    await feed(await busyboxTar(), 'import', '-', 'busybox:local')
    const networks = async () => (await scene.mirror.status()).endpoints.networks
    const soon = { timeout: 15_000, interval: 200 }
    expect(await networks()).toStrictEqual({})

    for (const subnet of ['172.29.1.0/24', '172.29.2.0/24']) {
      const gateway = subnet.replace('.0/24', '.1')
      await docker('network', 'create', '--subnet', subnet, '--gateway', gateway, 'kind')
      await expect.poll(networks, soon).toStrictEqual({ kind: `http://${gateway}:5055` })
      for (const port of [5055, 5001])
        expect(await listeningAddresses(scene.mirror.pid, port)).toStrictEqual(['127.0.0.1', gateway].toSorted())

      const inside = ['run', '--rm', '--network', 'kind', 'busybox:local']
      const wget = (path: string) => docker(...inside, 'wget', '-q', '-O', '-', `http://${gateway}:5055${path}`)
      await wget('/v2/')
      expect(await wget('/v2/library/runnable/manifests/one')).toBe(image.bytes.toString())
      const pushed = await docker(...inside, 'wget', '-q', '-O', '-', `http://${gateway}:5001/v2/_catalog`)
      expect(JSON.parse(pushed)).toStrictEqual({ repositories: [] })

      await docker('network', 'rm', 'kind')
      for (const port of [5055, 5001])
        await expect.poll(() => listeningAddresses(scene.mirror.pid, port), soon).toStrictEqual(['127.0.0.1'])
      expect(await networks()).toStrictEqual({})
    }
  })
})
