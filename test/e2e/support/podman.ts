import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { run } from './run.ts'
import type { Scene } from './scene.ts'

/** Podman runs podman with the arguments, and returns its stdout. */
export type Podman = (...args: string[]) => Promise<string>

// Sets the limits that podman would raise, because not every machine allows that.
const limits = ['--ulimit', 'nofile=1024:1024', '--ulimit', 'nproc=1024:1024']

/** Returns the arguments that run a command in a container of the image. */
export function podmanRun(image: string, ...command: string[]): string[] {
  return ['run', '--rm', '--network', 'none', ...limits, image, ...command]
}

/** Prepares podman in the scene, with its own store and the text as its registries.conf. */
export async function preparePodman(scene: Scene, registriesConf: string): Promise<Podman> {
  const home = join(scene.folder, 'podman')
  await mkdir(home)
  const registries = join(home, 'registries.conf')
  await writeFile(registries, registriesConf)
  const env = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', HOME: home, CONTAINERS_REGISTRIES_CONF: registries }
  const stores = ['--root', join(home, 'root'), '--runroot', join(home, 'run'), '--tmpdir', join(home, 'tmp')]
  // Chooses runc and cgroupfs, which also run on machines without systemd and with mixed cgroups.
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
