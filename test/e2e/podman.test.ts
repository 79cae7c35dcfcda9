import { describe, expect, inject, test } from 'vitest'
import { newerPodman } from './support/newer-podman.ts'
import { podmanRun, preparePodman } from './support/podman.ts'
import { expectPullsTwice } from './support/pull-twice.ts'
import { greeting, runnableImage } from './support/runnable-image.ts'
import { run } from './support/run.ts'
import { mirrorAddress, startScene } from './support/scene.ts'

const { missing } = inject('e2e')

/** registriesConf is a file as a user would write it. */
const registriesConf = `unqualified-search-registries = ["docker.io"]

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
`

describe.skipIf(missing !== undefined)('podman with a registries.conf', () => {
  test.each([
    ['Docker Hub', 'docker.io', 'library/runnable', 'docker' as const],
    ['another registry, by path,', 'ghcr.io', 'org/team/runnable', 'oci' as const],
  ])('an image of %s is fetched once, and pulled again from the cache', async (_, registry, name, mediaTypes) => {
    const image = await runnableImage(2, mediaTypes)
    const scene = await startScene({ registries: ['docker.io', 'ghcr.io'], content: { [name]: { one: image } } })
    const podman = await preparePodman(scene, registriesConf)
    const reference = `${registry}/${name}:one`

    await expectPullsTwice(scene, {
      async pull() {
        await podman('pull', '--quiet', reference)
        expect(await podman(...podmanRun(reference, 'cat', '/greeting'))).toBe(greeting)
      },
      async forget() {
        await podman('image', 'rm', reference)
        expect(await podman('image', 'ls', '--all', '--quiet')).toBe('')
      },
    })
  })

  test('skopeo shows its user why a tag could not be confirmed, and from when it is', async ({ skip }) => {
    const name = 'library/runnable'
    const image = await runnableImage(1, 'oci')
    const root = await newerPodman().catch((error: Error) => skip(`there is no newer skopeo: ${error.message}`))
    const scene = await startScene({ registries: ['docker.io'], content: { [name]: { one: image } } })
    const skopeo = () => {
      const url = `docker://${mirrorAddress}/docker.io/${name}:one`
      const command = `exec skopeo inspect --raw --tls-verify=false ${url} 2>&1`
      const [file, ...args] = scene.namespace.enter(['chroot', root, 'sh', '-c', command])
      return run(file!, args)
    }
    expect(await skopeo()).not.toContain('served tag')
    await scene.upstream.disconnect()
    expect(await skopeo()).toMatch(/docker\.io .*; served tag runnable:one as of (?:\S+ )?\d\d:\d\d UTC/)
  })
})
