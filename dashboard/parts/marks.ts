const minute = 60_000
/** Lists the distances of marks on the time axis, ms. */
const distances = [5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 7200, 14_400].map((minutes) => minutes * minute)

/** Returns round values from zero to the maximum or just above it, at most five steps. */
export function getMarks(max: number, base: number): number[] {
  if (max <= 0) return [0]
  const power = base ** Math.floor(Math.log(max / 4) / Math.log(base))
  const step = [1, 2, 5, 10, 20, 50, 100, 200, 256, 512, 1024]
    .map((factor) => Math.max(1, factor * power))
    .find((step) => step * 4 >= max)!
  return Array.from({ length: Math.ceil(max / step) + 1 }, (_, index) => index * step)
}

/** Returns the times of the marks, at full hours and days of the browser's time zone. */
export function getTimeMarks(from: number, span: number, width: number): number[] {
  const room = Math.max(1, width / 64)
  const distance = distances.find((distance) => span / distance <= room) ?? distances.at(-1)!
  const offset = new Date(from).getTimezoneOffset() * minute
  const first = Math.ceil((from - offset) / distance) * distance + offset
  const count = Math.max(0, Math.floor((from + span * 0.97 - first) / distance) + 1)
  return Array.from({ length: count }, (_, index) => first + index * distance)
}
