import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { run } from './run.ts'
import type { Scene } from './scene.ts'

/** Runs podman with the arguments: its stdout. */
export type Podman = (...args: string[]) => Promise<string>

// podman would raise these limits, which not every machine allows.
const limits = ['--ulimit', 'nofile=1024:1024', '--ulimit', 'nproc=1024:1024']

/** The arguments that run a command in a container of the image. */
export function podmanRun(image: string, ...command: string[]): string[] {
  return ['run', '--rm', '--network', 'none', ...limits, image, ...command]
}

/** podman in the scene, with a store of its own and the text as its registries.conf. */
export async function preparePodman(scene: Scene, registriesConf: string): Promise<Podman> {
  const home = join(scene.folder, 'podman')
  await mkdir(home)
  const registries = join(home, 'registries.conf')
  await writeFile(registries, registriesConf)
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
