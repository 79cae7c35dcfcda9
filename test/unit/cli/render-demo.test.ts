import { describe, expect, test } from 'vitest'
import { createColors } from '../../../src/cli/terminal.ts'
import { renderDemoEnd, renderDemoStep } from '../../../src/cli/render/up.ts'

const plain = createColors(false)
const cold = { milliseconds: 1400, bytes: 26_424_115, upstreamRequests: 8, upstreamBytes: 26_424_115 }
const warm = { ...cold, milliseconds: 200, upstreamRequests: 0, upstreamBytes: 0 }
const setUp = {
  upstream: 'http://127.0.0.1:35455',
  mirror: 'http://127.0.0.1:41015',
  image: 'registry.example/demo/app:1',
}

const shown = (columns?: number) =>
  [
    renderDemoStep({ kind: 'set-up', ...setUp }, plain, columns),
    renderDemoStep({ kind: 'pulled', which: 'first', pull: cold as never }, plain, columns),
    renderDemoStep({ kind: 'pulled', which: 'second', pull: warm as never }, plain, columns),
    renderDemoEnd({ first: cold, second: warm } as never, plain, columns),
  ].join('\n')

describe('the demo', () => {
  test.each([60, 80, 100])('fits a terminal of %i columns', (columns) => {
    for (const line of shown(columns).split('\n')) expect(line.length, line).toBeLessThanOrEqual(columns)
    expect(shown(columns).replaceAll(/[\s█]+/g, ' ')).toBe(shown().replaceAll(/[\s█]+/g, ' '))
  })

  test('has a line for each pull at 80 columns, and where there is no limit', () => {
    for (const columns of [80, undefined]) {
      expect(shown(columns)).toMatch(/first pull +█+ +1\.4 s   miss   25\.2 MiB, 8 requests upstream\n/)
      expect(shown(columns)).toMatch(/second pull +█+ +200 ms   hit    25\.2 MiB, nothing asked upstream\n/)
    }
  })
})
