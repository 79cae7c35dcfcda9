import { chmod, chown, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, inject, onTestFinished, test } from 'vitest'
import type { DoctorReport } from '../../src/admin/activity.ts'
import { parseArchive } from '../clients/archive.ts'
import { configure, runMirror } from './support/configure.ts'
import { dockerSocket } from './support/dockerd.ts'
import { type KindHost, nodeImage, pullInNode, startKindHost } from './support/kind.ts'
import { run } from './support/run.ts'
import { runnableImage } from './support/runnable-image.ts'
import { type Scene, startScene } from './support/scene.ts'
import { searchPath } from './support/search-path.ts'

const { missing, newer } = inject('e2e')

const image = 'docker.io/library/runnable:one'
const gcr = 'gcr.io/org/runnable:one'
const nobody = 65_534

async function startWithKind(containerd: string): Promise<{ scene: Scene; host: KindHost }> {
  const scene = await startScene({
    registries: ['docker.io', 'gcr.io'],
    // Uses different images, because containerd does not ask a second registry for a blob that it has.
    content: {
      'library/runnable': { one: await runnableImage(31, 'oci') },
      'org/runnable': { one: await runnableImage(32, 'docker') },
    },
    networks: ['kind'],
    registry: true,
    env: (folder) => ({ DOCKER_HOST: `unix://${dockerSocket(folder)}` }),
  })
  const host = await startKindHost(scene, { docker: '', containerd, kind: newer })
  // Creates the network with the options that kind uses.
  const masquerade = 'com.docker.network.bridge.enable_ip_masquerade=true'
  await host.docker('network', 'create', '--opt', masquerade, '--ipv6', '--subnet', 'fc00:f853:ccd:e793::/64', 'kind')
  await expect
    .poll(async () => (await scene.mirror.status()).endpoints.networks, { timeout: 15_000, interval: 200 })
    .toHaveProperty('kind')
  return { scene, host }
}

function configureKind(scene: Scene, { env }: KindHost) {
  return (...args: string[]) => configure(scene, { enter: scene.namespace.enter, env }, 'kind', ...args)
}

async function createWith(host: KindHost, name: string, clusterFile: string): Promise<string> {
  await host.kindFrom(clusterFile, 'create', 'cluster', '--name', name, '--config', '-', '--image', nodeImage)
  return (await host.kind('get', 'nodes', '--name', name)).trim()
}

const golden = fileURLToPath(new URL('../clients/kind', import.meta.url))

/** Reads the cluster files of the golden cases, by the name of the case. */
async function readClusterFiles(): Promise<[string, Buffer][]> {
  const archives = (await readdir(golden)).filter((name) => name.endsWith('.txt'))
  const trees = await Promise.all(
    archives.map(async (name) => [name, parseArchive(await readFile(join(golden, name), 'utf8'))] as const),
  )
  return trees.flatMap(([name, tree]) => {
    const file = tree.get('after/kind.yaml')
    return file?.kind === 'file' ? [[name, file.content] satisfies [string, Buffer]] : []
  })
}

const clusterFiles = await readClusterFiles()

describe.skipIf(missing !== undefined)('the cluster files that mirror configure kind prints', () => {
  test.each(clusterFiles)('kind reads the printed cluster file of the golden case %s', async (_, content) => {
    const folder = await mkdtemp(join(tmpdir(), 'mirror-kind-'))
    onTestFinished(() => rm(folder, { recursive: true }))
    const file = join(folder, 'kind.yaml')
    await writeFile(file, content)
    const env = { PATH: `${join(newer, 'usr/bin')}:${searchPath('')}`, DOCKER_HOST: 'unix:///var/empty/docker.sock' }
    const create = run('kind', ['create', 'cluster', '--config', file], { env })
    // kind looks for an engine once it understands the file.
    await expect(create).rejects.toThrow('Cannot connect to the Docker daemon')
    await expect(create).rejects.not.toThrow('decode')
  })
})

describe.skipIf(missing !== undefined).each([
  ["this Debian's own", ''],
  ["Debian's newest", newer],
])('mirror configure kind with %s containerd in the nodes', (_, containerd) => {
  test('clusters created from the printed cluster file pull through the mirror, the second one from the cache', async () => {
    const { scene, host } = await startWithKind(containerd)
    const mirror = configureKind(scene, host)
    expect(await mirror('--check')).toMatchObject({ exit: 5, stdout: expect.stringContaining('FAIL') })
    const only = await mirror('--dry-run')
    expect(only.stderr).toContain('certs.d/_default')
    expect(await readdir(join(scene.folder, 'mirror', 'state'))).not.toContain('kind')

    const printed = await mirror()
    expect(printed, printed.stderr).toMatchObject({
      exit: 0,
      stderr: expect.stringContaining('the gateway of network kind'),
    })
    const first = await createWith(host, 'first', printed.stdout)
    await pullInNode(host, first, image)
    await pullInNode(host, first, gcr)
    const fetched = await scene.upstream.requests()
    expect(fetched.length).toBeGreaterThan(0)
    expect(await mirror('--check')).toMatchObject({ exit: 0, stdout: expect.stringMatching(/^ok/) })

    await scene.upstream.disconnect()
    const second = await createWith(host, 'second', printed.stdout)
    await pullInNode(host, second, image)
    await pullInNode(host, second, gcr)
    expect(await scene.upstream.requests()).toStrictEqual(fetched)

    const undone = await mirror('--undo', '--yes')
    expect(undone, undone.stderr).toMatchObject({ exit: 0 })
    const folder = join(scene.folder, 'mirror', 'state', 'kind', 'certs.d')
    expect(await readdir(folder, { recursive: true }), 'mounted, and empty').toStrictEqual([
      '_default',
      'localhost_5001_',
    ])
    expect(await mirror('--check')).toMatchObject({ exit: 5 })
  })

  test('configure changes the nodes for a user who is not root, and the doctor names the undo of a deleted cluster', async () => {
    const { scene, host } = await startWithKind(containerd)
    await createWith(host, 'mine', 'kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\n')
    const home = await mkdtemp(join(tmpdir(), 'mirror-user-'))
    onTestFinished(() => rm(home, { recursive: true }))
    await chown(home, nobody, nobody)
    await chmod(scene.folder, 0o755)
    await chmod(dockerSocket(scene.folder), 0o666)
    const user = {
      enter: (command: readonly string[]) =>
        scene.namespace.enter(['setpriv', '--reuid', `${nobody}`, '--clear-groups', ...command]),
      env: { ...host.env, HOME: home, MIRROR_HOME: home },
    }
    const { kind: address } = (await scene.mirror.status()).endpoints.networks
    const cluster = ['kind', '--cluster', 'mine']
    const done = await configure(scene, user, ...cluster, '--mirror', address!, '--yes')
    expect(done, done.stderr).toMatchObject({ exit: 0 })
    await pullInNode(host, 'mine-control-plane', image)
    const findExists = async () => {
      const { stdout } = await runMirror(scene, user, 'doctor', 'kind', '--only', 'clients', '--json')
      return (JSON.parse(stdout) as DoctorReport).results.filter(({ state }) => state === 'warn' || state === 'fail')
    }
    await host.docker('stop', 'mine-control-plane')
    expect((await findExists()).map(({ id }) => id)).not.toContain('clients.exists')
    await host.kind('delete', 'cluster', '--name', 'mine')
    const command = 'mirror configure kind --cluster mine --undo'
    expect(await findExists()).toMatchObject([{ id: 'clients.exists', state: 'warn', fix: { command, isOwn: true } }])
    const undone = await configure(scene, user, ...cluster, '--undo', '--yes')
    expect(undone, undone.stderr).toMatchObject({ exit: 0 })
    expect((await findExists()).map(({ id }) => id)).not.toContain('clients.exists')
  })

  test('configure changes the nodes of a running cluster, and the undo restores them', async () => {
    const { scene, host } = await startWithKind(containerd)
    const mirror = configureKind(scene, host)
    const file = join(scene.folder, 'plain.yaml')
    await writeFile(
      file,
      'kind: Cluster\napiVersion: kind.x-k8s.io/v1alpha4\nnodes:\n- role: control-plane\n- role: worker\n',
    )
    const nodes = (await createWith(host, 'plain', await readFile(file, 'utf8'))).split('\n')
    expect(nodes).toHaveLength(2)
    const config = () =>
      Promise.all(nodes.map((node) => host.docker('exec', node, 'cat', '/etc/containerd/config.toml')))
    const before = await config()
    const cluster = ['--cluster', 'plain']
    expect(await mirror(...cluster, '--check')).toMatchObject({ exit: 5 })
    expect(await mirror('--cluster', 'other', '--yes')).toMatchObject({ exit: 4 })

    const done = await mirror(...cluster, '--yes')
    expect(done, done.stderr).toMatchObject({ exit: 0 })
    for (const node of nodes) await pullInNode(host, node, image)
    expect(await mirror(...cluster, '--check')).toMatchObject({ exit: 0 })
    const configMap = ['exec', 'plain-control-plane', 'kubectl', '-', 'get', 'configmap', 'local-registry-hosting']
    expect(await host.docker(...configMap)).toContain('host: localhost:5001')
    expect(await mirror(...cluster, '--yes')).toMatchObject({
      exit: 0,
      stdout: expect.stringContaining('already configured'),
    })

    await host.docker('pull', '127.0.0.1:5055/library/runnable:one')
    await host.docker('tag', '127.0.0.1:5055/library/runnable:one', 'localhost:5001/mine:one')
    await host.docker('push', 'localhost:5001/mine:one')
    await pullInNode(host, nodes[0]!, 'localhost:5001/mine:one')

    const undone = await mirror(...cluster, '--undo', '--yes')
    expect(undone, undone.stderr).toMatchObject({ exit: 0 })
    expect(await config()).toStrictEqual(before)
    expect(await host.docker('exec', nodes[0]!, 'ls', '/etc/containerd/certs.d')).toBe('')
    expect((await host.docker(...configMap)).trim()).toBe('')
    expect(await mirror(...cluster, '--check')).toMatchObject({ exit: 5 })
  })
})
