import { chmod, lstat, mkdir, mkdtemp, rename, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { isRootControlled } from '../../../src/lib/ownership.ts'
import { debianMirror } from './debian-mirror.ts'
import { run } from './run.ts'

const suite = 'trixie'
const packages = ['podman', 'buildah', 'skopeo', 'crun', 'runc', 'ca-certificates']

/**
 * Installs a Debian with a newer podman, buildah and skopeo, which do not run with this machine's libc. Returns its root folder,
 * which is kept for the next run. Throws if it is not available.
 */
export async function newerPodman(): Promise<string> {
  const kept = join(tmpdir(), `mirror-e2e-newer-podman-${suite}`)
  const found = await lstat(kept).catch(() => undefined)
  // Checks that only root can change the programs, because every user can write to the temporary folder.
  if (found?.isDirectory() && isRootControlled(kept)) return kept
  if (found) throw new Error(`${kept} is in the way: it should be a folder of root's`)
  const work = await mkdtemp(join(tmpdir(), 'mirror-e2e-newer-podman-'))
  try {
    const root = join(work, 'root')
    await mkdir(root)
    await chmod(root, 0o755)
    const settings = ['--aptopt=Acquire::Check-Valid-Until "false"', '--aptopt=Acquire::Languages "none"']
    const what = ['--variant=essential', `--include=${packages.join(',')}`, ...settings]
    await run('mmdebstrap', ['--quiet', ...what, suite, root, await debianMirror()], { timeoutMs: 240_000 })
    // Mounts /proc, because podman reads its own command line there.
    const proc = join(root, 'proc')
    await run('unshare', [
      '--mount',
      'sh',
      '-c',
      'mount -t proc proc "$1" && chroot "$2" podman --version',
      'sh',
      proc,
      root,
    ])
    // Creates the folder of images, because the tests mount a file system there.
    await mkdir(join(root, 'var/lib/containers'), { recursive: true })
    await rename(root, kept)
    return kept
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}
