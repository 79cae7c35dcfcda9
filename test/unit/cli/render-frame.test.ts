import { expect, test } from 'vitest'
import { renderFrame } from '../../../src/cli/terminal.ts'

test('a frame is written over the earlier one and clears the rest of it', () => {
  expect(renderFrame('a\n\nb', 10, 5)).toBe('\x1b[Ha\x1b[K\r\n\x1b[K\r\nb\x1b[K\r\n\x1b[J')
})

test('a frame that is higher than the terminal shows its top and does not scroll', () => {
  expect(renderFrame('a\nb\nc', 10, 2)).toBe('\x1b[Ha\x1b[K\r\nb\x1b[K')
  expect(renderFrame('a\nb', 10, 2)).toBe('\x1b[Ha\x1b[K\r\nb\x1b[K')
  expect(renderFrame(`a\n${'x'.repeat(11)}\nc`, 10, 2)).toBe('\x1b[Ha\x1b[K')
})

test('a full row keeps its last character, and colours take no room', () => {
  expect(renderFrame('\x1b[1mabcd\x1b[22m\ne', 4, 5)).toBe('\x1b[H\x1b[1mabcd\x1b[22m\r\ne\x1b[K\r\n\x1b[J')
})
