import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import { startDaemon } from './daemon.ts'
import { type RunOptions, run } from './run.ts'
import type { Scene } from './scene.ts'
import { searchPath } from './search-path.ts'

export interface Dockerd {
  /** The process id of dockerd itself. */
  readonly pid: number
  /** Restarts dockerd. Keeps its daemon.json and /etc/docker, but not the rest of its /etc. */
  restart(): Promise<void>
  /** The path of its daemon.json. */
  configFile: string
  /** Returns the command line that runs the given one with dockerd's network and files. */
  enter(command: readonly string[]): string[]
  /** Runs the docker CLI with this engine. */
  docker(...args: string[]): Promise<string>
  /** Runs the docker CLI with bytes as its stdin. */
  feed(input: Uint8Array, ...args: string[]): Promise<string>
}

/** Returns the socket of the dockerd in the scene with this folder. */
export function dockerSocket(folder: string): string {
  return join(folder, 'docker.sock')
}

/** Starts a dockerd in the scene with its own files, from the programs below `root` (empty: the system's). */
export async function startDockerd(
  scene: Pick<Scene, 'folder' | 'namespace'>,
  root: string,
  settings: object,
  flags: readonly string[] = [],
): Promise<Dockerd> {
  const home = join(scene.folder, 'dockerd')
  await mkdir(home)
  const socket = dockerSocket(scene.folder)
  const configFile = join(home, 'daemon.json')
  const hosts = [`unix://${socket}`]
  const places = { 'data-root': join(home, 'data'), 'exec-root': join(home, 'exec'), pidfile: join(home, 'pid') }
  await writeFile(configFile, JSON.stringify({ hosts, ...places, ...settings }))

  const env = { PATH: searchPath(root), HOME: home, DOCKER_HOST: `unix://${socket}` }
  const cli = (args: string[], options: RunOptions) => run(join(root, '/usr/bin/docker'), args, { ...options, env })
  const kept = join(home, 'etc-docker')
  const keeping = `[ ! -d ${kept} ] || cp -rT ${kept} /etc/docker; exec "$@"`
  const dockerd = [join(root, '/usr/sbin/dockerd'), '--config-file', configFile, ...flags]
  const options = {
    command: scene.namespace.enterApart(['sh', '-c', keeping, 'sh', ...dockerd]),
    env,
    logFile: join(home, 'log'),
    ready: () => cli(['version'], {}),
  }
  let daemon = await startDaemon(options)
  onTestFinished(() => daemon.stop())
  return {
    get pid() {
      return daemon.pid
    },
    async restart() {
      await run('cp', ['-rT', `/proc/${daemon.pid}/root/etc/docker`, kept])
      await daemon.stop()
      daemon = await startDaemon(options)
    },
    configFile,
    enter: (command) => ['nsenter', `--target=${daemon.pid}`, '--mount', '--net', ...command],
    docker: (...args) => cli(args, {}),
    feed: (input, ...args) => cli(args, { input }),
  }
}
