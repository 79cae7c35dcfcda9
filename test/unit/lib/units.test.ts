import { describe, expect, test } from 'vitest'
import { formatBytes, parseSize } from '../../../src/lib/units.ts'

describe('a size that a user reads', () => {
  test.each([
    [0, '0 B'],
    [1, '1 B'],
    [1023, '1023 B'],
    [1024, '1 KiB'],
    [1536, '1.5 KiB'],
    [10_000, '9.8 KiB'],
    [102_400, '100 KiB'],
    [1024 ** 2 - 1, '1 MiB'],
    [12.6 * 1024 ** 2, '12.6 MiB'],
    [1024 ** 3 * 1.4, '1.4 GiB'],
    [1024 ** 3 * 20, '20 GiB'],
    [1024 ** 4 * 5000, '5000 TiB'],
  ])('of %d bytes is printed as %s', (bytes, text) => {
    expect(formatBytes(bytes)).toBe(text)
  })

  test.each(['20GiB', '512MiB', '1.5GiB', '4KiB', '7B'])('has the form that mirror.yaml accepts: %s', (setting) => {
    expect(formatBytes(parseSize(setting)!).replace(' ', '')).toBe(setting)
  })
})
