import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect } from 'vitest'
import { temporaryHome } from './mirror.ts'

export interface LoopDelay {
  /** ms that the event loop was kept, 99 times of 100 and at most. */
  readonly p99: number
  readonly max: number
}

export interface LoopWatch {
  /** What the server has that is watched. */
  readonly env: Readonly<Record<'NODE_OPTIONS' | 'LOOP_DELAY_FILE', string>>
  /** What happened to its event loop while the task ran. */
  during(task: () => Promise<void>): Promise<LoopDelay>
}

/** Watches the event loop of a server process. On Linux what else the machine does does not count. */
export async function watchLoop(): Promise<LoopWatch> {
  const file = join(await temporaryHome(), 'loop-delay')
  const preload = fileURLToPath(new URL('loop-delay.mjs', import.meta.url))
  /** Returns when the server has heard it. */
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
