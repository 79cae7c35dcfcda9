import { mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, inject, test } from 'vitest'
import type { StatusReport } from '../../src/server/admin-api.ts'
import { startDockerd } from './support/dockerd.ts'
import { podmanRun, preparePodman } from './support/podman.ts'
import { run } from './support/run.ts'
import { greeting, runnableImage } from './support/runnable-image.ts'
import { type Scene, mirrorAddress, registryAddress, startScene } from './support/scene.ts'

const { missing, newer } = inject('e2e')

const application = `${registryAddress}/team/application`
const sibling = `${registryAddress}/team/sibling`

/** A scene with a registry to push to, and an image of Docker Hub to have something to push. */
async function startRegistryScene(mediaTypes: 'oci' | 'docker') {
  const image = await runnableImage(5, mediaTypes)
  const content = { 'library/runnable': { one: image } }
  const scene = await startScene({ registries: ['docker.io'], content, registry: true })
  return { scene, image }
}

/** Sees what `mirror status --json` says was pushed. */
async function expectPushed({ mirror }: Scene, counts: Omit<StatusReport['registry'], 'bytes'>) {
  const { endpoints, registry } = await mirror.status()
  expect(endpoints.registry).toStrictEqual([`http://${registryAddress}`])
  expect(registry).toMatchObject(counts)
}

/** The name of a blob's file in a `dir:` of skopeo. */
function fileOf(digest: string): string {
  return digest.replace('sha256:', '')
}

describe.skipIf(missing !== undefined)('the registry to push to', () => {
  test.each([
    ["this Debian's own dockerd", { root: '', features: {}, mediaTypes: 'docker' }],
    [
      "Debian's newest dockerd, with containerd's image store,",
      { root: newer, features: { 'containerd-snapshotter': true }, mediaTypes: 'oci' },
    ],
  ] as const)('%s pushes to two repositories and has the same again from both', async (_, setting) => {
    const { root, features, mediaTypes } = setting
    const { scene } = await startRegistryScene(mediaTypes)
    const { docker } = await startDockerd(scene, root, { 'registry-mirrors': [`http://${mirrorAddress}`], features })
    await docker('pull', 'runnable:one')

    const names = [application, sibling].map((name) => name.replace('127.0.0.1', 'localhost'))
    const said: string[] = []
    for (const name of names) {
      await docker('tag', 'runnable:one', `${name}:1`)
      said.push(await docker('push', `${name}:1`))
    }
    const [digest, again] = said.map((text) => /digest: (sha256:[0-9a-f]{64})/.exec(text)?.[1])
    expect(again, 'the same image').toBe(digest)
    expect(said[1]!.match(/Mounted from team\/application/g), 'layers that were not sent again').toHaveLength(3)
    await expectPushed(scene, { repositories: 2, tags: 2, manifests: 2, uploads: 0 })

    await docker('image', 'rm', 'runnable:one', ...names.map((name) => `${name}:1`))
    expect(await docker('image', 'ls', '--all', '--quiet')).toBe('')
    for (const name of names) {
      expect(await docker('pull', `${name}:1`)).toContain(`Digest: ${digest}\n`)
      expect(await docker('run', '--rm', '--network', 'none', `${name}:1`, 'cat', '/greeting')).toBe(greeting)
      await docker('image', 'rm', `${name}:1`)
    }
  })

  test('podman pushes to two repositories and has the same again from both', async () => {
    const { scene } = await startRegistryScene('oci')
    const podman = await preparePodman(scene, `[[registry]]\nlocation = "${registryAddress}"\ninsecure = true\n`)
    const source = `${mirrorAddress}/docker.io/library/runnable:one`
    await podman('pull', '--quiet', '--tls-verify=false', source)
    const id = await podman('image', 'inspect', '--format', '{{.Id}}', source)
    const digests: string[] = []
    for (const name of [application, sibling]) {
      const digestFile = join(scene.folder, 'digest')
      await podman('push', '--quiet', '--digestfile', digestFile, source, `${name}:1`)
      digests.push(await readFile(digestFile, 'utf8'))
    }
    expect(digests[1], 'the same image').toBe(digests[0])
    await expectPushed(scene, { repositories: 2, tags: 2, manifests: 2, uploads: 0 })

    await podman('image', 'rm', source)
    expect(await podman('image', 'ls', '--all', '--quiet')).toBe('')
    for (const name of [application, sibling]) {
      await podman('pull', '--quiet', `${name}:1`)
      const pulled = await podman('image', 'inspect', '--format', '{{.Id}} {{.Digest}}', `${name}:1`)
      expect(pulled).toBe(`${id.trim()} ${digests[0]}\n`)
      expect(await podman(...podmanRun(`${name}:1`, 'cat', '/greeting'))).toBe(greeting)
      await podman('image', 'rm', `${name}:1`)
    }
  })

  test.each([
    ['OCI', 'oci'],
    ['Docker', 'docker'],
  ] as const)('skopeo copies an index of two platforms whole, in media types of %s', async (_, mediaTypes) => {
    const { scene, image } = await startRegistryScene(mediaTypes)
    const skopeo = (...args: string[]) => {
      const [file, ...rest] = scene.namespace.enterApart(['skopeo', ...args])
      return run(file!, rest, { env: { PATH: process.env['PATH'], HOME: scene.folder } })
    }
    const insecure = ['--src-tls-verify=false', '--dest-tls-verify=false']
    const copy = (from: string, to: string) =>
      skopeo('copy', '--all', '--preserve-digests', ...insecure, `docker://${from}`, to)
    await copy(`${mirrorAddress}/docker.io/library/runnable:one`, `docker://${application}:1`)
    await copy(`${application}:1`, `docker://${sibling}:1`)
    await expectPushed(scene, { repositories: 2, tags: 2, manifests: 6, uploads: 0 })

    for (const name of [application, sibling]) {
      const raw = await skopeo('inspect', '--raw', '--tls-verify=false', `docker://${name}:1`)
      expect(raw).toBe(image.bytes.toString())
      // skopeo checks every digest below the index as it reads it.
      const copied = await mkdtemp(join(scene.folder, 'copy-'))
      await copy(`${name}@${image.digest}`, `dir:${copied}`)
      expect(await readdir(copied)).toEqual(expect.arrayContaining([...image.blobs.keys()].map(fileOf)))
    }
  })

  test('oras attaches to an image, finds by the API of referrers what it attached, and copies both', async () => {
    const { scene } = await startRegistryScene('oci')
    const home = await mkdtemp(join(scene.folder, 'oras-'))
    const oras = (command: string, ...args: string[]) => {
      const [file, ...rest] = scene.namespace.enterApart([join(newer, 'usr/bin/oras'), command, ...args])
      return run(file!, rest, { cwd: home, env: { PATH: process.env['PATH'], HOME: home } })
    }
    const plain = ['--from-plain-http', '--to-plain-http', '--recursive']
    await oras('copy', ...plain, `${mirrorAddress}/library/runnable:one`, `${application}:1`)
    await writeFile(join(home, 'bill'), 'of materials\n')
    const attach = ['--plain-http', '--format', 'json', '--artifact-type', 'application/vnd.example.bill']
    const said = await oras('attach', ...attach, `${application}:1`, 'bill:text/plain')
    const { digest } = JSON.parse(said) as { digest: string }
    // An index, two images and what is attached: to a registry without that API, oras pushes a list at a tag as well.
    await expectPushed(scene, { repositories: 1, tags: 1, manifests: 4, uploads: 0 })

    await oras('copy', ...plain, `${application}:1`, `${sibling}:1`)
    await expectPushed(scene, { repositories: 2, tags: 2, manifests: 8, uploads: 0 })
    for (const name of [application, sibling]) {
      expect(await oras('discover', '--plain-http', '--format', 'json', `${name}:1`)).toContain(`${name}@${digest}`)
    }
    await rm(join(home, 'bill'))
    await oras('pull', '--plain-http', `${sibling}@${digest}`)
    expect(await readFile(join(home, 'bill'), 'utf8')).toBe('of materials\n')
  })
})
