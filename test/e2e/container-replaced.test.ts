import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, inject, onTestFinished, test } from 'vitest'
import { makeImage } from '../support/images.ts'
import { startDaemon } from './support/daemon.ts'
import { startDockerd } from './support/dockerd.ts'
import { mirrorCommand } from './support/mirror-command.ts'
import { run } from './support/run.ts'
import { busyboxTar } from './support/runnable-image.ts'
import { type Stage, setStage, stageAddress } from './support/scene.ts'

const { missing, newer } = inject('e2e')

const loader = fileURLToPath(new URL('support/load.mjs', import.meta.url))
const image = makeImage({ layers: [10_000], seed: 5 })
const [layer] = image.layers

/** Sets up an engine with busybox, and a mirror that has cached an image, and disconnects the upstream. */
async function setMirrorStage(root: string, upArgs: string[]) {
  const stage = await setStage({ content: { 'library/app': { one: image } }, upstreamAddress: stageAddress })
  const { docker, feed } = await startDockerd(stage, root, {})
  await feed(await busyboxTar(), 'import', '-', 'busybox:local')
  const config = { upstreams: { 'docker.io': { url: stage.upstream.url, credentials: 'anonymous' } } }
  const command = await mirrorCommand(stage, config)
  await command.up(...upArgs)
  await expectServes(stage)
  await stage.upstream.disconnect()
  const idOf = async (name: string) => (await docker('inspect', '--format', '{{.Id}}', name)).trim()
  const names = async () => (await docker('ps', '--all', '--format', '{{.Names}}')).trim()
  const configure = (more: object) =>
    writeFile(join(command.home, 'mirror.yaml'), JSON.stringify({ ...config, ...more }))
  return { stage, docker, command, idOf, names, configure }
}

async function expectServes({ namespace }: Stage) {
  const url = `http://127.0.0.1:5055/v2/library/app/blobs/${layer}`
  const [file, ...args] = namespace.enter([process.execPath, loader, url, '1'])
  expect(JSON.parse(await run(file!, args))).toMatchObject({ failures: [], digests: [layer] })
}

/** Lets another program listen on a port of 127.0.0.1 on the stage. */
async function takePort({ namespace, folder }: Stage, port: number) {
  const listen = `require('node:net').createServer().listen(${port}, '127.0.0.1')`
  const probe = `require('node:net').connect(${port}, '127.0.0.1').on('connect', () => process.exit(0))`
  const daemon = await startDaemon({
    command: namespace.enter([process.execPath, '-e', listen]),
    env: {},
    logFile: join(folder, `port-${port}.log`),
    ready: () => {
      const [file, ...args] = namespace.enter([process.execPath, '-e', probe])
      return run(file!, args)
    },
  })
  onTestFinished(() => daemon.stop())
}

const inContainer = ['--runtime', 'container', '--network', 'kind', '--network', 'other']
const runsAgain = /The mirror that ran before runs again, as it was\./

describe.skipIf(missing !== undefined).each([
  ["this Debian's own dockerd", ''],
  ["Debian's newest dockerd", newer],
])('a mirror on %s whose successor cannot start', (_, root) => {
  async function setContainerStage() {
    const stage = await setMirrorStage(root, ['--runtime', 'container', '--network', 'kind'])
    await stage.docker('network', 'create', 'other')
    await stage.command.up(...inContainer)
    return stage
  }

  test('the old container runs again with its name, networks, ports, configuration and content', async () => {
    const { stage, docker, command, idOf, names, configure } = await setContainerStage()
    const id = await idOf('mirror')
    const before = await command.status()
    const expectAsBefore = async () => {
      expect(await names()).toBe('mirror')
      expect(await idOf('mirror')).toBe(id)
      await expectServes(stage)
      const { endpoints, storage, startedAt } = await command.status()
      expect({ endpoints, maxBytes: storage.maxBytes }).toStrictEqual({
        endpoints: before.endpoints,
        maxBytes: before.storage.maxBytes,
      })
      expect(startedAt).not.toBe(before.startedAt)
      const networks = await docker('inspect', '--format', '{{json .NetworkSettings.Networks}}', 'mirror')
      expect(Object.keys(JSON.parse(networks) as object).toSorted()).toStrictEqual(['bridge', 'kind', 'other'])
      const ask = ['run', '--rm', '--network', 'other', 'busybox:local', 'wget', '-q', '-O', '-']
      await docker(...ask, 'http://mirror:5055/v2/')
    }

    await takePort(stage, 6055)
    await configure({ cache: { maxSize: '1GiB' } })
    await expect(command.mirror('up', ...inContainer, '--cache-port', '6055')).rejects.toThrow(
      new RegExp(
        `exit code 1\\n(.|\\n)*Port 6055 \\(cache\\) is already in use by another program.*${runsAgain.source}`,
      ),
    )
    await expectAsBefore()

    // busybox has no Node.
    await expect(command.mirror('up', ...inContainer, '--image', 'busybox:local')).rejects.toThrow(runsAgain)
    await expectAsBefore()

    for (const name of ['tls.crt', 'tls.key']) await writeFile(join(command.home, name), 'nonsense')
    await configure({ tls: { cert: './tls.crt', key: './tls.key' } })
    const { startedAt } = await command.status()
    await expect(command.mirror('up', ...inContainer)).rejects.toThrow(
      /exit code 2\n(.|\n)*"tls" cannot be used(.|\n)*Nothing was done/,
    )
    await expectAsBefore()
    expect((await command.status()).startedAt).toBe(startedAt)

    await configure({ cache: { maxSize: '1GiB' } })
    expect(await command.up(...inContainer)).toMatchObject({ outcome: 'replaced', changed: ['cache', 'files'] })
    expect(await idOf('mirror')).not.toBe(id)
    expect(await names()).toBe('mirror')
    await expectServes(stage)
    // Checks that the files exported to earlier containers are gone.
    const list = ['exec', 'mirror', '/usr/local/bin/node', '-p', "fs.readdirSync('/data/home/handed').length"]
    await expect.poll(() => docker(...list), { timeout: 10_000 }).toBe('1\n')
  })

  test('a mirror survives an up that is interrupted or killed, and no container is left over', async () => {
    const { stage, docker, command, idOf, names, configure } = await setContainerStage()
    const id = await idOf('mirror')
    await configure({ cache: { maxSize: '1GiB' } })
    const cutOff = async (signal: NodeJS.Signals) => {
      const { child, ended } = command.start('up', ...inContainer)
      await expect.poll(names, { timeout: 30_000, interval: 20 }).toContain('mirror-before')
      child.kill(signal)
      return ended
    }
    const { exit, stderr } = await cutOff('SIGTERM')
    expect(stderr).toMatch(runsAgain)
    expect(exit).toBe(130)
    expect(await names()).toBe('mirror')
    expect(await idOf('mirror')).toBe(id)
    await expectServes(stage)

    expect((await cutOff('SIGKILL')).exit).toBe('SIGKILL')
    await configure({})
    await command.up(...inContainer)
    expect(await names()).toBe('mirror')
    await expectServes(stage)

    await configure({ cache: { maxSize: '1GiB' } })
    await cutOff('SIGKILL')
    await command.mirror('down')
    expect(await docker('ps', '--all', '--quiet')).toBe('')
  })

  test('the old mirror runs again after a failed change from a process to a container, and back', async () => {
    const { stage, command, idOf, names, configure } = await setMirrorStage(root, [
      '--runtime',
      'process',
      '--network',
      'kind',
    ])
    await configure({ cache: { maxSize: '1GiB' } })
    await expect(
      command.mirror('up', '--runtime', 'container', '--image', 'busybox:local', '--network', 'kind'),
    ).rejects.toThrow(runsAgain)
    expect(await command.status()).toMatchObject({ runtime: 'process', storage: { maxBytes: 20 * 1024 ** 3 } })
    expect(await names()).toBe('')
    await expectServes(stage)

    expect(await command.up('--runtime', 'container')).toMatchObject({ outcome: 'replaced', changed: ['runtime'] })
    const id = await idOf('mirror')
    await takePort(stage, 6055)
    await expect(command.mirror('up', '--runtime', 'process', '--cache-port', '6055')).rejects.toThrow(
      new RegExp(`Port 6055 \\(cache\\) is already in use by node.*${runsAgain.source}`),
    )
    expect(await command.status()).toMatchObject({ runtime: 'container', storage: { maxBytes: 1024 ** 3 } })
    expect(await idOf('mirror')).toBe(id)

    expect(await command.up('--runtime', 'process')).toMatchObject({ outcome: 'replaced', changed: ['runtime'] })
    expect(await names()).toBe('')
    await expectServes(stage)
  })

  test('up starts a stopped container again, and a container after down', async () => {
    const { docker, command, idOf } = await setContainerStage()
    const id = await idOf('mirror')
    await docker('stop', 'mirror')
    expect(await command.up('--network', 'kind', '--network', 'other')).toMatchObject({
      outcome: 'started',
      container: 'mirror',
    })
    expect(await idOf('mirror')).toBe(id)
    await command.mirror('down')
    expect(await command.up()).toMatchObject({ outcome: 'started', container: 'mirror' })
  })
})
