import { expect, test } from 'vitest'
import { findMovedAddresses } from '../../../src/daemon/up.ts'

const endpoints = {
  cache: ['http://127.0.0.1:5055'],
  registry: ['http://127.0.0.1:5001'],
  admin: ['http://127.0.0.1:5056'],
  networks: { kind: 'http://mirror.svc:5055' },
}

test('equal addresses on the same machine count as not moved', () => {
  expect(findMovedAddresses(endpoints, endpoints)).toEqual([])
  expect(findMovedAddresses(endpoints, endpoints, { before: 'ssh://there', now: 'ssh://there' })).toEqual([])
  expect(findMovedAddresses(undefined, endpoints, { now: 'ssh://there' })).toEqual([])
})

test('equal addresses on another machine count as moved, and nothing answers at the old ones', () => {
  const left = [
    { of: 'cache', from: 'http://127.0.0.1:5055', to: undefined },
    { of: 'registry', from: 'http://127.0.0.1:5001', to: undefined },
    { of: 'kind', from: 'http://mirror.svc:5055', to: undefined },
  ]
  expect(findMovedAddresses(endpoints, endpoints, { now: 'ssh://there' })).toEqual(left)
  expect(findMovedAddresses(endpoints, endpoints, { before: 'ssh://there' })).toEqual(
    left.map((address) => ({ ...address, on: 'ssh://there' })),
  )
})
