import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { StatusReport } from '../../../src/admin/api.ts'
import { startDaemon } from './daemon.ts'
import { run } from './run.ts'

const program = fileURLToPath(new URL('../../../bin/run.js', import.meta.url))

export interface MirrorOptions {
  /** Its MIRROR_HOME. */
  home: string
  /** The content of mirror.yaml, written as JSON, which is valid YAML. */
  config: object
  env?: NodeJS.ProcessEnv
  /** Returns the command line that runs the given one on the machine of the mirror. */
  enter: (command: readonly string[]) => string[]
}

export interface Mirror {
  pid: number
  logFile: string
  status(): Promise<StatusReport>
  stop(): Promise<void>
}

/** Starts the compiled `mirror serve` in the given home. */
export async function startMirror({ home, config, env, enter }: MirrorOptions): Promise<Mirror> {
  const configFile = join(home, 'mirror.yaml')
  await writeFile(configFile, JSON.stringify(config))
  const own = { PATH: process.env['PATH'], HOME: home, MIRROR_HOME: home, MIRROR_NO_QUOTA_PROBE: '1', ...env }
  const status = async () => {
    const [file, ...args] = enter([process.execPath, program, 'status', '--json'])
    return JSON.parse(await run(file!, args, { env: own })) as StatusReport
  }
  const logFile = join(home, 'e2e.log')
  const daemon = await startDaemon({
    command: enter([process.execPath, program, 'serve', '--config', configFile]),
    env: own,
    logFile,
    ready: status,
  })
  return { ...daemon, logFile, status }
}
