import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, onTestFinished } from 'vitest'
import { isReadinessMessage } from '../../src/daemon/spawn.ts'
import { findRunning } from '../../src/admin/state.ts'
import type { StatusReport } from '../../src/admin/api.ts'
import { get, type Answer, type GetOptions } from './get.ts'
import { temporaryHome } from './mirror.ts'

export interface MirrorProcessOptions {
  /** Upstreams by registry host: the URL of an anonymous upstream, or settings as in mirror.yaml. */
  readonly upstreams: Readonly<Record<string, string | Readonly<Record<string, unknown>>>>
  /** Settings of `cache`, as in mirror.yaml. */
  readonly cache?: Readonly<Record<string, unknown>>
  /** True to enable the registry for pushed images. */
  readonly registry?: boolean
  /** Docker networks; default: none. */
  readonly networks?: readonly string[]
  /** The home of an earlier mirror; default: a new one, removed after the test. */
  readonly home?: string
  /** Path of the program; default: that of the checkout. */
  readonly program?: string
  /** A program that runs the server, with its arguments. */
  readonly wrapper?: readonly string[]
  readonly env?: Readonly<Record<string, string>>
}

export interface MirrorProcess {
  readonly url: string
  readonly adminUrl: string
  /** Undefined without a registry. */
  readonly registryUrl: string | undefined
  readonly home: string
  /** The server's pid, not that of a wrapper. */
  readonly pid: number
  /** Resolves with the exit code, or the signal that ended the server. */
  readonly ended: Promise<number | NodeJS.Signals | null>
  get(path: string, options?: GetOptions): Promise<Answer>
  status(): Promise<StatusReport>
  /** Returns the server's stderr so far. */
  log(): string
  kill(signal: NodeJS.Signals): void
  /** Reads memory in bytes from /proc/PID/status: `VmRSS` is the current value, `VmHWM` the maximum. */
  memory(field: 'VmRSS' | 'VmHWM'): Promise<number>
}

/** Path of the program of the checkout. */
export const program = fileURLToPath(new URL('../../bin/run.js', import.meta.url))

/** Starts the compiled server as a process of its own, until the test ends. */
export async function startMirrorProcess(options: MirrorProcessOptions): Promise<MirrorProcess> {
  const home = options.home ?? (await temporaryHome())
  await writeFile(join(home, 'mirror.yaml'), configText(options))
  const [file, ...args] = [...(options.wrapper ?? []), process.execPath, options.program ?? program, 'serve']
  const child = spawn(file, args, {
    env: { ...process.env, ...options.env, MIRROR_HOME: home },
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
  })
  let log = ''
  child.stderr!.on('data', (chunk: Buffer) => (log += chunk.toString()))
  const ended = new Promise<number | NodeJS.Signals | null>((resolve) =>
    child.once('exit', (code, signal) => resolve(code ?? signal)),
  )
  let pid = child.pid!
  onTestFinished(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    // Kill the server itself, because a wrapper ends with it.
    process.kill(pid, 'SIGKILL')
    await ended
  })

  const ready = once(child, 'message').then(([message]) => message as unknown)
  const message = await Promise.race([ready, ended.then((end) => `it ended with ${end}: ${log}`)])
  if (!isReadinessMessage(message) || message.type !== 'ready') throw new Error(JSON.stringify(message))
  const stateFile = join(home, 'state', 'mirror.json')
  await expect.poll(async () => (pid = (await findRunning(stateFile))?.pid ?? 0)).toBeGreaterThan(0)
  child.disconnect()

  const [url, adminUrl] = [message.endpoints.cache[0]!, message.endpoints.admin[0]!]
  return {
    url,
    adminUrl,
    registryUrl: message.endpoints.registry[0],
    home,
    pid,
    ended,
    get: (path, init) => get(url, path, init),
    status: async () => JSON.parse((await get(adminUrl, '/api/status')).body.toString()) as StatusReport,
    log: () => log,
    kill: (signal) => void process.kill(pid, signal),
    async memory(field) {
      const text = await readFile(`/proc/${pid}/status`, 'utf8')
      return Number(new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(text)![1]) * 1024
    },
  }
}

/** Renders mirror.yaml as JSON, which is YAML. */
function configText({ upstreams, cache, registry = false, networks = [] }: MirrorProcessOptions): string {
  return JSON.stringify({
    cache: { listen: ['127.0.0.1:0'], minFree: 0, tagFreshness: 0, ...cache },
    registry: { enabled: registry, listen: ['127.0.0.1:0'] },
    admin: { listen: ['127.0.0.1:0'] },
    networks,
    log: { level: 'debug' },
    upstreams: Object.fromEntries(
      Object.entries(upstreams).map(([host, settings]) => [
        host,
        typeof settings === 'string' ? { url: settings, credentials: 'anonymous' } : settings,
      ]),
    ),
  })
}
