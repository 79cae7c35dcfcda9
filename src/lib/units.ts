const sizeUnits: Record<string, number> = {
  B: 1,
  K: 1024,
  KB: 1000,
  KiB: 1024,
  M: 1024 ** 2,
  MB: 1000 ** 2,
  MiB: 1024 ** 2,
  G: 1024 ** 3,
  GB: 1000 ** 3,
  GiB: 1024 ** 3,
  T: 1024 ** 4,
  TB: 1000 ** 4,
  TiB: 1024 ** 4,
}
const durationUnits: Record<string, number> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 }

/** Parses `20GiB`, `512MB`, `1.5G` or a plain number into bytes; undefined for any other text. */
export function parseSize(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*([A-Za-z]+)?$/.exec(text.trim())
  if (!match) return undefined
  const unit = match[2] === undefined ? 1 : sizeUnits[match[2]]
  return unit === undefined ? undefined : Math.round(Number(match[1]) * unit)
}

/** Parses `10s`, `1h30m`, `250ms`, `7d` or `0` into milliseconds; undefined for any other text, and for a number without a unit. */
export function parseDuration(text: string): number | undefined {
  const trimmed = text.trim()
  if (trimmed === '0') return 0
  if (!/^(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+$/.test(trimmed)) return undefined
  let total = 0
  for (const [, amount, unit] of trimmed.matchAll(/(\d+(?:\.\d+)?)(ms|s|m|h|d)/g))
    total += Number(amount) * durationUnits[unit!]!
  return Math.round(total)
}

/** Formats bytes for users in the units of mirror.yaml: `512 B`, `1.4 GiB`, `20 GiB`. All sizes that users read use this function. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let value = bytes
  let unit = 0
  // Compare the rounded value, because 1023.95 KiB would be printed as 1024 KiB.
  while (unit < units.length - 1 && Math.round(value) >= 1024) {
    value /= 1024
    unit += 1
  }
  return `${unit === 0 || value >= 99.95 ? Math.round(value) : value.toFixed(1).replace(/\.0$/, '')} ${units[unit]}`
}

/** Formats milliseconds for users: `3 h 12 min`, `45 s`, `320 ms`. */
export function formatDuration(ms: number): string {
  if (ms < 1000) return `${Math.round(ms)} ms`
  const seconds = ms / 1000
  if (seconds < 10) return `${seconds.toFixed(1)} s`
  if (seconds < 60) return `${Math.round(seconds)} s`
  const minutes = Math.floor(seconds / 60)
  if (minutes < 60) return `${minutes} min`
  const hours = Math.floor(minutes / 60)
  if (hours < 48) return minutes % 60 === 0 ? `${hours} h` : `${hours} h ${minutes % 60} min`
  return `${Math.floor(hours / 24)} d`
}

const toTwoDigits = (value: number) => String(value).padStart(2, '0')

/** Formats the time of day in the time zone of this process, with the date unless it is that of `now`: `14:05`. Both are wall clock ms. */
export function formatTimeOfDay(at: number, now: number): string {
  const date = new Date(at)
  const time = `${toTwoDigits(date.getHours())}:${toTwoDigits(date.getMinutes())}`
  if (date.toDateString() === new Date(now).toDateString()) return time
  return `${date.getFullYear()}-${toTwoDigits(date.getMonth() + 1)}-${toTwoDigits(date.getDate())} ${time}`
}

/** Names the time zone of this process at a time: `UTC`, `UTC+02:00`. */
export function formatTimeZone(at: number): string {
  const minutes = -new Date(at).getTimezoneOffset()
  if (minutes === 0) return 'UTC'
  const amount = Math.abs(minutes)
  return `UTC${minutes < 0 ? '-' : '+'}${toTwoDigits(Math.floor(amount / 60))}:${toTwoDigits(amount % 60)}`
}
