import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { open, readFile } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'

export interface DaemonOptions {
  command: readonly string[]
  env: NodeJS.ProcessEnv
  /** The file that gets stdout and stderr. */
  logFile: string
  /** Throws until the daemon is ready. */
  ready: () => Promise<unknown>
}

export interface Daemon {
  pid: number
  /** Ends the daemon by SIGTERM, or by SIGKILL after 20 s. */
  stop(): Promise<void>
}

/** Starts a daemon, and returns when it is ready; throws the end of its log if it is not ready within 30 s. */
export async function startDaemon(options: DaemonOptions): Promise<Daemon> {
  const [file, ...args] = options.command
  const log = await open(options.logFile, 'a')
  const child = spawn(file!, args, { env: options.env, stdio: ['ignore', log.fd, log.fd] })
  const failed = once(child, 'error').then(([error]) => error as Error)
  await log.close()
  const ended = () => child.exitCode !== null || child.signalCode !== null || child.pid === undefined
  let failure: unknown
  for (let waited = 0; waited < 30_000 && !ended(); waited += 100) {
    try {
      await options.ready()
      return { pid: child.pid!, stop: () => stopChild(child) }
    } catch (error) {
      failure = error
      await sleep(100)
    }
  }
  if (child.pid === undefined) throw await failed
  await stopChild(child)
  const said = await readFile(options.logFile, 'utf8')
  throw new Error(`${options.command.join(' ')} is not ready: ${String(failure)}\n${said.slice(-4000)}`)
}

/** Ends a child process by SIGTERM, or by SIGKILL after 20 s. */
export async function stopChild(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const closed = once(child, 'exit')
  child.kill('SIGTERM')
  const patience = setTimeout(() => child.kill('SIGKILL'), 20_000)
  await closed
  clearTimeout(patience)
}
