import { errnoOf } from '../lib/errors.ts'
import { readSmallFile, writeFileAtomic } from '../lib/fs.ts'
import type { Clock } from '../lib/time.ts'

/** Time that counts only while the mirror runs, so that a holiday or a jump of the wall clock makes nothing old. */
export interface RunningClock {
  /** Milliseconds, across restarts. */
  now(): number
  /** Writes it down for the next start. */
  save(): Promise<void>
}

/** Goes on from what was saved, and never from before `floor`: the latest time that something is known to carry. */
export async function openRunningClock(path: string, floor: number, clock: Clock): Promise<RunningClock> {
  const begin = Math.max(await readSaved(path), floor)
  const started = clock.monotonic()
  const now = () => begin + Math.max(0, clock.monotonic() - started)
  return {
    now,
    save: () => writeFileAtomic(path, `${JSON.stringify({ runningMs: Math.round(now()) })}\n`),
  }
}

/** 0 when there is none or it is damaged. */
async function readSaved(path: string): Promise<number> {
  try {
    const { runningMs } = Object(JSON.parse(await readSmallFile(path))) as { runningMs?: unknown }
    return Number.isSafeInteger(runningMs) && (runningMs as number) >= 0 ? (runningMs as number) : 0
  } catch (error) {
    if (error instanceof SyntaxError || errnoOf(error) !== undefined) return 0
    throw error
  }
}
