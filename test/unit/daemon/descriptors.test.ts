import { expect, test } from 'vitest'
import { checkDescriptorLimit, planDescriptors } from '../../../src/daemon/limits.ts'
import { MirrorError } from '../../../src/lib/errors.ts'

test.each([56, 64, 128, 256, 1024, 4096, 20_000, 1_048_576])(
  'the shares of %i descriptors, with those that the process itself holds, stay below the limit',
  (limit) => {
    const plan = planDescriptors({ limit, inUse: 18, listening: 3 })
    const own = 20 + plan.hashThreads * 5 + 3
    const { clients, admin, refusals, uploads, fills, requests } = plan
    expect(own + clients * 2 + admin + refusals + uploads + fills + requests).toBeLessThan(limit)
    expect(clients).toBeGreaterThanOrEqual(3)
    expect(fills).toBeGreaterThanOrEqual(2)
  },
)

test('a limit of 20,000 open files leaves at least 5,000 connections for clients', () => {
  expect(planDescriptors({ limit: 20_000, inUse: 18 }).clients).toBeGreaterThan(5000)
})

test.each([
  [256, 2048],
  [512, 4096],
])(
  'with %i MiB of memory at most %i connections are left for clients, however many descriptors there are',
  (memory, most) => {
    expect(planDescriptors({ limit: 1_048_576, inUse: 18, memory: memory * 1024 * 1024 }).clients).toBe(most)
  },
)

test('a limit of 40 open files is refused with the needed number and the commands that raise it', () => {
  const refuse = () => checkDescriptorLimit(40)
  expect(refuse).toThrow(MirrorError)
  expect(refuse).toThrow('The limit on open files is 40, and the mirror needs at least 56')
  expect(() => checkDescriptorLimit(64)).not.toThrow()
})
