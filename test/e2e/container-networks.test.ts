import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, inject, test } from 'vitest'
import { startDockerd } from './support/dockerd.ts'
import { mirrorCommand } from './support/mirror-command.ts'
import { startPodmanService } from './support/podman-service.ts'
import { run } from './support/run.ts'
import { busyboxTar } from './support/runnable-image.ts'
import { setStage, type Stage } from './support/scene.ts'

const { missing, newer } = inject('e2e')

const uploads = '/v2/team/app/blobs/uploads/'

/** Starts an upload from the host, and returns the status of the POST. */
async function startUpload({ namespace }: Pick<Stage, 'namespace'>, host: string): Promise<number> {
  const script = `fetch(${JSON.stringify(`http://${host}:5001${uploads}`)}, { method: 'POST' })
    .then((answer) => console.log(answer.status))`
  const [file, ...args] = namespace.enter([process.execPath, '-e', script])
  return Number(await run(file!, args))
}

describe.skipIf(missing !== undefined).each([
  ["this Debian's own dockerd", '', {}],
  ["this Debian's own dockerd without its proxy", '', { 'userland-proxy': false }],
  ["Debian's newest dockerd", newer, {}],
])('the registry of a mirror in a container of %s', (_, root, settings) => {
  test('the published port accepts pushes, and clients on a network can only pull until they may write', async () => {
    const stage = await setStage({ content: {} })
    const { docker, feed } = await startDockerd(stage, root, settings)
    await feed(await busyboxTar(), 'import', '-', 'busybox:local')
    const command = await mirrorCommand(stage, {})
    // Adds networks before and after the default one in the alphabet, which decides from where engines publish ports.
    for (const network of ['apps', 'zoo']) await docker('network', 'create', network)
    const networks = ['kind', 'apps', 'zoo']
    await command.up('--runtime', 'container', ...networks.flatMap((name) => ['--network', name]))
    const addresses = await docker(
      'inspect',
      '--format',
      '{{range $name, $at := .NetworkSettings.Networks}}{{$name}}={{$at.IPAddress}} {{end}}',
      'mirror',
    )
    const addressOf = Object.fromEntries(
      addresses
        .trim()
        .split(/\s+/)
        .map((pair) => pair.split('=')),
    ) as Record<string, string>
    const from = (network: string, ...args: string[]) =>
      docker('run', '--rm', '--network', network, 'busybox:local', 'wget', '-q', '-O', '-', ...args)
    const places = [
      ...networks.flatMap((name) => [
        [name, 'mirror.svc'],
        [name, addressOf[name]!],
      ]),
      ['bridge', addressOf['bridge']!],
    ]

    expect(await startUpload(stage, '127.0.0.1')).toBe(202)
    for (const [network, host] of places) {
      expect(await from(network!, `http://${host}:5001/v2/_catalog`)).toContain('repositories')
      await expect(from(network!, '--post-data=', `http://${host}:5001${uploads}`)).rejects.toThrow('403 Forbidden')
    }
    expect((await command.status()).registry.networks).toBe('read')

    await writeFile(join(command.home, 'mirror.yaml'), JSON.stringify({ registry: { networks: 'write' } }))
    expect(await command.up()).toMatchObject({ outcome: 'replaced', changed: expect.arrayContaining(['registry']) })
    await from('kind', '--post-data=', `http://mirror.svc:5001${uploads}`)
    expect(await startUpload(stage, '127.0.0.1')).toBe(202)
  })
})

describe.skipIf(missing !== undefined)('the registry of a mirror in a container of podman', () => {
  test('the published port of a container of podman accepts pushes', async () => {
    const stage = await setStage({ content: {} })
    const { socket } = await startPodmanService(stage, await busyboxTar())
    const { up, mirror } = await mirrorCommand(stage, {}, { DOCKER_HOST: `unix://${socket}` })
    await up('--runtime', 'container')
    expect(await startUpload(stage, '127.0.0.1')).toBe(202)
    await mirror('down', '--volumes', '--yes')
  })
})
