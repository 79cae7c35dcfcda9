import { randomUUID } from 'node:crypto'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type Cri, criClient } from './cri.ts'
import { onTestFinished } from 'vitest'
import { startDaemon } from './daemon.ts'
import { run } from './run.ts'
import type { Scene } from './scene.ts'
import { searchPath } from './search-path.ts'

export interface Containerd {
  cri: Cri
  /** Runs ctr on the images that were pulled through CRI. */
  ctr(...args: string[]): Promise<string>
  /** Runs a command in a container of the image; returns its stdout. */
  runOnce(image: string, ...command: string[]): Promise<string>
}

/**
 * Starts a containerd in the scene from the programs below `root` (empty: the system's), with a hosts.toml for each of `hosts`,
 * keyed by registry or `_default`.
 */
export async function startContainerd(scene: Scene, root: string, hosts: Record<string, string>): Promise<Containerd> {
  const home = join(scene.folder, 'containerd')
  const hostsFolder = join(home, 'certs.d')
  for (const [registry, text] of Object.entries(hosts)) {
    await mkdir(join(hostsFolder, registry), { recursive: true })
    await writeFile(join(hostsFolder, registry, 'hosts.toml'), text)
  }
  const programs = { env: { PATH: searchPath(root), HOME: home } }
  const containerd = join(root, '/usr/bin/containerd')
  const second = (await run(containerd, ['--version'], programs)).includes('/v2')
  const plugin = second ? 'io.containerd.cri.v1.images' : 'io.containerd.grpc.v1.cri'
  const socket = join(home, 'sock')
  const configFile = join(home, 'config.toml')
  await writeFile(
    configFile,
    [
      `version = ${second ? 3 : 2}`,
      `root = '${join(home, 'root')}'`,
      `state = '${join(home, 'state')}'`,
      `[grpc]`,
      `address = '${socket}'`,
      `[plugins.'${plugin}'.registry]`,
      `config_path = '${hostsFolder}'`,
      '',
    ].join('\n'),
  )
  const cri = criClient(socket)
  const daemon = await startDaemon({
    command: scene.namespace.enterApart([containerd, '--config', configFile]),
    ...programs,
    logFile: join(home, 'log'),
    ready: () => cri.version(),
  })
  onTestFinished(daemon.stop)
  const ctr = (...args: string[]) =>
    run(join(root, '/usr/bin/ctr'), ['--address', socket, '--namespace', 'k8s.io', ...args], programs)
  return {
    cri,
    ctr,
    // Puts the pipes into a folder that the daemon sees too, because it has its own /run.
    runOnce: (image, ...command) =>
      ctr('run', '--rm', '--fifo-dir', join(home, 'fifo'), image, randomUUID(), ...command),
  }
}
