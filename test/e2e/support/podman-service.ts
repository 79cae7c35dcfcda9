import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import { openEngineAt } from '../../../src/docker/dockerode-engine.ts'
import type { DockerEngine } from '../../../src/docker/engine.ts'
import { startDaemon } from './daemon.ts'
import { run } from './run.ts'
import type { Stage } from './scene.ts'

export interface PodmanService {
  engine: DockerEngine
  socket: string
}

// Runs on machines without systemd, with mixed cgroups, and with lower limits than podman asks for.
const containersConf = `[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
`

/** Starts podman's Docker API at a socket on the stage, with a root file system as `busybox:local`. */
export async function startPodmanService(
  { folder, namespace }: Pick<Stage, 'folder' | 'namespace'>,
  rootTar: Uint8Array,
): Promise<PodmanService> {
  const home = join(folder, 'podman')
  await mkdir(home)
  const conf = join(home, 'containers.conf')
  await writeFile(conf, containersConf)
  const archive = join(home, 'busybox.tar')
  await writeFile(archive, rootTar)
  const socket = join(folder, 'podman.sock')
  const env = { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', HOME: home, CONTAINERS_CONF: conf }
  const stores = ['--root', join(home, 'root'), '--runroot', join(home, 'run'), '--tmpdir', join(home, 'tmp')]
  const podman = ['podman', ...stores, '--storage-driver', 'overlay']
  const [file, ...args] = namespace.enterApart([...podman, 'import', archive, 'busybox:local'])
  await run(file!, args, { env })
  const engine = () => openEngineAt({ kind: 'socket', path: socket })
  const service = await startDaemon({
    command: namespace.enterApart([...podman, 'system', 'service', '--time', '0', `unix://${socket}`]),
    env,
    logFile: join(home, 'log'),
    ready: engine,
  })
  onTestFinished(service.stop)
  return { engine: await engine(), socket }
}
