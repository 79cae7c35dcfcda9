import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { onTestFinished } from 'vitest'
import { stopChild } from './daemon.ts'
import { run } from './run.ts'
import type { Scene } from './scene.ts'

const program = fileURLToPath(new URL('../../../bin/run.js', import.meta.url))

export interface Ended {
  exit: number | null
  stdout: string
  stderr: string
}

/** Apart is a separate machine in the scene: files in its /etc and /run last for all of its commands, and are deleted with it. */
export interface Apart {
  /** HOME, empty at the start. */
  home: string
  /** Returns the command line that runs the given one on the machine. */
  enter(command: readonly string[]): string[]
  /** Runs a command on the machine; returns its stdout. */
  run(...command: string[]): Promise<string>
  /** Runs `mirror` on the machine, with the state of the scene's mirror and the given search path. */
  mirror(...args: string[]): Promise<Ended>
  /** Returns the path of one of its files outside the machine. */
  outside(path: string): string
}

/** Sets up such a machine until the test ends. `searchPath`: the PATH of `mirror` on it. */
export async function startApart(scene: Scene, searchPath: string): Promise<Apart> {
  const home = join(scene.folder, 'home')
  await mkdir(home)
  const env = { PATH: process.env['PATH'], HOME: home, MIRROR_HOME: join(scene.folder, 'mirror') }
  // Keeps the machine alive by a process, which prints a line once everything is set up.
  const [file, ...args] = scene.namespace.enterApart(['sh', '-c', 'echo ready; exec sleep 1000000'])
  const holder = spawn(file!, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  onTestFinished(() => stopChild(holder))
  await once(holder.stdout, 'data')
  const enter = (command: readonly string[]) =>
    scene.namespace.enter(['nsenter', `--mount=/proc/${holder.pid}/ns/mnt`, ...command])
  return {
    home,
    enter,
    run(...command) {
      const [file, ...args] = enter(command)
      return run(file!, args, { env, timeoutMs: 120_000 })
    },
    mirror: (...args) => runToEnd(enter(['env', `PATH=${searchPath}`, process.execPath, program, ...args]), env),
    outside: (path) => `/proc/${holder.pid}/root${path}`,
  }
}

async function runToEnd(command: readonly string[], env: NodeJS.ProcessEnv): Promise<Ended> {
  const [file, ...args] = command
  const child = spawn(file!, args, { env, stdio: ['ignore', 'pipe', 'pipe'] })
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const [exit] = (await once(child, 'close')) as [number | null]
  return { exit, stdout, stderr }
}
