import { mkdir, readFile, readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, inject, onTestFinished, test } from 'vitest'
import { startApart } from './support/apart.ts'
import { configure } from './support/configure.ts'
import { criClient } from './support/cri.ts'
import { startDaemon } from './support/daemon.ts'
import { dockerSocket, startDockerd, type Dockerd } from './support/dockerd.ts'
import { nodeImage, pullInNode, startKindHost } from './support/kind.ts'
import { makeCertificate } from './support/make-certificate.ts'
import { mirrorCommand } from './support/mirror-command.ts'
import { run } from './support/run.ts'
import { runnableImage } from './support/runnable-image.ts'
import { type Scene, setStage, stageAddress, startScene } from './support/scene.ts'
import { searchPath } from './support/search-path.ts'

const { missing, newer } = inject('e2e')

const here = ['127.0.0.1', 'localhost', stageAddress]
// gateways are those of the networks that an engine creates, in this order.
const gateways = ['172.17.0.1', '172.18.0.1', '172.19.0.1']
const beyondLoopback = `https://${stageAddress}:5055`

/** Starts a mirror that speaks TLS with a certificate whose CA no client knows. */
async function startTlsScene(mediaTypes: 'docker' | 'oci', options: { networks?: string[] } = {}): Promise<Scene> {
  const env = (folder: string) => ({ DOCKER_HOST: `unix://${dockerSocket(folder)}` })
  return startScene({
    registries: ['docker.io', 'gcr.io'],
    // Uses different images, because a client does not ask a second registry for a blob that it has.
    content: {
      'library/app': { one: await runnableImage(41, mediaTypes) },
      'org/app': { one: await runnableImage(42, mediaTypes) },
    },
    registry: true,
    tls: [...here, ...gateways],
    ...(options.networks && { networks: options.networks, env }),
  })
}

/** Lists the paths of manifests that the upstream was asked for. */
async function manifestsAskedOf({ upstream }: Scene): Promise<string[]> {
  const requests = await upstream.requests()
  return requests.filter(({ path }) => path.includes('/manifests/')).map(({ path }) => path)
}

function configureDocker(scene: Scene, root: string, { enter }: Dockerd) {
  const env = { PATH: searchPath(root), DOCKER_HOST: `unix://${dockerSocket(scene.folder)}` }
  return async (...args: string[]) => {
    const result = await configure(scene, { enter, env }, 'docker', ...args)
    return { ...result, said: `${result.stdout}${result.stderr}` }
  }
}

async function certificatesOf({ pid }: Dockerd): Promise<string[]> {
  const folder = `/proc/${pid}/root/etc/docker/certs.d`
  const found = await readdir(folder, { recursive: true }).catch(() => [])
  return found.filter((path) => path.endsWith('.crt'))
}

async function build(scene: Scene, from: string): Promise<void> {
  const context = join(scene.folder, 'context')
  await mkdir(context, { recursive: true })
  await writeFile(join(context, 'Dockerfile'), `FROM ${from}\nLABEL built=yes\n`)
  const env = { PATH: searchPath(''), HOME: context, DOCKER_HOST: `unix://${dockerSocket(scene.folder)}` }
  await run('/usr/bin/docker', ['build', '--no-cache', context], { env: { ...env, DOCKER_BUILDKIT: '1' } })
}

describe.skipIf(missing !== undefined)('a mirror with TLS and its own CA', () => {
  test.each([
    ['on loopback', []],
    ['beyond loopback', ['--mirror', beyondLoopback]],
  ])("Debian's newest dockerd pulls and builds through a TLS mirror %s without a restart", async (_, where) => {
    const scene = await startTlsScene('oci')
    const dockerd = await startDockerd(scene, newer, { features: { 'containerd-snapshotter': true } })
    const mirror = configureDocker(scene, newer, dockerd)
    const done = await mirror('--yes', ...where)
    expect(done, done.said).toMatchObject({ exit: 0 })
    const check = await mirror('--check')
    expect(check, check.said).toMatchObject({ exit: 0 })
    await dockerd.docker('pull', 'gcr.io/org/app:one')
    await build(scene, 'app:one')
    await dockerd.docker('tag', 'gcr.io/org/app:one', 'localhost:5001/app:one')
    await dockerd.docker('push', 'localhost:5001/app:one')
    expect(await manifestsAskedOf(scene)).toEqual(
      expect.arrayContaining([expect.stringContaining('org/app'), expect.stringContaining('library/app')]),
    )
    const undone = await mirror('--undo', '--yes')
    expect(undone, undone.said).toMatchObject({ exit: 0 })
    expect(await certificatesOf(dockerd)).toEqual([])
    expect(await mirror('--check')).toMatchObject({ exit: 5 })
  })

  test.each([
    ['on loopback', []],
    ['beyond loopback', ['--mirror', beyondLoopback]],
  ])("Debian's newest dockerd with the classic store pulls and builds through a TLS mirror %s", async (_, where) => {
    const scene = await startTlsScene('oci')
    const dockerd = await startDockerd(scene, newer, { features: { 'containerd-snapshotter': false } })
    const mirror = configureDocker(scene, newer, dockerd)
    const done = await mirror('--yes', '--reload', ...where)
    expect(done, done.said).toMatchObject({ exit: 0 })
    const check = await mirror('--check')
    expect(check, check.said).toMatchObject({ exit: 0 })
    await build(scene, 'app:one')
    expect((await manifestsAskedOf(scene)).join()).toContain('library/app')
  })

  test("Debian's newest dockerd does not pull through a TLS mirror once its CA file holds another CA", async () => {
    const scene = await startTlsScene('oci')
    const dockerd = await startDockerd(scene, newer, { features: { 'containerd-snapshotter': true } })
    const mirror = configureDocker(scene, newer, dockerd)
    await mirror('--yes')
    const [file] = await certificatesOf(dockerd)
    const other = await makeCertificate(scene.folder, here)
    await writeFile(`/proc/${dockerd.pid}/root/etc/docker/certs.d/${file}`, await readFile(other.cert))
    expect(await mirror('--check')).toMatchObject({ exit: 5 })
  })

  test("this Debian's own dockerd pulls and builds through a TLS mirror by daemon.json and a CA file", async () => {
    const scene = await startTlsScene('docker')
    const dockerd = await startDockerd(scene, '', {})
    const mirror = configureDocker(scene, '', dockerd)
    const done = await mirror('--yes', '--reload', '--mirror', beyondLoopback)
    expect(done, done.said).toMatchObject({ exit: 0 })
    expect(await certificatesOf(dockerd)).toContain(`${stageAddress}:5055/mirror-ca.crt`)
    const check = await mirror('--check')
    expect(check, check.said).toMatchObject({ exit: 0 })
    await dockerd.docker('pull', 'app:one')
    await dockerd.docker('tag', 'app:one', 'localhost:5001/app:one')
    await dockerd.docker('push', 'localhost:5001/app:one')
    await dockerd.docker('pull', `${stageAddress}:5055/gcr.io/org/app:one`)
    await dockerd.docker('image', 'rm', 'app:one', 'localhost:5001/app:one')
    await dockerd.restart()
    const before = (await manifestsAskedOf(scene)).length
    await build(scene, 'app:one')
    expect((await manifestsAskedOf(scene)).slice(before).join()).toContain('library/app')
    const undone = await mirror('--undo', '--yes', '--reload')
    expect(undone, undone.said).toMatchObject({ exit: 0 })
    expect(await certificatesOf(dockerd)).toEqual([])
  })

  test('podman pulls through a TLS mirror, and pushes to its registry', async () => {
    const scene = await startTlsScene('oci')
    const apart = await startApart(scene, searchPath(''))
    const conf = '[engine]\\nevents_logger = "file"\\ncgroup_manager = "cgroupfs"\\nruntime = "runc"\\n'
    await apart.run('sh', '-c', `printf '${conf}' > /etc/containers/containers.conf`)
    const configured = await apart.mirror('configure', 'podman', '--yes')
    expect(configured, configured.stderr).toMatchObject({ exit: 0 })
    const written = await readFile(apart.outside('/etc/containers/registries.conf.d/50-mirror.conf'), 'utf8')
    expect(written).not.toContain('insecure')
    const check = await apart.mirror('configure', 'podman', '--check')
    expect(check, `${check.stdout}${check.stderr}`).toMatchObject({ exit: 0 })
    await apart.run('podman', 'pull', '--quiet', 'gcr.io/org/app:one')
    await apart.run('podman', 'push', '--quiet', 'gcr.io/org/app:one', 'localhost:5001/app:two')
    await apart.run('podman', 'pull', '--quiet', 'localhost:5001/app:two')
    await apart.run('skopeo', 'inspect', '--raw', 'docker://localhost:5001/app:two')
    expect(await apart.mirror('configure', 'podman', '--undo', '--yes')).toMatchObject({ exit: 0 })
    expect(await readdir(apart.outside('/etc/containers'))).not.toContain('certs.d')
    expect(await apart.mirror('configure', 'podman', '--check')).toMatchObject({ exit: 5 })
  })

  test.each([
    ["this Debian's own", '', 'version = 2', 'io.containerd.grpc.v1.cri'],
    ["Debian's newest", newer, 'version = 3', 'io.containerd.cri.v1.images'],
  ])('%s containerd pulls through a TLS mirror', async (_, root, version, plugin) => {
    const scene = await startTlsScene('oci')
    const apart = await startApart(scene, searchPath(root))
    const config = [
      version,
      `root = "${join(scene.folder, 'root')}"`,
      `state = "${join(scene.folder, 'state')}"`,
      `[plugins."${plugin}".registry]`,
      'config_path = "/etc/containerd/certs.d"',
    ]
    await apart.run(
      'sh',
      '-c',
      'mkdir -p /etc/containerd; printf "%s\\n" "$@" > /etc/containerd/config.toml',
      'sh',
      ...config,
    )
    const daemon = await startDaemon({
      command: apart.enter([join(root, '/usr/bin/containerd')]),
      env: { PATH: searchPath(root) },
      logFile: join(scene.folder, 'containerd.log'),
      ready: () => apart.run(join(root, '/usr/bin/ctr'), 'version'),
    })
    onTestFinished(daemon.stop)
    const configured = await apart.mirror('configure', 'containerd', '--yes', '--json')
    expect(configured, configured.stderr).toMatchObject({ exit: 0 })
    expect(JSON.parse(configured.stdout)).toMatchObject({ todo: [] })
    const check = await apart.mirror('configure', 'containerd', '--check')
    expect(check, `${check.stdout}${check.stderr}`).toMatchObject({ exit: 0 })
    const cri = criClient(apart.outside('/run/containerd/containerd.sock'))
    await cri.pullImage('gcr.io/org/app:one')
    const from = 'docker://127.0.0.1:5055/docker.io/library/app:one'
    const unverified = ['--src-tls-verify=false', '--dest-tls-verify=false']
    await apart.run('skopeo', 'copy', ...unverified, from, 'docker://127.0.0.1:5001/pushed:one')
    await cri.pullImage('localhost:5001/pushed:one')
    expect(await apart.mirror('configure', 'containerd', '--undo', '--yes')).toMatchObject({ exit: 0 })
    expect(await readdir(apart.outside('/etc/containerd'))).toEqual(['config.toml'])
    expect(await apart.mirror('configure', 'containerd', '--check')).toMatchObject({ exit: 5 })
  })

  test('a builder that buildx creates gets the CA of a TLS mirror', async () => {
    const scene = await startTlsScene('oci')
    const dockerd = await startDockerd(scene, newer, { features: { 'containerd-snapshotter': true } })
    const home = join(scene.folder, 'home')
    const settings = join(home, '.docker')
    await mkdir(settings, { recursive: true })
    const plugins = { cliPluginsExtraDirs: [join(newer, 'usr/libexec/docker/cli-plugins')] }
    await writeFile(join(settings, 'config.json'), JSON.stringify(plugins))
    const env = { PATH: searchPath(newer), HOME: home, DOCKER_HOST: `unix://${dockerSocket(scene.folder)}` }
    const done = await configure(scene, { enter: dockerd.enter, env }, 'buildkit', '--yes')
    expect(done, done.stderr).toMatchObject({ exit: 0 })
    const create = /docker (buildx create .*?)   /.exec(done.stderr)![1]!
    await run(join(newer, 'usr/bin/docker'), create.split(' '), { env })
    const [name] = await readdir(join(settings, 'buildx', 'instances'))
    const { Nodes: nodes } = JSON.parse(await readFile(join(settings, 'buildx', 'instances', name!), 'utf8')) as {
      Nodes: { Files: Record<string, string> }[]
    }
    const files = Object.entries(nodes[0]!.Files).map(([file, text]) => [file, Buffer.from(text, 'base64').toString()])
    const authority = files.find(([, text]) => text!.includes('BEGIN CERTIFICATE'))
    expect(authority?.[0]).toContain('127.0.0.1')
    const toml = files.find(([file]) => file === 'buildkitd.toml')![1]!
    const [, table] = /\[registry\."127\.0\.0\.1:5055"\]([^[]*\[[^[]*)/.exec(toml)!
    expect(table).toContain('http = false')
    expect(table).toContain(`${authority![0]}"]`)
  })

  test('the nodes of a new and of a running kind cluster pull through a TLS mirror', async () => {
    const scene = await startTlsScene('oci', { networks: ['kind'] })
    const host = await startKindHost(scene, { docker: '', containerd: '', kind: newer })
    await host.docker('network', 'create', 'kind')
    await expect
      .poll(async () => (await scene.mirror.status()).endpoints.networks, { timeout: 15_000, interval: 200 })
      .toHaveProperty('kind')
    const mirror = (...args: string[]) =>
      configure(scene, { enter: scene.namespace.enter, env: host.env }, 'kind', ...args)
    const made = await mirror('--yes')
    expect(made, made.stderr).toMatchObject({ exit: 0 })
    await host.kindFrom(made.stdout, 'create', 'cluster', '--name', 'one', '--config', '-', '--image', nodeImage)
    await pullInNode(host, 'one-control-plane', 'gcr.io/org/app:one')
    const check = await mirror('--check')
    expect(check, `${check.stdout}${check.stderr}`).toMatchObject({ exit: 0 })

    await host.kind('create', 'cluster', '--name', 'two', '--image', nodeImage)
    const given = await mirror('--cluster', 'two', '--yes')
    expect(given, given.stderr).toMatchObject({ exit: 0 })
    expect(await mirror('--cluster', 'two', '--check')).toMatchObject({ exit: 0 })
    expect(await mirror('--cluster', 'two', '--undo', '--yes')).toMatchObject({ exit: 0 })
    expect(await mirror('--cluster', 'two', '--check')).toMatchObject({ exit: 5 })
  })

  test('a TLS mirror in a container becomes healthy, status and down find it, and dockerd pulls through it', async () => {
    const image = await runnableImage(43, 'oci')
    const stage = await setStage({ content: { 'library/app': { one: image } }, upstreamAddress: stageAddress })
    const dockerd = await startDockerd(stage, newer, { features: { 'containerd-snapshotter': true } })
    const tls = await makeCertificate(stage.folder, [...here, 'mirror'])
    const command = await mirrorCommand(stage, {
      upstreams: { 'docker.io': { url: stage.upstream.url, credentials: 'anonymous' } },
      tls,
    })
    await command.up('--runtime', 'container')
    expect(await command.status()).toMatchObject({
      running: true,
      endpoints: { cache: ['https://127.0.0.1:5055'], networks: { kind: 'https://mirror:5055' } },
    })
    const health = () => dockerd.docker('inspect', '--format', '{{.State.Health.Status}}', 'mirror')
    await expect.poll(health, { timeout: 45_000, interval: 500 }).toBe('healthy\n')
    const env = { HOME: command.home, MIRROR_HOME: command.home, PATH: searchPath(newer) }
    const docker = { ...env, DOCKER_HOST: `unix://${dockerSocket(stage.folder)}` }
    const mirror = (...args: string[]) => configure(stage, { enter: dockerd.enter, env: docker }, 'docker', ...args)
    const done = await mirror('--yes')
    expect(done, done.stderr).toMatchObject({ exit: 0 })
    const check = await mirror('--check')
    expect(check, `${check.stdout}${check.stderr}`).toMatchObject({ exit: 0 })
    await dockerd.docker('pull', 'app:one')
    await command.mirror('down')
    expect(await dockerd.docker('ps', '--all', '--quiet')).toBe('')
  })
})
