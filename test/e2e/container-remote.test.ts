import { fileURLToPath } from 'node:url'
import { describe, expect, inject, test } from 'vitest'
import { type Dockerd, dockerSocket, startDockerd } from './support/dockerd.ts'
import { createCluster, deleteCluster, pullInNode, startKindHost } from './support/kind.ts'
import { type MirrorCommand, mirrorCommand } from './support/mirror-command.ts'
import { addMachineBeside, otherAddress } from './support/other-machine.ts'
import { run } from './support/run.ts'
import { runnableImage } from './support/runnable-image.ts'
import { type Stage, setStage, stageAddress } from './support/scene.ts'
import { startSshd } from './support/sshd.ts'

const { missing, newer } = inject('e2e')

const program = fileURLToPath(new URL('../../bin/run.js', import.meta.url))
const pulled = '127.0.0.1:5055/docker.io/library/runnable:one'
const patience = { timeout: 30_000, interval: 20 }
const tcpHost = `tcp://${otherAddress}:2375`

/** Sets up an engine that reaches an image of Docker Hub, and a second machine that reaches only that engine. */
async function setTwoMachines(root: string) {
  const content = { 'library/runnable': { one: await runnableImage(31, 'oci') } }
  const stage = await setStage({ content, upstreamAddress: stageAddress })
  const here = await addMachineBeside(stage.namespace)
  const dockerd = await startDockerd(stage, root, { hosts: [`unix://${dockerSocket(stage.folder)}`, tcpHost] })
  const user = (env: NodeJS.ProcessEnv) =>
    mirrorCommand(
      { folder: stage.folder, namespace: here },
      {
        upstreams: { 'docker.io': { url: stage.upstream.url, credentials: 'anonymous' } },
        cache: { tagFreshness: '0s' },
      },
      env,
    )
  /** Runs a command of the same user in another shell, without DOCKER_HOST. */
  const elsewhere = (home: string, PATH: string, ...args: string[]) => {
    const [file, ...rest] = here.enter([process.execPath, program, ...args])
    return run(file!, rest, { env: { PATH, HOME: home, MIRROR_HOME: home }, timeoutMs: 60_000 })
  }
  return { stage, here, dockerd, user, elsewhere }
}

/** Checks the behaviour that all engines on another machine share. */
async function expectServes(stage: Stage, { docker }: Dockerd, command: MirrorCommand, host: string): Promise<void> {
  const up = await command.up('--runtime', 'container')
  expect(up).toMatchObject({ outcome: 'started', container: 'mirror', engine: host })
  expect(up.endpoints).toMatchObject({ cache: ['http://127.0.0.1:5055'], networks: { kind: 'http://mirror.svc:5055' } })

  await docker('pull', pulled)
  const missed = await command.status()
  expect(missed).toMatchObject({ running: true, runtime: 'container', engine: host, endpoints: up.endpoints })
  expect(missed.cache.misses).toBeGreaterThan(0)
  expect(missed.cache.hits).toBe(0)

  await docker('image', 'rm', pulled)
  await stage.upstream.disconnect()
  await docker('pull', pulled)
  const hit = await command.status()
  expect(hit.cache.hits).toBeGreaterThan(0)
  expect(hit.cache.misses).toBe(missed.cache.misses)

  expect(await command.mirror('cache', 'ls')).toContain('docker.io/library/runnable:one')
  expect(await command.mirror('cache', 'verify', '--json')).toContain('"damaged"')
  expect(await command.mirror('logs')).toContain('the mirror is up')
  expect(await command.mirror('status')).toContain(`container on ${host}`)
  expect(await command.up()).toMatchObject({ outcome: 'already-up', engine: host, moved: [] })
}

describe.skipIf(missing !== undefined).each([
  ["this Debian's own dockerd", ''],
  ["Debian's newest dockerd", newer],
])('%s on another machine', (_, root) => {
  test('a mirror in a container on another machine is reached through the engine from every shell', async () => {
    const { stage, dockerd, user, elsewhere } = await setTwoMachines(root)
    const command = await user({ DOCKER_HOST: tcpHost })
    await expect(command.mirror('up', '--runtime', 'container', '--data', stage.folder)).rejects.toThrow(
      /exit code 2\n(.|\n)*the folder would be on that machine/,
    )
    await expectServes(stage, dockerd, command, tcpHost)

    const shell = (...args: string[]) => elsewhere(command.home, process.env['PATH']!, ...args)
    expect(JSON.parse(await shell('status', '--json'))).toMatchObject({ running: true, engine: tcpHost })
    expect(await shell('logs', '--lines', '1000')).toContain('the mirror is up')
    await expect(shell('configure', 'podman', '--yes')).rejects.toThrow(
      new RegExp(`exit code 4\n(.|\n)*in a container on ${tcpHost}`),
    )
    expect(await shell('down')).toContain('Its data stays in the volume')
    expect(await dockerd.docker('ps', '--all', '--quiet')).toBe('')
    expect(await dockerd.docker('volume', 'ls', '--quiet')).toBe('mirror-data\n')
    expect(await shell('down', '--volumes', '--yes')).toContain('Deleted its volume')
    expect(await dockerd.docker('volume', 'ls', '--quiet')).toBe('')
  })
})

test.skipIf(missing !== undefined)('a kind cluster on another machine pulls through the mirror there', async () => {
  const content = { 'library/runnable': { one: await runnableImage(32, 'oci') } }
  const stage = await setStage({ content, upstreamAddress: stageAddress })
  const here = await addMachineBeside(stage.namespace)
  const hosts = [`unix://${dockerSocket(stage.folder)}`, tcpHost]
  const host = await startKindHost(stage, { docker: '', containerd: '', kind: newer, settings: { hosts } })
  const command = await mirrorCommand(
    { folder: stage.folder, namespace: here },
    { upstreams: { 'docker.io': { url: stage.upstream.url, credentials: 'anonymous' } } },
    { DOCKER_HOST: tcpHost, PATH: `${host.env['PATH']}:${process.env['PATH']}` },
  )
  await command.up('--runtime', 'container')
  await expect(command.mirror('configure', 'kind')).rejects.toThrow(
    /exit code 2\n(.|\n)*on another machine(.|\n)*--cluster NAME/,
  )
  const [node] = await createCluster(host, 'far', '')
  await command.mirror('configure', 'kind', '--cluster', 'far', '--yes')
  await pullInNode(host, node!, 'docker.io/library/runnable:one')
  const { cache, images } = await command.status()
  expect(cache.misses).toBeGreaterThan(0)
  expect(images.map(({ name }) => name)).toStrictEqual(['docker.io/library/runnable:one'])
  await deleteCluster(host, 'far')
})

test.skipIf(missing !== undefined)('a mirror runs on an engine behind ssh, by the key of the user', async () => {
  const { stage, here, dockerd, user, elsewhere } = await setTwoMachines('')
  const ssh = await startSshd(stage, here)
  const command = await user({ DOCKER_HOST: ssh.host, PATH: `${ssh.withKey}:${process.env['PATH']}` })
  await expectServes(stage, dockerd, command, ssh.host)

  // Signals the whole process group, because Ctrl-C reaches every process of the command; the rollback needs its ssh.
  const { child, ended } = command.start('up', '--memory', '300MiB')
  await expect.poll(() => dockerd.docker('ps', '--all', '--format', '{{.Names}}'), patience).toContain('mirror-before')
  process.kill(-child.pid!, 'SIGINT')
  expect(await ended).toMatchObject({ exit: 130, stderr: expect.stringContaining('runs again') })
  expect(await dockerd.docker('ps', '--all', '--format', '{{.Names}}')).toBe('mirror\n')
  expect(await command.status()).toMatchObject({ running: true, engine: ssh.host })

  const stranger = `${ssh.withStrangeKey}:${process.env['PATH']}`
  await expect(elsewhere(command.home, stranger, 'status')).rejects.toThrow(
    new RegExp(`exit code 4\n(.|\n)*in a container on ${ssh.host}(.|\n)*Permission denied`),
  )
  expect(await command.mirror('down', '--volumes', '--yes')).toContain('Deleted its volume')
})
