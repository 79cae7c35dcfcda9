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

/** A machine of its own in the scene: what is written to its /etc and /run stays there for the next command, and goes with it. */
export interface Apart {
  /** HOME, empty at first. */
  home: string
  /** The command line that runs the given one in it. */
  enter(command: readonly string[]): string[]
  /** Runs a command in it: its stdout. */
  run(...command: string[]): Promise<string>
  /** Runs `mirror` in it, with the state of the scene's own mirror and the programs that it shall find. */
  mirror(...args: string[]): Promise<Ended>
  /** Where a file of it is found from outside. */
  outside(path: string): string
}

/** Sets up such a machine; `searchPath`: where `mirror` looks for programs in it. It is taken down when the test ends. */
export async function startApart(scene: Scene, searchPath: string): Promise<Apart> {
  const home = join(scene.folder, 'home')
  await mkdir(home)
  const env = { PATH: process.env['PATH'], HOME: home, MIRROR_HOME: join(scene.folder, 'mirror') }
  // It lives as long as this process does, which says so once everything is in place.
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
