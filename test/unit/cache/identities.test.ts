import { expect, test } from 'vitest'
import { Identities } from '../../../src/cache/grants.ts'
import { UpstreamError, type Upstream } from '../../../src/upstream/upstream.ts'

/** Opens an upstream with a credential that the test sets. */
function open() {
  const upstream = { host: 'registry.example', identity: async () => 'ann' }
  const identities = new Identities()
  return { upstream, of: () => identities.get(upstream as unknown as Upstream, 'credentialed') }
}
const fails = async (): Promise<string> => {
  throw new UpstreamError('unavailable', 503, 'no helper')
}
const never = () => new Promise<string>(() => {})

test('the last identity stays while the credential cannot be read', async () => {
  const { upstream, of } = open()
  expect(await of()).toBe('ann')
  upstream.identity = fails
  expect(await of()).toBe('ann')
})

test('no request waits for a credential helper that has failed before', async () => {
  const { upstream, of } = open()
  await of()
  upstream.identity = fails
  await of()
  upstream.identity = never
  expect(await of()).toBe('ann')
})

test('the identity changes as soon as a failing credential helper works again with another credential', async () => {
  const { upstream, of } = open()
  await of()
  upstream.identity = fails
  await of()
  upstream.identity = async () => 'bob'
  expect(await of()).toBe('ann')
  expect(await of()).toBe('bob')
})

test('a failing credential helper never makes a caller without a last identity anonymous', async () => {
  const { upstream, of } = open()
  upstream.identity = async () => 'anonymous'
  expect(await of()).toBe('anonymous')
  upstream.identity = fails
  expect(await of()).toBe('unknown')
  expect(await of()).toBe('unknown')
})
