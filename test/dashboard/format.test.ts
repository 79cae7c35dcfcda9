import { describe, expect, test } from 'vitest'
import { cleanText, formatAgo, formatBytes, formatShare, formatSpan } from '../../dashboard/data/format.ts'
import { getMarks } from '../../dashboard/parts/marks.ts'

describe('the marks of a value axis', () => {
  test.each([
    [0, 10, [0]],
    [1, 10, [0, 1]],
    [7, 10, [0, 2, 4, 6, 8]],
    [187, 10, [0, 50, 100, 150, 200]],
    [4000, 1024, [0, 1024, 2048, 3072, 4096]],
    [2.6 * 1024 ** 3, 1024, [0, 1, 2, 3].map((count) => count * 1024 ** 3)],
    [900 * 1024 ** 2, 1024, [0, 1, 2, 3, 4].map((count) => count * 256 * 1024 ** 2)],
  ])('reach %d with at most five round steps of the base %d', (max, base, marks) => {
    expect(getMarks(max, base)).toEqual(marks)
  })

  test('are finite and few for every size of a chart', () => {
    for (let max = 1; max < 1e15; max *= 1.37)
      for (const base of [10, 1024]) {
        const marks = getMarks(max, base)
        expect(marks.length, `${max}`).toBeLessThanOrEqual(6)
        expect(marks.at(-1), `${max}`).toBeGreaterThanOrEqual(max)
        expect(marks.at(-1)! / max, `${max}`).toBeLessThanOrEqual(4)
      }
  })
})

describe('the texts of the page', () => {
  test('have sizes in the units of mirror.yaml', () => {
    expect([0, 999, 1600, 12.64 * 1024 ** 2, 20 * 1024 ** 3].map(formatBytes)).toEqual([
      '0 B',
      '999 B',
      '1.6 KiB',
      '12.6 MiB',
      '20 GiB',
    ])
  })

  test('have ages and time spans in two units at most', () => {
    const now = Date.parse('2026-01-02T00:00:00Z')
    expect(formatAgo('2026-01-01T20:47:00Z', now)).toBe('3 h ago')
    expect(formatAgo('2026-01-01T23:59:58Z', now)).toBe('now')
    expect(formatAgo(undefined, now)).toBe('–')
    expect([59, 60, 11_520, 273_600].map(formatSpan)).toEqual(['59 s', '1 min', '3 h 12 min', '3 d 4 h'])
    expect([formatShare(1999, 2000), formatShare(0, 0)]).toEqual(['99 %', '–'])
  })

  test('show a sign for each character that hides or reorders text', () => {
    expect(cleanText('a\u0000b\u202ec\u200bd\u001b[31me')).toBe('a�b�c�d�[31me')
    expect(cleanText('a\u00adb\u061cc\u3164d\u{e0041}e')).toBe('a�b�c�d�e')
    expect(cleanText('Zoë 日本語 👩‍💻'.replaceAll('\u200d', ''))).toBe('Zoë 日本語 👩💻')
  })
})
