import { expect, test } from 'vitest'
import { createBufferRelease } from '../../../src/lib/body-memory.ts'

test('chunks that span their whole buffer are freed, other chunks stay usable', () => {
  const release = createBufferRelease()
  const whole = new Uint8Array(1000).fill(1)
  const shared = new Uint8Array(1000).fill(2)
  const part = shared.subarray(0, 999)
  release([whole, part])
  expect(whole.length).toBe(0)
  expect(part.length).toBe(999)
  expect(shared[0]).toBe(2)
})

test('the same buffer can be released twice, and an empty list is accepted', () => {
  const release = createBufferRelease()
  const whole = new Uint8Array(1000)
  release([whole, whole])
  release([whole])
  release([])
  release([new Uint8Array(0)])
  expect(whole.length).toBe(0)
})
