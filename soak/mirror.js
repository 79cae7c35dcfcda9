// Runs the mirror as a process that can be killed and started again on the same folder, and runs its commands.
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, openSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { request } from './request.js'

const program = fileURLToPath(new URL('../bin/run.js', import.meta.url))

export class Mirror {
  cacheUrl = ''
  registryUrl = ''
  adminUrl = ''
  /** Counts ends of the process; a request may fail when this changes meanwhile. */
  epoch = 0
  isUp = false
  /** Lists ends that the soak did not cause. @type {string[]} */
  unexpectedEnds = []
  slowestStartMs = 0
  peakBytes = 0
  #child
  #isWanted = false
  /** Running commands. @type {Set<Promise<unknown>>} */
  #commands = new Set()

  #options

  /**
   * @param {string} home
   * @param {Record<string, string>} upstreams base URLs by registry
   * @param {{ wrapper?: string[], cache?: object, registry?: object }} [options] `wrapper`: a program that runs the server,
   *   and its arguments; `cache` and `registry`: settings of mirror.yaml.
   */
  constructor(home, upstreams, options = {}) {
    this.home = home
    this.upstreams = upstreams
    this.#options = options
    this.#configure([0, 0, 0])
  }

  #configure([cache, registry, admin]) {
    const { upstreams } = this
    const config = {
      cache: { minFree: 0, ...this.#options.cache, listen: [`127.0.0.1:${cache}`] },
      registry: { enabled: true, ...this.#options.registry, listen: [`127.0.0.1:${registry}`] },
      admin: { listen: [`127.0.0.1:${admin}`] },
      networks: [],
      upstreams: Object.fromEntries(
        Object.entries(upstreams).map(([host, url]) => [host, { url, credentials: 'anonymous' }]),
      ),
    }
    writeFileSync(join(this.home, 'mirror.yaml'), JSON.stringify(config, null, 2))
  }

  async start() {
    // Wait for commands: one that found no mirror works on the store itself and holds its lock.
    await Promise.all(this.#commands)
    const begun = performance.now()
    // Log to the same file as `mirror up`, so that its size is limited.
    mkdirSync(join(this.home, 'state'), { recursive: true, mode: 0o700 })
    const log = openSync(join(this.home, 'state', 'mirror.log'), 'a', 0o600)
    const [file, ...args] = [
      ...(this.#options.wrapper ?? []),
      process.execPath,
      '--max-semi-space-size=8',
      program,
      'serve',
    ]
    const child = spawn(file, args, {
      env: { ...process.env, MIRROR_HOME: this.home },
      stdio: ['ignore', log, log, 'ipc'],
    })
    this.#child = child
    this.#isWanted = true
    child.once('exit', (code, signal) => {
      this.isUp = false
      this.epoch += 1
      if (this.#isWanted) this.unexpectedEnds.push(`pid ${child.pid} ended with ${code ?? signal}`)
    })
    const ended = once(child, 'exit').then(([code, signal]) => ({ type: 'ended', code, signal }))
    const message = await Promise.race([once(child, 'message').then(([first]) => first), ended])
    if (message.type !== 'ready') throw new Error(`the mirror did not start: ${JSON.stringify(message)}`)
    child.disconnect()
    const { endpoints } = message
    const urls = [endpoints.cache[0], endpoints.registry[0], endpoints.admin[0]]
    ;[this.cacheUrl, this.registryUrl, this.adminUrl] = urls
    // Keep these ports for the next starts, as users do.
    this.#configure(urls.map((url) => new URL(url).port))
    this.slowestStartMs = Math.max(this.slowestStartMs, performance.now() - begun)
    this.isUp = true
  }

  async kill() {
    await this.#end('SIGKILL')
  }

  /** Ends the process as a service manager does. @returns {Promise<number | string>} the exit code, or the signal */
  stop() {
    return this.#end('SIGTERM')
  }

  async #end(signal) {
    const child = this.#child
    this.observe()
    this.#isWanted = false
    this.isUp = false
    if (child.exitCode !== null || child.signalCode !== null) return child.exitCode ?? child.signalCode
    const ended = once(child, 'exit')
    child.kill(signal)
    const [code, by] = await ended
    return code ?? by
  }

  /**
   * Reads the memory and the descriptors of the process, and records its peak memory.
   * @returns {{ bytes: number, descriptors: number } | undefined}
   */
  observe() {
    try {
      const { pid } = this.#child
      const status = readFileSync(`/proc/${pid}/status`, 'utf8')
      const kilobytes = (field) => Number(new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(status)?.[1] ?? 0)
      this.peakBytes = Math.max(this.peakBytes, kilobytes('VmHWM') * 1024)
      return { bytes: kilobytes('VmRSS') * 1024, descriptors: readdirSync(`/proc/${pid}/fd`).length }
    } catch {
      // Return nothing when the process has ended or the system is not Linux.
      return undefined
    }
  }

  async healthMs() {
    const begun = performance.now()
    const { status } = await request(`${this.adminUrl}/healthz`, { timeoutMs: 20_000 })
    return { status, milliseconds: performance.now() - begun }
  }

  /** @param {string[]} args @returns {Promise<{ code: number, text: string }>} */
  command(...args) {
    const running = this.#runCommand(args)
    this.#commands.add(running)
    void running.then(() => this.#commands.delete(running))
    return running
  }

  #runCommand(args) {
    return new Promise((resolve) => {
      const env = { ...process.env, MIRROR_HOME: this.home }
      execFile(process.execPath, [program, ...args], { env, timeout: 120_000 }, (error, stdout, stderr) => {
        const code = error === null ? 0 : typeof error.code === 'number' ? error.code : 1
        resolve({ code, text: `${stdout}${stderr}` })
      })
    })
  }
}
