import { formatDuration } from '../lib/units.ts'

/** `0 s`, `12 s`, `3 min`: how long something has been, to a person, who does not count in milliseconds. */
export function renderAge(ms: number): string {
  return ms < 60_000 ? `${Math.floor(ms / 1000)} s` : formatDuration(ms)
}
