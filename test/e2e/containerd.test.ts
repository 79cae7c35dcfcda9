import { describe, expect, inject, test } from 'vitest'
import { startContainerd } from './support/containerd.ts'
import { expectPullsTwice } from './support/pull-twice.ts'
import { greeting, runnableImage } from './support/runnable-image.ts'
import { mirrorAddress, startScene } from './support/scene.ts'

const { missing, newer } = inject('e2e')

const host = `[host."http://${mirrorAddress}"]\ncapabilities = ["pull", "resolve"]\n`
const hosts = { 'docker.io': `server = "https://registry-1.docker.io"\n${host}`, _default: host }

describe.skipIf(missing !== undefined).each([
  ["this Debian's own", ''],
  ["Debian's newest", newer],
])('%s containerd with hosts.toml, through CRI', (_, root) => {
  test.each([
    ['Docker Hub', 'docker.io', 'library/runnable', 'docker' as const],
    ['a registry that has no entry of its own', 'registry.example:8443', 'org/runnable', 'oci' as const],
  ])('an image of %s is fetched once, and pulled again from the cache', async (_, registry, name, mediaTypes) => {
    const image = await runnableImage(3, mediaTypes)
    const scene = await startScene({ registries: [registry], content: { [name]: { one: image } } })
    const { cri, ctr, runOnce } = await startContainerd(scene, root, hosts)
    const reference = `${registry}/${name}:one`

    await expectPullsTwice(scene, {
      async pull() {
        await cri.pullImage(reference)
        expect(await runOnce(reference, 'cat', '/greeting')).toBe(greeting)
      },
      async forget() {
        await cri.removeImage(reference)
        expect(await ctr('content', 'ls', '--quiet')).toBe('')
      },
    })
  })
})
