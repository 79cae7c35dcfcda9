import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, inject, test } from 'vitest'
import { configure } from './support/configure.ts'
import { type KindHost, createCluster, pullInNode, startKindHost } from './support/kind.ts'
import { mirrorCommand } from './support/mirror-command.ts'
import { runnableImage } from './support/runnable-image.ts'
import { setStage, stageAddress } from './support/scene.ts'

const { missing, newer } = inject('e2e')

/** Names an image of Docker Hub; each pull needs another tag, because containerd does not ask again for what it has. */
const image = (tag: string) => `docker.io/library/runnable:${tag}`

async function setKindStage() {
  const content = {
    'library/runnable': Object.fromEntries(
      await Promise.all(
        ['one', 'two', 'three', 'four'].map(async (tag, at) => [tag, await runnableImage(61 + at, 'oci')] as const),
      ),
    ),
  }
  const stage = await setStage({ content, upstreamAddress: stageAddress })
  const host = await startKindHost(stage, { docker: '', containerd: '', kind: newer })
  const command = await mirrorCommand(stage, {
    cache: { tagFreshness: '0s' },
    upstreams: { 'docker.io': { url: stage.upstream.url, credentials: 'anonymous' } },
  })
  return { stage, host, command }
}

function hostsToml(host: KindHost, node: string) {
  return host.docker('exec', node, 'cat', '/etc/containerd/certs.d/_default/hosts.toml')
}

describe.skipIf(missing !== undefined)('the real kind with a mirror that starts, moves and stops', () => {
  test('kind gets a cluster file each time, even right after the start of the mirror', async () => {
    const { host, command } = await setKindStage()
    await host.docker('network', 'create', 'kind')
    for (let round = 0; round < 10; round += 1) {
      await command.up('--runtime', 'process')
      expect(await command.mirror('configure', 'kind')).toContain('kind: Cluster')
      await command.mirror('down')
    }
  })

  test('kind prints the reason of the mirror if there is no cluster file', async () => {
    const { stage, host, command } = await setKindStage()
    const failed = await command.mirror('configure', 'kind').catch((error: unknown) => String(error))
    expect(failed).toContain('mirror is not running')
    const { stdout, exit } = await configure(
      { folder: join(stage.folder, 'elsewhere') },
      { enter: stage.namespace.enter, env: host.env },
      'kind',
    )
    expect(exit).toBe(3)
    await expect(host.kindFrom(stdout, 'create', 'cluster', '--config', '-')).rejects.toThrow(
      'none, because mirror configure kind failed: mirror is not running, so there is no address to configure.',
    )
  })

  test('the nodes of kind follow the mirror from a process into a container, to other ports, and back', async () => {
    const { host, command } = await setKindStage()
    await host.docker('network', 'create', 'kind')
    await command.up('--runtime', 'process')
    const [mounting] = await createCluster(host, 'mounting', await command.mirror('configure', 'kind'))
    const [given] = await createCluster(host, 'given', '')
    await command.mirror('configure', 'kind', '--cluster', 'given', '--yes')
    const pullBoth = async (tag: string) => {
      for (const node of [mounting!, given!]) await pullInNode(host, node, image(tag))
    }
    await pullBoth('one')
    const gateway = (await command.status()).endpoints.networks['kind']!

    const inContainer = await command.up('--runtime', 'container')
    const moved = { client: 'kind', from: gateway, to: 'http://mirror.svc:5055', rewritten: true }
    expect(inContainer).toMatchObject({
      clients: [
        { ...moved, place: 'new clusters' },
        { ...moved, place: 'cluster given' },
      ],
    })
    for (const node of [mounting!, given!]) expect(await hostsToml(host, node)).toContain('http://mirror.svc:5055')
    await pullBoth('two')

    const elsewhere = await command.up('--runtime', 'container', '--cache-port', '6055')
    expect(elsewhere).toMatchObject({ clients: [{ rewritten: true }, { rewritten: true }] })
    await pullBoth('three')

    const back = await command.up('--runtime', 'process')
    expect(back).toMatchObject({
      clients: [
        { to: gateway, rewritten: true },
        { to: gateway, rewritten: true },
      ],
    })
    await pullBoth('four')

    // Checks that a deleted cluster needs no change.
    await host.kind('delete', 'cluster', '--name', 'given')
    const again = await command.up('--runtime', 'process', '--cache-port', '6055')
    expect(again).toMatchObject({ clients: [{ place: 'new clusters', rewritten: true }] })
    const list = await command.mirror('configure', '--list')
    expect(list).not.toContain('stale address')
    await command.mirror('down')
  })

  test.each(['container', 'process'] as const)(
    'the nodes of kind reach a mirror in a %s directly, and not through the proxy that kind gives them',
    async (runtime) => {
      const { host, command } = await setKindStage()
      await host.docker('network', 'create', 'kind')
      // Names a proxy that does not exist, so that a request through it fails.
      Object.assign(host.env, { HTTP_PROXY: `http://${stageAddress}:3128`, HTTPS_PROXY: `http://${stageAddress}:3128` })
      await command.up('--runtime', runtime)
      const [node] = await createCluster(host, 'one', await command.mirror('configure', 'kind'))
      const env = await host.docker('inspect', '--format', '{{range .Config.Env}}{{println .}}{{end}}', node!)
      expect(env).toMatch(/^NO_PROXY=.*172\.18\.0\.0\/16.*\.svc/m)
      await pullInNode(host, node!, image('one'))
      expect((await command.status()).cache.misses).toBeGreaterThan(0)

      if (runtime === 'container') {
        const old = '[host."http://mirror:5055"]\n  capabilities = ["pull", "resolve"]\n'
        await writeFile(join(command.home, 'state', 'kind', 'certs.d', '_default', 'hosts.toml'), old)
        await expect(pullInNode(host, node!, image('two')), 'by a name that nothing exempts').rejects.toThrow('proxy')
      }
      await command.mirror('down')
    },
  )
})
