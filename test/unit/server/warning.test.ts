import { describe, expect, test } from 'vitest'
import { describeStale } from '../../../src/cache/stale.ts'
import { formatTimeOfDay, formatTimeZone } from '../../../src/lib/units.ts'
import { formatWarning } from '../../../src/server/warning.ts'

describe('a Warning header', () => {
  test('is a quoted string of the form that the specification requires', () => {
    expect(formatWarning('docker.io is limiting this address')).toBe('299 - "docker.io is limiting this address"')
  })

  test('escapes quotes and backslashes, and replaces control and other characters', () => {
    expect(formatWarning('a "b" \\ c\r\nX-Evil: 1\u0000\u001b[31m über 🐳 “q” …')).toBe(
      String.raw`299 - "a \"b\" \\ c X-Evil: 1?[31m ?ber ? \"q\" ..."`,
    )
  })

  test.each([0, 1, 2, 3, 4])('has at most 300 characters of text, and no cut escape (%i)', (shift) => {
    const [, text] = /^299 - "(.*)"$/.exec(formatWarning('x'.repeat(shift) + '"\\'.repeat(400))) ?? []
    expect(text!.length).toBeLessThanOrEqual(300)
    expect(text!.replaceAll(/\\["\\]/g, '')).toMatch(/^x*\.\.\.$/)
  })
})

describe('the text about stale content', () => {
  // The time zone of the process decides, whatever it is.
  const now = new Date(2026, 10, 21, 12, 0).getTime()
  const zone = formatTimeZone(now)

  test('names the reason, its end, what was served, and from when it is', () => {
    const reason = { text: 'docker.io is limiting this address', until: new Date(2026, 10, 21, 14, 5).getTime() }
    const asOf = new Date(2026, 10, 21, 9, 12).getTime()
    expect(describeStale(reason, 'tag alpine:3.20', asOf, now)).toBe(
      `docker.io is limiting this address until 14:05 ${zone}; served tag alpine:3.20 as of 09:12 ${zone}`,
    )
  })

  test('has the date when it is not today, and says when the upstream gets requests again', () => {
    const yesterday = new Date(2026, 10, 20, 23, 59).getTime()
    const reason = { text: 'ghcr.io did not answer in time', retryAt: new Date(2026, 10, 22, 0, 0).getTime() }
    expect(describeStale(reason, 'the cached list of tags', yesterday, now)).toBe(
      `ghcr.io did not answer in time (asked again at 2026-11-22 00:00 ${zone}); served the cached list of tags as of 2026-11-20 23:59 ${zone}`,
    )
  })

  test('leaves out a time that is not in the future', () => {
    const past = { text: 'docker.io is limiting this address', until: now - 1000, retryAt: now }
    expect(describeStale(past, 'tag alpine:3.20', undefined, now)).toBe(
      'docker.io is limiting this address; served tag alpine:3.20',
    )
  })

  test.each([
    ['UTC', '12:00', 'UTC'],
    ['Asia/Kolkata', '17:30', 'UTC+05:30'],
    ['America/St_Johns', '08:30', 'UTC-03:30'],
  ])('has the time zone of the process: %s', (name, time, offset) => {
    const before = process.env['TZ']
    process.env['TZ'] = name
    try {
      const noon = Date.UTC(2026, 10, 21, 12)
      expect([formatTimeOfDay(noon, noon), formatTimeZone(noon)]).toEqual([time, offset])
    } finally {
      if (before === undefined) delete process.env['TZ']
      else process.env['TZ'] = before
    }
  })
})
