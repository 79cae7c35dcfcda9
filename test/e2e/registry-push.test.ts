import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, inject, test } from 'vitest'
import { startDockerd } from './support/dockerd.ts'
import { podmanRun, preparePodman } from './support/podman.ts'
import { run } from './support/run.ts'
import { application, expectPushed, sibling, startRegistryScene } from './support/registry-scene.ts'
import { greeting } from './support/runnable-image.ts'
import { type Scene, mirrorAddress, registryAddress } from './support/scene.ts'

const { missing, newer } = inject('e2e')

/** Returns the name of a blob's file in a `dir:` of skopeo. */
function fileOf(digest: string): string {
  return digest.replace('sha256:', '')
}

/** Counts the uploads that the clients of a scene have started and not finished, by the log of the mirror. */
async function countUnfinishedUploads({ mirror }: Scene): Promise<number> {
  const lines = (await readFile(mirror.logFile, 'utf8')).split('\n')
  const started = lines.filter((line) => /"POST".*\/blobs\/uploads\//.test(line) && !line.includes('"status":201'))
  const finished = lines.filter((line) => /"PUT".*\/blobs\/uploads\/.*"status":201/.test(line))
  return started.length - finished.length
}

/** Runs one of the newer programs in the scene, in its own home; returns its stdout. */
async function runTool(scene: Scene, name: string, args: readonly string[]): Promise<string> {
  const home = join(scene.folder, name)
  await mkdir(home, { recursive: true })
  const [file, ...rest] = scene.namespace.enterApart([join(newer, 'usr/bin', name), ...args])
  return run(file!, rest, { cwd: home, env: { PATH: process.env['PATH'], HOME: home, COSIGN_PASSWORD: '' } })
}

describe.skipIf(missing !== undefined)('the push registry', () => {
  test.each([
    ["this Debian's own dockerd", { root: '', features: {}, mediaTypes: 'docker' }],
    [
      "Debian's newest dockerd, with containerd's image store,",
      { root: newer, features: { 'containerd-snapshotter': true }, mediaTypes: 'oci' },
    ],
  ] as const)('%s pushes an image to two repositories, and pulls the same image from both', async (_, setting) => {
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
    const held = said[1]!.matchAll(/^(\w+): (?:Mounted from team\/application|Layer already exists)/gm)
    expect(new Set([...held].map(([, layer]) => layer)), 'layers that were not sent again').toHaveProperty('size', 3)
    const { uploads } = await expectPushed(scene, { repositories: 2, tags: 2, manifests: 2 })
    // The newest dockerd pushes the whole index first, and gives up at the platform that it does not have. Uploads of the
    // other one, if they have started by then, stay open until they expire.
    expect(uploads).toBeLessThanOrEqual(root === newer ? await countUnfinishedUploads(scene) : 0)

    await docker('image', 'rm', 'runnable:one', ...names.map((name) => `${name}:1`))
    expect(await docker('image', 'ls', '--all', '--quiet')).toBe('')
    for (const name of names) {
      expect(await docker('pull', `${name}:1`)).toContain(`Digest: ${digest}\n`)
      expect(await docker('run', '--rm', '--network', 'none', `${name}:1`, 'cat', '/greeting')).toBe(greeting)
      await docker('image', 'rm', `${name}:1`)
    }
  })

  test('podman pushes an image to two repositories, and pulls the same image from both', async () => {
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

  test('podman pushes a manifest list with all of its images', async () => {
    const { scene, image } = await startRegistryScene('oci')
    const podman = await preparePodman(scene, `[[registry]]\nlocation = "${registryAddress}"\ninsecure = true\n`)
    const source = `docker://${mirrorAddress}/docker.io/library/runnable:one`
    await podman('manifest', 'create', 'list')
    await podman('manifest', 'add', '--all', '--tls-verify=false', 'list', source)
    for (const name of [application, sibling]) {
      await podman('manifest', 'push', '--all', '--format', 'oci', '--tls-verify=false', 'list', `docker://${name}:1`)
      const { manifests } = JSON.parse(await podman('manifest', 'inspect', `${name}:1`)) as {
        manifests: { digest: string }[]
      }
      const children = [...image.manifests.keys()].filter((digest) => digest !== image.digest)
      expect(manifests.map(({ digest }) => digest).toSorted()).toEqual(children.toSorted())
      expect(await podman(...podmanRun(`${name}:1`, 'cat', '/greeting'))).toContain(greeting)
    }
    await expectPushed(scene, { repositories: 2, tags: 2, manifests: 6, uploads: 0 })
  })

  test('buildah builds on an image of the cache, pushes the result to two repositories, and pulls it again', async () => {
    const { scene } = await startRegistryScene('oci')
    const home = await mkdtemp(join(scene.folder, 'buildah-'))
    const stores = ['--root', join(home, 'root'), '--runroot', join(home, 'run'), '--storage-driver', 'overlay']
    const buildah = async (command: string, ...args: string[]) => {
      const [file, ...rest] = scene.namespace.enterApart(['buildah', ...stores, command, ...args])
      return (await run(file!, rest, { cwd: home, env: { PATH: process.env['PATH'], HOME: home } })).trim()
    }
    const insecure = '--tls-verify=false'
    const container = await buildah('from', insecure, `${mirrorAddress}/docker.io/library/runnable:one`)
    await writeFile(join(home, 'note'), 'built\n')
    await buildah('copy', container, join(home, 'note'), '/note')
    const id = await buildah('commit', '--rm', container, 'built')
    for (const name of [application, sibling]) await buildah('push', insecure, 'built', `docker://${name}:1`)
    await expectPushed(scene, { repositories: 2, tags: 2, manifests: 2, uploads: 0 })

    await buildah('rmi', '--all', '--force')
    for (const name of [application, sibling]) {
      expect(await buildah('pull', insecure, '--policy', 'always', `docker://${name}:1`)).toBe(id)
      await buildah('rmi', '--all', '--force')
    }
  })

  test.skipIf(!existsSync(join(newer, 'usr/bin/crane')))(
    'crane copies an index with all of its images, and mounts the blobs the second time (Debian 13 has no crane)',
    async () => {
      const { scene, image } = await startRegistryScene('oci')
      const crane = (...args: string[]) => runTool(scene, 'crane', args)
      await crane('copy', '--insecure', `${mirrorAddress}/docker.io/library/runnable:one`, `${application}:1`)
      await crane('copy', '--insecure', `${application}:1`, `${sibling}:1`)
      await expectPushed(scene, { repositories: 2, tags: 2, manifests: 6, uploads: 0 })
      const log = await readFile(scene.mirror.logFile, 'utf8')
      const mounts = log.split('\n').filter((line) => /"POST".*team\/sibling\/blobs.*mount=.*"status":201/.test(line))
      expect(mounts).toHaveLength(image.blobs.size)
      for (const name of [application, sibling]) {
        expect(await crane('digest', '--insecure', `${name}:1`)).toBe(`${image.digest}\n`)
        await crane('validate', '--remote', `${name}:1`, '--insecure')
      }
      expect(await crane('catalog', '--insecure', registryAddress)).toBe('team/application\nteam/sibling\n')
      await crane('delete', '--insecure', `${sibling}:1`)
      expect(await crane('ls', '--insecure', sibling)).toBe('')
    },
  )

  test('cosign signs a pushed image, and verifies the signature', async () => {
    const { scene, image } = await startRegistryScene('oci')
    const cosign = (...args: string[]) => runTool(scene, 'cosign', args)
    const source = `docker://${mirrorAddress}/docker.io/library/runnable:one`
    const insecure = ['--src-tls-verify=false', '--dest-tls-verify=false']
    const skopeo = ['skopeo', 'copy', '--all', '--preserve-digests', ...insecure, source, `docker://${application}:1`]
    const [file, ...rest] = scene.namespace.enterApart(skopeo)
    await run(file!, rest)
    await cosign('generate-key-pair')
    const signed = `${application}@${image.digest}`
    const plain = '--allow-http-registry'
    await cosign('sign', '--yes', '--key', 'cosign.key', '--tlog-upload=false', plain, signed)
    const said = await cosign('verify', '--key', 'cosign.pub', '--insecure-ignore-tlog', plain, signed)
    expect(said).toContain(image.digest)
    // Verifies with another key, which must fail.
    await cosign('generate-key-pair', '--output-key-prefix', 'other')
    const other = cosign('verify', '--key', 'other.pub', '--insecure-ignore-tlog', plain, signed)
    await expect(other).rejects.toThrow(/no matching signatures|invalid signature/)
  })

  test.each([
    ['OCI', 'oci'],
    ['Docker', 'docker'],
  ] as const)('skopeo copies an index with both of its platforms, in media types of %s', async (_, mediaTypes) => {
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

  test('oras attaches a file to an image, finds it by the referrers API, and copies both', async () => {
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
    // Counts an index, two images and the attachment; without the referrers API oras would push a tagged list too.
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
