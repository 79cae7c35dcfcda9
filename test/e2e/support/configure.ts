import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Scene } from './scene.ts'

const program = fileURLToPath(new URL('../../../bin/run.js', import.meta.url))

export interface ConfigureResult {
  exit: number | null
  stdout: string
  stderr: string
}

export interface ConfigureOptions {
  /** Enters the client's file system and network. */
  enter: (command: readonly string[]) => string[]
  env: NodeJS.ProcessEnv
}

/** Runs the compiled `mirror configure` for a client of the scene's mirror. */
export function configure(
  scene: Pick<Scene, 'folder'>,
  options: ConfigureOptions,
  ...args: string[]
): Promise<ConfigureResult> {
  return runMirror(scene, options, 'configure', ...args)
}

/** Runs the compiled `mirror` on the machine of a client of the scene's mirror. */
export async function runMirror(
  { folder }: Pick<Scene, 'folder'>,
  { enter, env }: ConfigureOptions,
  ...args: string[]
): Promise<ConfigureResult> {
  const [file, ...rest] = enter([process.execPath, program, ...args])
  const home = join(folder, 'mirror')
  const child = spawn(file!, rest, {
    env: { HOME: home, MIRROR_HOME: home, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 120_000,
  })
  const result: ConfigureResult = { exit: null, stdout: '', stderr: '' }
  child.stdout.setEncoding('utf8').on('data', (text: string) => (result.stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (result.stderr += text))
  const [exit] = (await once(child, 'close')) as [number | null]
  return { ...result, exit }
}
