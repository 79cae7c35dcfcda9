import { copyFile, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { type TestImage, makeImage, makeIndex } from '../../support/images.ts'
import { run } from './run.ts'

/** greeting is the output of `cat /greeting` in a container of a runnable image. */
export const greeting = 'this ran\n'

/** Creates a small root file system with busybox, as a tar archive. */
export async function busyboxTar(): Promise<Buffer> {
  const work = await mkdtemp(join(tmpdir(), 'mirror-e2e-busybox-'))
  try {
    const root = join(work, 'root')
    await mkdir(join(root, 'bin'), { recursive: true })
    await mkdir(join(root, 'etc'))
    await copyFile('/bin/busybox', join(root, 'bin', 'busybox'))
    for (const applet of ['sh', 'cat', 'wget']) await symlink('busybox', join(root, 'bin', applet))
    await writeFile(join(root, 'etc', 'passwd'), 'root:x:0:0::/:/bin/sh\n')
    await writeFile(join(root, 'greeting'), greeting)
    const archive = join(work, 'root.tar')
    const fixed = ['--format=ustar', '--sort=name', '--mtime=@0', '--owner=0', '--group=0', '--numeric-owner']
    await run('tar', [...fixed, '-C', root, '-cf', archive, 'bin', 'etc', 'greeting'])
    return await readFile(archive)
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

/** Creates an image for amd64 and arm64 that runs on this machine: busybox, and layers that differ by `seed` and architecture. */
export async function runnableImage(seed: number, mediaTypes: 'oci' | 'docker'): Promise<TestImage> {
  const busybox = gzipSync(await busyboxTar(), { level: 1 })
  const images = ['amd64', 'arm64'].map((architecture, at) =>
    makeImage({
      layers: [busybox, 300_000, 3_000_000],
      mediaTypes,
      platform: { os: 'linux', architecture },
      seed: seed * 2 + at,
    }),
  )
  return makeIndex(images, { mediaTypes })
}
