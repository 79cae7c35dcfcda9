import { chmod, chown, mkdtemp, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, inject, onTestFinished, test } from 'vitest'
import { toTarFile, createTar } from '../../src/lib/tar.ts'
import { computeDigest } from '../../src/oci/reference.ts'
import { makeImage } from '../support/images.ts'
import { dockerSocket, startDockerd } from './support/dockerd.ts'
import { mirrorCommand } from './support/mirror-command.ts'
import { run } from './support/run.ts'
import { busyboxTar } from './support/runnable-image.ts'
import { setStage } from './support/scene.ts'

const { missing, newer } = inject('e2e')

const program = fileURLToPath(new URL('../../bin/run.js', import.meta.url))
const nobody = 65_534

/** Sets up an engine with busybox, and a user of mirror. */
async function setStageWith(root: string, config: object = {}) {
  const stage = await setStage({ content: { 'library/app': { one: makeImage() } } })
  const { docker, feed } = await startDockerd(stage, root, {})
  await feed(await busyboxTar(), 'import', '-', 'busybox:local')
  const command = await mirrorCommand(stage, config)
  const up = (...args: string[]) => command.mirror('up', '--runtime', 'container', ...args)
  const names = async () => (await docker('ps', '--all', '--format', '{{.Names}}')).trim().split('\n').toSorted()
  return { ...command, stage, docker, feed, up, names }
}

const sleeper = ['run', '--detach', 'busybox:local', 'sh', '-c', 'cat /dev/zero > /dev/null']
const sleeping = (...options: string[]) => ['run', '--detach', ...options, ...sleeper.slice(2)]

describe.skipIf(missing !== undefined).each([
  ["this Debian's own dockerd", ''],
  ["Debian's newest dockerd", newer],
])('a mirror that cannot run in a container of %s', (_, root) => {
  test('up explains why it cannot start a container, and changes nothing', async () => {
    const { docker, up, names } = await setStageWith(root)

    await expect(up('--network', 'compose_default')).rejects.toThrow(
      /exit code 2\n(.|\n)*There is no Docker network named compose_default/,
    )
    await expect(up('--image', 'nowhere.invalid/mirror:1')).rejects.toThrow(/exit code 4\n(.|\n)*cannot be pulled/)
    await expect(up('--credentials', 'registry.example')).rejects.toThrow(/exit code 2\n(.|\n)*shareCredentials/)
    await expect(up('--memory', 'plenty')).rejects.toThrow(/exit code 2\n(.|\n)*not a valid amount of memory/)
    await expect(up('--foreground')).rejects.toThrow(/exit code 2\n/)

    const theirs = (await docker(...sleeping('--name', 'mirror'))).trim()
    await expect(up()).rejects.toThrow(/exit code 1\n(.|\n)*The container mirror does not belong to mirror/)
    expect(await docker('inspect', '--format', '{{.Id}} {{.State.Running}}', 'mirror')).toBe(`${theirs} true\n`)
    await docker('rm', '--force', 'mirror')

    await docker(...sleeping('--name', 'web', '--publish', '127.0.0.1:5055:80'))
    await expect(up()).rejects.toThrow(/exit code 1\n(.|\n)*Port 5055 \(cache\) is already in use by the container web/)
    expect(await names()).toStrictEqual(['web'])
  })

  test('up says that the user has no permission for the engine, or that there is no engine', async () => {
    const { stage } = await setStageWith(root)
    const home = await mkdtemp(join(tmpdir(), 'mirror-e2e-nobody-'))
    onTestFinished(() => rm(home, { recursive: true }))
    await chown(home, nobody, nobody)
    // Lets the user reach the socket, but not list the folder.
    await chmod(stage.folder, 0o711)
    const upAsNobody = (socket: string) => {
      const asNobody = ['setpriv', `--reuid=${nobody}`, `--regid=${nobody}`, '--clear-groups', process.execPath]
      const env = { HOME: home, MIRROR_HOME: home, DOCKER_HOST: `unix://${socket}` }
      const [file, ...args] = [...asNobody, program, 'up', '--runtime', 'container']
      return run(file, args, { env: { PATH: process.env['PATH'], ...env } })
    }
    const denied = /exit code 4\n(.|\n)*permission denied(.|\n)*usermod -aG docker/
    await expect(upAsNobody(dockerSocket(stage.folder))).rejects.toThrow(denied)
    const absent = /exit code 4\n(.|\n)*No Docker engine answers/
    await expect(upAsNobody(join(home, 'docker.sock'))).rejects.toThrow(absent)
  })

  test('up refuses an image for another architecture, and a volume of a newer version', async () => {
    const { docker, feed, up, names, mirror } = await setStageWith(root)
    await feed(await foreignImage(), 'load')
    await expect(up('--image', 'foreign:1')).rejects.toThrow(/exit code 2\n(.|\n)*is for linux\/s390x/)

    await docker('volume', 'create', 'mirror-data')
    const owned = ['run', '--rm', '--volume', 'mirror-data:/data', 'busybox:local', 'sh', '-c']
    await docker(...owned, '/bin/busybox mkdir -p /data/cache/v99 && /bin/busybox chown -R 1000:1000 /data')
    await expect(up()).rejects.toThrow(
      /exit code 2\n(.|\n)*A newer version of mirror wrote the store at \/data\/cache \(format v99\)/,
    )
    expect(await names()).toStrictEqual([''])
    expect(await docker('volume', 'ls', '--quiet')).toBe('mirror-data\n')
    await expect(mirror('status', '--json')).rejects.toThrow('exit code 3')
  })

  test('a mirror does not open a store that another container has open', async () => {
    const { docker, up, mirror, home, stage } = await setStageWith(root, { networks: [] })
    await up()
    const image = (await docker('inspect', '--format', '{{.Image}}', 'mirror')).trim()
    const second = ['run', '--name', 'second', '--user', '1000:1000', '--volume', 'mirror-data:/data']
    const env = ['MIRROR_HOME=/tmp/home', 'MIRROR_DATA=/data', 'MIRROR_NETWORKS=', 'MIRROR_INSTANCE=other']
    const beside = docker(
      ...second,
      ...env.flatMap((entry) => ['--env', entry]),
      '--entrypoint',
      '',
      image,
      '/usr/local/bin/node',
      '/mirror/bin/run.js',
      'serve',
    )
    await expect(beside).rejects.toThrow('in use by a mirror in a container')
    await docker('rm', 'second')
    await mirror('down')
    await expect(mirror('cache', 'ls')).rejects.toThrow(/exit code 3\n(.|\n)*in a volume of the Docker engine/)

    // Checks that a container on a folder of the caller runs as the caller.
    const data = join(stage.folder, 'data')
    await up('--data', data)
    expect(await docker('inspect', '--format', '{{.Config.User}}', 'mirror')).toBe(
      `${process.getuid!()}:${process.getgid!()}\n`,
    )
    expect((await stat(join(data, 'cache'))).mode & 0o777).toBe(0o700)
    expect(home).not.toBe(data)
    await mirror('down')
  })
})

/** Creates an image for another architecture, as `docker save` writes it. https://github.com/moby/moby/blob/master/image/spec/spec.md */
async function foreignImage(): Promise<Buffer> {
  const layer = await createTar([])
  const config = {
    architecture: 's390x',
    os: 'linux',
    config: {},
    rootfs: { type: 'layers', diff_ids: [computeDigest(layer)] },
  }
  const manifest = [{ Config: 'config.json', RepoTags: ['foreign:1'], Layers: ['layer.tar'] }]
  const file = (path: string, content: string | Buffer) => ({ path, mode: 0o644, content: toTarFile(content) })
  return createTar([
    file('config.json', JSON.stringify(config)),
    file('layer.tar', layer),
    file('manifest.json', JSON.stringify(manifest)),
  ])
}
