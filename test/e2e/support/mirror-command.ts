import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { UpReport } from '../../../src/daemon/up.ts'
import type { StatusReport } from '../../../src/admin/api.ts'
import { dockerSocket } from './dockerd.ts'
import { run } from './run.ts'
import type { Stage } from './scene.ts'

const program = fileURLToPath(new URL('../../../bin/run.js', import.meta.url))

/** MirrorCommand runs the program as a user of the stage and its Docker engine. */
export interface MirrorCommand {
  home: string
  /** Runs the program; returns its stdout, and throws all of its output for an exit code other than 0. */
  mirror(...args: string[]): Promise<string>
  /** Starts the program in its own process group, so that a test can send signals; `ended` resolves with its stderr. */
  start(...args: string[]): { child: ChildProcess; ended: Promise<{ exit: number | NodeJS.Signals; stderr: string }> }
  up(...args: string[]): Promise<UpReport>
  status(): Promise<StatusReport>
}

/** Creates a home with a mirror.yaml. `config`: its content, written as JSON, which is valid YAML. */
export async function mirrorCommand(
  { folder, namespace }: Pick<Stage, 'folder' | 'namespace'>,
  config: object,
  env: NodeJS.ProcessEnv = {},
): Promise<MirrorCommand> {
  const home = join(folder, 'home')
  await mkdir(home)
  await writeFile(join(home, 'mirror.yaml'), JSON.stringify(config))
  const own = {
    PATH: process.env['PATH'],
    HOME: home,
    MIRROR_HOME: home,
    DOCKER_HOST: `unix://${dockerSocket(folder)}`,
    ...env,
  }
  const mirror = (...args: string[]) => {
    const [file, ...rest] = namespace.enter([process.execPath, program, ...args])
    return run(file!, rest, { env: own, timeoutMs: 180_000 })
  }
  return {
    home,
    mirror,
    start(...args) {
      const [file, ...rest] = namespace.enter([process.execPath, program, ...args])
      const child = spawn(file!, rest, { env: own, stdio: ['ignore', 'ignore', 'pipe'], detached: true })
      let stderr = ''
      child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
      const ended = once(child, 'close').then(([code, signal]) => ({
        exit: (code ?? signal) as number | NodeJS.Signals,
        stderr,
      }))
      return { child, ended }
    },
    up: async (...args) => JSON.parse(await mirror('up', '--json', ...args)) as UpReport,
    status: async () => JSON.parse(await mirror('status', '--json')) as StatusReport,
  }
}
