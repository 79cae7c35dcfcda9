import { describe, expect, inject, test } from 'vitest'
import { startDockerd } from './support/dockerd.ts'
import { expectPullsTwice } from './support/pull-twice.ts'
import { greeting, runnableImage } from './support/runnable-image.ts'
import { mirrorAddress, startScene } from './support/scene.ts'

const { missing, newer } = inject('e2e')

describe.skipIf(missing !== undefined)('dockerd with registry-mirrors', () => {
  const classic = { root: '', features: {}, driver: 'overlay2', mediaTypes: 'docker' } as const
  const containerd = {
    root: newer,
    features: { 'containerd-snapshotter': true },
    driver: 'overlayfs',
    mediaTypes: 'oci',
  } as const
  test.each([
    ["this Debian's own", classic],
    ["Debian's newest, with containerd's image store,", containerd],
  ])('%s dockerd fetches an image of Docker Hub once, and pulls it again without Docker Hub', async (_, setting) => {
    const { root, features, driver, mediaTypes } = setting
    const image = await runnableImage(1, mediaTypes)
    const scene = await startScene({ registries: ['docker.io'], content: { 'library/runnable': { one: image } } })
    const { docker } = await startDockerd(scene, root, { 'registry-mirrors': [`http://${mirrorAddress}`], features })
    expect(await docker('info', '--format', '{{.Driver}}')).toBe(`${driver}\n`)

    await expectPullsTwice(scene, {
      async pull() {
        expect(await docker('pull', 'runnable:one')).toContain(image.digest)
        expect(await docker('run', '--rm', '--network', 'none', 'runnable:one', 'cat', '/greeting')).toBe(greeting)
      },
      async forget() {
        await docker('image', 'rm', 'runnable:one')
        expect(await docker('image', 'ls', '--all', '--quiet')).toBe('')
      },
    })
  })
})
