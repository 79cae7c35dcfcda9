import { mkdir, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, inject, test } from 'vitest'
import { testCertificate } from '../support/upstream/certificate.ts'
import { configure } from './support/configure.ts'
import { dockerSocket, startDockerd, type Dockerd } from './support/dockerd.ts'
import { run } from './support/run.ts'
import { runnableImage } from './support/runnable-image.ts'
import { startScene, type Scene } from './support/scene.ts'
import { searchPath } from './support/search-path.ts'

const { missing, newer } = inject('e2e')

const mirrors = ['info', '--format', '{{json .RegistryConfig.Mirrors}}']

async function startWith(registries: string[], mediaTypes: 'docker' | 'oci'): Promise<Scene> {
  const image = await runnableImage(21, mediaTypes)
  return startScene({ registries, content: { 'library/runnable': { one: image }, 'org/runnable': { one: image } } })
}

/** Returns a function that runs `mirror configure docker` for the engine of the scene. */
function configureDocker(scene: Scene, root: string, { enter }: Dockerd) {
  const env = { PATH: searchPath(root), DOCKER_HOST: `unix://${dockerSocket(scene.folder)}` }
  return (...args: string[]) => configure(scene, { enter, env }, 'docker', ...args)
}

/** Lists the entries that dockerd finds in its /etc/docker/certs.d. */
async function foldersOf({ pid }: Dockerd): Promise<string[]> {
  return readdir(`/proc/${pid}/root/etc/docker/certs.d`).catch(() => [])
}

/** Builds an image of a base and a label, by the BuildKit inside dockerd. */
async function build(scene: Scene, from: string): Promise<string> {
  const context = join(scene.folder, 'context')
  await mkdir(context, { recursive: true })
  await writeFile(join(context, 'Dockerfile'), `FROM ${from}\nLABEL built=yes\n`)
  const env = { PATH: searchPath(''), DOCKER_HOST: `unix://${dockerSocket(scene.folder)}`, DOCKER_BUILDKIT: '1' }
  return run('/usr/bin/docker', ['build', '--no-cache', '--tag', 'built', context], { env: { ...env, HOME: context } })
}

describe.skipIf(missing !== undefined)('mirror configure docker', () => {
  test("this Debian's own dockerd pulls through the mirror after a change of daemon.json and a SIGHUP", async () => {
    const scene = await startWith(['docker.io'], 'docker')
    const dockerd = await startDockerd(scene, '', {})
    const mirror = configureDocker(scene, '', dockerd)
    const before = await readFile(dockerd.configFile)
    expect(await mirror('--check')).toMatchObject({ exit: 5, stdout: expect.stringContaining('FAIL') })

    const done = await mirror('--yes', '--reload')
    expect(done, done.stderr).toMatchObject({ exit: 0 })
    expect(await dockerd.docker(...mirrors)).toBe('["http://127.0.0.1:5055/"]\n')
    expect(await mirror('--yes')).toMatchObject({ exit: 0, stdout: expect.stringContaining('already configured') })
    expect(await mirror('--check')).toMatchObject({ exit: 0, stdout: expect.stringMatching(/^ok/) })
    await dockerd.docker('pull', 'runnable:one')
    expect(await dockerd.docker('image', 'ls', '--all', '--format', '{{.Repository}}')).toBe('runnable\n')

    const undone = await mirror('--undo', '--yes', '--reload')
    expect(undone, undone.stderr).toMatchObject({ exit: 0 })
    expect(await readFile(dockerd.configFile)).toEqual(before)
    expect(await dockerd.docker(...mirrors)).toMatch(/^(null|\[\])\n$/)
    expect(await mirror('--check')).toMatchObject({ exit: 5 })
  })

  test.each([
    ["this Debian's own", '', {}],
    ["Debian's newest", newer, { features: { 'containerd-snapshotter': false } }],
  ])('%s dockerd with the classic store forgets the mirror without a restart', async (_, root, settings) => {
    const scene = await startWith(['docker.io'], 'docker')
    const dockerd = await startDockerd(scene, root, settings)
    const mirror = configureDocker(scene, root, dockerd)
    const before = await readFile(dockerd.configFile)
    expect(await mirror('--yes')).toMatchObject({ exit: 0 })
    const unread = await mirror('--yes')
    expect(unread.stdout).toContain('does not use the mirror yet')
    expect(unread.stdout).toMatch(/docker info \(Docker \S+, classic image store\) lists no mirror/)
    expect(unread.stderr).toContain(`kill -HUP ${dockerd.pid}`)
    const unseen = await mirror('--check')
    expect(unseen).toMatchObject({ exit: 5, stdout: expect.stringContaining('has not read') })
    expect(await mirror('--yes', '--reload')).toMatchObject({ exit: 0 })
    expect(JSON.parse((await mirror('--yes', '--json')).stdout)).toMatchObject({ inUse: true, todo: [] })

    const undone = await mirror('--undo', '--yes')
    expect(undone, undone.stderr).toMatchObject({ exit: 0, stderr: expect.stringContaining('--undo --reload') })
    expect(undone.stderr).not.toContain('restart')
    expect(await readFile(dockerd.configFile)).toEqual(before)
    expect(await dockerd.docker(...mirrors)).toBe('["http://127.0.0.1:5055/"]\n')
    expect(await mirror('--undo', '--reload')).toMatchObject({ exit: 0 })
    expect(await readFile(dockerd.configFile)).toEqual(before)
    expect(await dockerd.docker(...mirrors)).toMatch(/^(null|\[\])\n$/)
    expect((await mirror('--list')).stdout).toContain('No docker is configured')
  })

  test("a build by the BuildKit of this Debian's own dockerd pulls through the mirror after a restart", async () => {
    const scene = await startWith(['docker.io'], 'docker')
    const dockerd = await startDockerd(scene, '', {})
    const done = await configureDocker(scene, '', dockerd)('--yes')
    expect(done).toMatchObject({ exit: 0, stderr: expect.stringContaining(`kill -HUP ${dockerd.pid}`) })
    await dockerd.restart()
    await build(scene, 'runnable:one')
    expect((await scene.mirror.status()).cache.misses).toBeGreaterThan(0)
  })

  test("Debian's newest dockerd with containerd's image store pulls and builds from every registry without a restart", async () => {
    const scene = await startWith(['docker.io', 'gcr.io', 'quay.io'], 'oci')
    const dockerd = await startDockerd(scene, newer, { features: { 'containerd-snapshotter': true } })
    const mirror = configureDocker(scene, newer, dockerd)
    const before = await readFile(dockerd.configFile)
    expect(await mirror('--check')).toMatchObject({ exit: 5 })

    const done = await mirror('--yes')
    expect(done, done.stderr).toMatchObject({ exit: 0 })
    expect(await readFile(dockerd.configFile)).toEqual(before)
    expect(await foldersOf(dockerd)).toEqual(expect.arrayContaining(['docker.io', 'gcr.io', 'ghcr.io', 'quay.io']))
    expect(await foldersOf(dockerd)).not.toContain('_default')
    expect(await mirror('--check')).toMatchObject({ exit: 0 })
    for (const name of ['runnable:one', 'gcr.io/org/runnable:one', 'quay.io/org/runnable:one'])
      await dockerd.docker('pull', name)
    for (const name of ['runnable:one', 'gcr.io/org/runnable:one']) await build(scene, name)
    expect((await scene.mirror.status()).upstreams).toMatchObject({
      'gcr.io': { state: 'ok' },
      'quay.io': { state: 'ok' },
    })

    const undone = await mirror('--undo', '--yes')
    expect(undone, undone.stderr).toMatchObject({ exit: 0 })
    expect(await foldersOf(dockerd)).toEqual([])
    expect(await mirror('--check')).toMatchObject({ exit: 5 })
  })

  test('dockerd keeps an insecure registry and certificates of the user in use', async () => {
    const scene = await startWith(['docker.io', 'ghcr.io'], 'oci')
    const dockerd = await startDockerd(scene, newer, {
      features: { 'containerd-snapshotter': true },
      'insecure-registries': ['quay.io'],
    })
    const folder = `/proc/${dockerd.pid}/root/etc/docker/certs.d/ghcr.io`
    await mkdir(folder, { recursive: true })
    await writeFile(join(folder, 'ca.crt'), testCertificate.cert)
    const done = await configureDocker(scene, newer, dockerd)('--yes')
    expect(done, done.stderr).toMatchObject({ exit: 0 })
    expect(await foldersOf(dockerd)).not.toContain('quay.io')

    await dockerd.docker('pull', 'ghcr.io/org/runnable:one')
    // Proves that dockerd understands the file's name in hosts.toml: without the file the pull fails.
    await rm(join(folder, 'ca.crt'))
    await expect(dockerd.docker('pull', 'ghcr.io/org/runnable:one')).rejects.toThrow('ca.crt')
  })

  test('configure refuses a mirror set by a flag of dockerd and a daemon.json that is not valid JSON, and changes no file', async () => {
    const scene = await startWith(['docker.io'], 'docker')
    const flags = ['--registry-mirror=http://127.0.0.1:9']
    const dockerd = await startDockerd(scene, newer, { features: { 'containerd-snapshotter': false } }, flags)
    const mirror = configureDocker(scene, newer, dockerd)
    const conflict = await mirror('--yes')
    expect(conflict).toMatchObject({ exit: 2, stderr: expect.stringContaining('--registry-mirror=http://127.0.0.1:9') })

    for (const [text, complaint] of [
      ['{\n  // ours\n  "debug": true\n}\n', 'line 2, column 3'],
      ['{}\n{}\n', 'line 2, column 1'],
      ['', 'line 1, column 1'],
    ] as const) {
      await writeFile(dockerd.configFile, text)
      expect(await mirror('--yes')).toMatchObject({ exit: 2, stderr: expect.stringContaining(complaint) })
      expect(await readFile(dockerd.configFile, 'utf8')).toBe(text)
    }
  })

  test('configure refuses a daemon.json that dockerd itself rejects, and changes no file', async () => {
    const scene = await startWith(['docker.io'], 'docker')
    const dockerd = await startDockerd(scene, newer, { features: { 'containerd-snapshotter': false } })
    const text = '{"no-such-thing": 1}'
    await writeFile(dockerd.configFile, text)
    const refused = await configureDocker(scene, newer, dockerd)('--yes')
    expect(refused).toMatchObject({ exit: 2, stderr: expect.stringContaining('no-such-thing') })
    expect(await readFile(dockerd.configFile, 'utf8')).toBe(text)
  })
})
