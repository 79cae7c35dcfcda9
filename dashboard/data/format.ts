const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']

/** Formats an amount of bytes with the units of mirror.yaml: `12.6 MiB`. */
export function formatBytes(bytes: number): string {
  let [value, unit] = [Math.max(0, bytes), 0]
  while (value >= 1000 && unit < units.length - 1) [value, unit] = [value / 1024, unit + 1]
  return `${value.toFixed(unit > 0 && value < 99.95 ? 1 : 0).replace(/\.0$/, '')} ${units[unit]}`
}

export function formatCount(count: number): string {
  return count.toLocaleString('en')
}

/** Formats a share of a whole as `80 %`; a dash when the whole is nothing. */
export function formatShare(part: number, whole: number): string {
  return whole > 0 ? `${Math.floor((part / whole) * 100)} %` : '–'
}

/** Formats a time span as its two largest units: `3 h 12 min`. */
export function formatSpan(seconds: number): string {
  const s = Math.max(0, Math.round(seconds))
  if (s < 60) return `${s} s`
  if (s < 3600) return `${Math.floor(s / 60)} min`
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`
}

/** Formats how long ago a time was; a dash for no time. */
export function formatAgo(time: string | undefined, now: number): string {
  if (time === undefined) return '–'
  const seconds = (now - Date.parse(time)) / 1000
  return seconds < 5 ? 'now' : `${formatSpan(seconds).split(' ').slice(0, 2).join(' ')} ago`
}

export function formatMs(ms: number): string {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`
}

const pad = (value: number) => String(value).padStart(2, '0')

/** Formats the time of day as `14:05`, or `14:05:09` with seconds. */
export function formatTime(time: number, withSeconds = false): string {
  const at = new Date(time)
  return `${pad(at.getHours())}:${pad(at.getMinutes())}${withSeconds ? `:${pad(at.getSeconds())}` : ''}`
}

/** Formats a day as `24 Nov`. */
export function formatDay(time: number): string {
  return new Date(time).toLocaleDateString('en-GB', { day: 'numeric', month: 'short' })
}

/** Replaces characters in text of clients and upstreams that are invisible, or that reorder the text around them. */
export function cleanText(text: string): string {
  return text.replaceAll(/[\p{C}\p{Zl}\p{Zp}\u115f\u1160\u3164\uffa0]/gu, '�')
}
