import { expect, test } from 'vitest'
import { Identities } from '../../../src/cache/grants.ts'
import { UpstreamError, type Upstream } from '../../../src/upstream/upstream.ts'

/** Opens an upstream with a credential that the test sets. */
function open() {
  const upstream = { host: 'registry.example', identity: async () => 'ann' }
  const identities = new Identities()
  const typed = upstream as unknown as Upstream
  return {
    upstream,
    of: () => identities.get(typed, 'credentialed'),
    last: () => identities.findLast(typed, 'credentialed'),
  }
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

test('the last identity is found without starting a credential helper', async () => {
  const { upstream, of, last } = open()
  expect(last()).toBeUndefined()
  await of()
  upstream.identity = () => expect.fail('the helper was started')
  expect(last()).toBe('ann')
})

test('the last identity is unknown after a failure, and never anonymous', async () => {
  const { upstream, of, last } = open()
  upstream.identity = async () => 'anonymous'
  await of()
  expect(last()).toBe('anonymous')
  upstream.identity = fails
  await of()
  expect(last()).toBe('unknown')
})
