import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, inject, test } from 'vitest'
import { expectPullsTwice } from './support/pull-twice.ts'
import { run } from './support/run.ts'
import { greeting, runnableImage } from './support/runnable-image.ts'
import { type Scene, mirrorAddress, startScene } from './support/scene.ts'

const { missing } = inject('e2e')

/** podman in the scene, with a store of its own and the registries.conf that a user would write. */
async function preparePodman(scene: Scene): Promise<(...args: string[]) => Promise<string>> {
  const home = join(scene.folder, 'podman')
  await mkdir(home)
  const registries = join(home, 'registries.conf')
  await writeFile(
    registries,
    `unqualified-search-registries = ["docker.io"]

[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "${mirrorAddress}"
insecure = true

[[registry]]
prefix = "ghcr.io"
location = "ghcr.io"
[[registry.mirror]]
location = "${mirrorAddress}/ghcr.io"
insecure = true
`,
  )
  const env = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', HOME: home, CONTAINERS_REGISTRIES_CONF: registries }
  const stores = ['--root', join(home, 'root'), '--runroot', join(home, 'run'), '--tmpdir', join(home, 'tmp')]
  // runc and cgroupfs run on machines without systemd and with mixed cgroups, too.
  const engine = [
    '--storage-driver',
    'overlay',
    '--runtime',
    'runc',
    '--cgroup-manager',
    'cgroupfs',
    '--events-backend',
    'file',
  ]
  return (...args) => {
    const [file, ...rest] = scene.namespace.enterApart(['podman', ...stores, ...engine, ...args])
    return run(file!, rest, { env })
  }
}

describe.skipIf(missing !== undefined)('podman with a registries.conf', () => {
  test.each([
    ['Docker Hub', 'docker.io', 'library/runnable', 'docker' as const],
    ['another registry, by path,', 'ghcr.io', 'org/team/runnable', 'oci' as const],
  ])('fetches an image of %s once, and has it again without it', async (_, registry, name, mediaTypes) => {
    const image = await runnableImage(2, mediaTypes)
    const scene = await startScene({ registries: ['docker.io', 'ghcr.io'], content: { [name]: { one: image } } })
    const podman = await preparePodman(scene)
    const reference = `${registry}/${name}:one`

    await expectPullsTwice(scene, {
      async pull() {
        await podman('pull', '--quiet', reference)
        // podman would raise these limits, which not every machine allows.
        const limits = ['--ulimit', 'nofile=1024:1024', '--ulimit', 'nproc=1024:1024']
        const said = await podman('run', '--rm', '--network', 'none', ...limits, reference, 'cat', '/greeting')
        expect(said).toBe(greeting)
      },
      async forget() {
        await podman('image', 'rm', reference)
        expect(await podman('image', 'ls', '--all', '--quiet')).toBe('')
      },
    })
  })
})
