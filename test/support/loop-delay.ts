import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect } from 'vitest'
import { temporaryHome } from './mirror.ts'

export interface LoopDelay {
  /** Time that the event loop was blocked, ms: the 99th percentile and the maximum. */
  readonly p99: number
  readonly max: number
}

export interface LoopWatch {
  /** Variables for the server to watch. */
  readonly env: Readonly<Record<'NODE_OPTIONS' | 'LOOP_DELAY_FILE', string>>
  /** Runs the task and returns the delay of the event loop meanwhile. */
  during(task: () => Promise<void>): Promise<LoopDelay>
}

/** Watches the event loop of a server process. On Linux, other load of the machine does not count. */
export async function watchLoop(): Promise<LoopWatch> {
  const file = join(await temporaryHome(), 'loop-delay')
  const preload = fileURLToPath(new URL('loop-delay.mjs', import.meta.url))
  /** Signals the server, and resolves when it has read the signal. */
  const tell = async (what: 'begin' | 'end') => {
    writeFileSync(`${file}.${what}`, '')
    await expect.poll(() => existsSync(`${file}.${what}`), { interval: 20 }).toBe(false)
  }
  return {
    env: { NODE_OPTIONS: `--import=${preload}`, LOOP_DELAY_FILE: file },
    async during(task) {
      await tell('begin')
      await task()
      await tell('end')
      return JSON.parse(readFileSync(file, 'utf8')) as LoopDelay
    },
  }
}
