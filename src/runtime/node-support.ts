/** The days on which Node's releases get their last fix. https://github.com/nodejs/Release#release-schedule */
const lastDays: Readonly<Record<string, string>> = {
  20: '2026-04-30',
  21: '2024-06-01',
  22: '2027-04-30',
  23: '2025-06-01',
  24: '2028-04-30',
  25: '2026-06-01',
  26: '2029-04-30',
}

/** The day after which this Node (`v22.1.0`) gets no more fixes, if that is over; `now` in ms. One that is not known yet is new. */
export function endOfSupport(version: string, now: number): string | undefined {
  const day = lastDays[/^v?(\d+)/.exec(version)?.[1] ?? '']
  return day !== undefined && Date.parse(`${day}T23:59:59Z`) < now ? day : undefined
}
