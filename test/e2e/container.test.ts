import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { describe, expect, inject, test } from 'vitest'
import { makeImage, type TestImage } from '../support/images.ts'
import { startDockerd } from './support/dockerd.ts'
import { mirrorCommand } from './support/mirror-command.ts'
import { run } from './support/run.ts'
import { type Stage, setStage, stageAddress } from './support/scene.ts'

const { missing, newer } = inject('e2e')

const loader = fileURLToPath(new URL('support/load.mjs', import.meta.url))

/** Sets up an engine, and a user of mirror with an image of Docker Hub. */
async function setContainerStage(root: string, image: TestImage, config: object = {}) {
  const stage = await setStage({ content: { 'library/app': { one: image } }, upstreamAddress: stageAddress })
  const { docker } = await startDockerd(stage, root, {})
  const command = await mirrorCommand(stage, {
    upstreams: { 'docker.io': { url: stage.upstream.url, credentials: 'anonymous' } },
    ...config,
  })
  return { stage, docker, command }
}

/** Pulls one path of the cache by many clients at once. */
async function load({ namespace }: Stage, path: string, clients: number) {
  const [file, ...args] = namespace.enter([process.execPath, loader, `http://127.0.0.1:5055${path}`, String(clients)])
  return JSON.parse(await run(file!, args)) as { failures: string[]; bytes: number; digests: string[] }
}

const blobPath = (digest: string) => `/v2/library/app/blobs/${digest}`

describe.skipIf(missing !== undefined).each([
  ["this Debian's own dockerd", ''],
  ["Debian's newest dockerd", newer],
])('a mirror in a container of %s', (_, root) => {
  test('up leaves the container alone, connects it to networks or replaces it, and the cached content stays', async () => {
    const image = makeImage({ layers: [10_000], seed: 1 })
    const { stage, docker, command } = await setContainerStage(root, image)
    const idOf = async () => (await docker('inspect', '--format', '{{.Id}}', 'mirror')).trim()
    await command.up('--runtime', 'container')
    const id = await idOf()
    expect(await load(stage, blobPath(image.layers[0]!), 1)).toMatchObject({ failures: [], digests: [image.layers[0]] })

    // Omits `--runtime`, because `up` keeps the runtime of the running mirror.
    expect(await command.up()).toMatchObject({ outcome: 'already-up', container: 'mirror' })
    expect(await idOf()).toBe(id)

    await docker('network', 'create', 'compose_default')
    const joined = await command.up('--network', 'kind', '--network', 'compose_default')
    expect(joined).toMatchObject({ outcome: 'connected', changed: ['compose_default'] })
    expect((await command.status()).endpoints.networks).toStrictEqual({
      kind: 'http://mirror.svc:5055',
      compose_default: 'http://mirror.svc:5055',
    })
    expect(await command.up()).toMatchObject({ outcome: 'connected', changed: ['compose_default'] })
    expect(await idOf()).toBe(id)

    await stage.upstream.disconnect()
    const replaced = await command.up('--cache-port', '6055')
    expect(replaced).toMatchObject({
      outcome: 'replaced',
      changed: ['cache', 'ports', 'files'],
      moved: [
        { of: 'cache', from: 'http://127.0.0.1:5055', to: 'http://127.0.0.1:6055' },
        { of: 'kind', from: 'http://mirror.svc:5055', to: 'http://mirror.svc:6055' },
      ],
    })
    expect(await idOf()).not.toBe(id)
    await command.up('--cache-port', '5055')
    expect(await load(stage, blobPath(image.layers[0]!), 1)).toMatchObject({ failures: [], digests: [image.layers[0]] })
    expect((await command.mirror('logs')).split('\n').some((line) => line.includes('the mirror is up'))).toBe(true)
  })

  test('Docker restarts a container that was killed, and its clients go on', async () => {
    const image = makeImage({ layers: [10_000], seed: 2 })
    const { stage, docker, command } = await setContainerStage(root, image)
    await command.up('--runtime', 'container')
    const [layer] = image.layers
    await load(stage, blobPath(layer!), 1)
    await stage.upstream.disconnect()
    // Waits until the upstream's answers are on disk, which takes up to half a second.
    await sleep(1500)

    const pid = Number(await docker('inspect', '--format', '{{.State.Pid}}', 'mirror'))
    process.kill(pid, 'SIGKILL')
    const goesOn = async () => (await load(stage, blobPath(layer!), 1)).digests
    await expect.poll(goesOn, { timeout: 30_000, interval: 200 }).toStrictEqual([layer])
    expect(await docker('inspect', '--format', '{{.RestartCount}}', 'mirror')).toBe('1\n')
    expect(await command.status()).toMatchObject({ running: true, runtime: 'container' })
  })

  // Retries, because six gigabytes go through Docker's proxy and a bridge on two cores: the proxy's socket sometimes drops what
  // the mirror's kernel sends, and TCP waits twice as long after each attempt; the mirror allows 30 s without progress.
  test('a container with 250 MiB of memory serves a hundred clients at once', { retry: 1 }, async () => {
    const image = makeImage({ layers: [5_000_000, 60_000_000], level: 0, seed: 3 })
    const { stage, docker, command } = await setContainerStage(root, image)
    await command.up('--runtime', 'container', '--memory', '250MiB')
    const [warm, cold] = image.layers
    await load(stage, blobPath(warm!), 1)
    for (const layer of [warm!, cold!]) {
      expect(await load(stage, blobPath(layer), 100)).toStrictEqual({
        failures: [],
        bytes: image.blobs.get(layer)!.length * 100,
        digests: [layer],
      })
    }
    const asked = (await stage.upstream.requests()).filter(
      ({ method, path }) => method === 'GET' && path.includes(cold!),
    )
    expect(asked, 'one fetch for all').toHaveLength(1)
    const limits = '{{.HostConfig.Memory}} {{.State.OOMKilled}} {{.RestartCount}}'
    expect(await docker('inspect', '--format', limits, 'mirror')).toBe(`${250 * 1024 ** 2} false 0\n`)
  })

  test('a container has no capabilities, and no files of the host except the exported ones', async () => {
    const { docker, command } = await setContainerStage(root, makeImage(), { cache: { shareCredentials: true } })
    await command.up('--runtime', 'container')
    const format =
      '{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.RestartPolicy.Name}}'
    expect(await docker('inspect', '--format', format, 'mirror')).toBe('1000:1000 true [ALL] unless-stopped\n')
    const ports = await docker(
      'inspect',
      '--format',
      '{{range .NetworkSettings.Ports}}{{range .}}{{.HostIp}} {{end}}{{end}}',
      'mirror',
    )
    expect(new Set(ports.trim().split(/\s+/))).toStrictEqual(new Set(['127.0.0.1']))
    const find = `const { readdirSync, statSync } = require('node:fs')
      for (const name of readdirSync('/data/home', { recursive: true })) {
        const { mode, uid } = statSync('/data/home/' + name)
        console.log((mode & 0o777).toString(8), uid, name)
      }`
    const files = (await docker('exec', 'mirror', '/usr/local/bin/node', '-e', find)).trim().split('\n').toSorted()
    const instance = (
      await docker('inspect', '--format', '{{index .Config.Labels "dev-mirror.instance"}}', 'mirror')
    ).trim()
    expect(files.filter((line) => line.includes('handed'))).toStrictEqual([
      `600 1000 handed/${instance}/docker/config.json`,
      `600 1000 handed/${instance}/endpoints.json`,
      `600 1000 handed/${instance}/mirror.yaml`,
      '700 1000 handed',
      `700 1000 handed/${instance}`,
      `700 1000 handed/${instance}/docker`,
    ])
    expect(files).toContain('600 1000 state/token')
    const healthy = () => docker('inspect', '--format', '{{.State.Health.Status}}', 'mirror')
    await expect.poll(healthy, { timeout: 60_000, interval: 1000 }).toBe('healthy\n')
    await command.mirror('down', '--volumes', '--yes')
    expect(await docker('volume', 'ls', '--quiet')).toBe('')
  })
})
