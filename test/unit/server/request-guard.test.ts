import { describe, expect, test } from 'vitest'
import { isLoopbackAddress, normalizeAddress } from '../../../src/lib/network.ts'
import { OciError } from '../../../src/oci/errors.ts'
import { createHostGuard } from '../../../src/server/request-guard.ts'

function statusOf(hosts: string[], localAddress = '127.0.0.1', allowed: string[] = []): number {
  const guard = createHostGuard(allowed, () => {})
  try {
    guard.check({ rawHeaders: ['Accept', '*/*', ...hosts.flatMap((host) => ['Host', host])], localAddress })
    return 200
  } catch (error) {
    if (error instanceof OciError) return error.status
    throw error
  }
}

describe('the Host header', () => {
  test.each([
    'localhost',
    'localhost:5055',
    'LOCALHOST.',
    '127.0.0.1:5055',
    '127.1.2.3',
    '[::1]:5055',
    'host.docker.internal:5055',
    'mirror:5055',
  ])('%s is accepted', (host) => expect(statusOf([host])).toBe(200))

  test.each(['evil.example', 'evil.example:5055', '10.0.0.1', 'localhost.evil.example', '[2001:db8::1]', ''])(
    '%s is refused',
    (host) => expect(statusOf([host])).toBe(421),
  )

  test('with a literal address is accepted when the connection was made to this address', () => {
    expect(statusOf(['172.18.0.1:5055'], '::ffff:172.18.0.1')).toBe(200)
    expect(statusOf(['172.18.0.1:5055'], '172.19.0.1')).toBe(421)
    expect(statusOf(['[fc00::1]:5055'], 'fc00::1')).toBe(200)
    expect(statusOf(['[FC00:0::0001]:5055'], 'fc00::1')).toBe(200)
    expect(statusOf(['[fe80::1%25eth0]:5055'], 'fe80::1%eth0')).toBe(200)
    expect(statusOf(['[::ffff:172.18.0.1]:5055'], '172.18.0.1')).toBe(200)
    expect(statusOf(['[::ffff:172.18.0.2]:5055'], '172.18.0.1')).toBe(421)
  })

  test('is accepted for names from the configuration', () => {
    expect(statusOf(['Mirror.Corp.Example:5055'], '127.0.0.1', ['mirror.corp.example'])).toBe(200)
  })

  test('is accepted for addresses from the configuration, in any spelling', () => {
    const guard = createHostGuard(['[fd00::5]', 'fd00:0::6', '10.0.2.2', 'Mirror.Example.'], () => {})
    for (const host of ['[fd00::5]:5055', '[fd00:0:0::6]', '10.0.2.2:5055', 'mirror.example:5055'])
      expect(() => guard.check({ rawHeaders: ['Host', host], localAddress: '172.17.0.2' }), host).not.toThrow()
    for (const host of ['[fd00::7]:5055', '10.0.2.3', '5055'])
      expect(() => guard.check({ rawHeaders: ['Host', host], localAddress: '172.17.0.2' }), host).toThrow()
  })

  test('is a 400 when it is missing or given twice', () => {
    expect(statusOf([])).toBe(400)
    expect(statusOf(['localhost', 'evil.example'])).toBe(400)
  })

  test('is reported when it is refused', () => {
    const refused: string[] = []
    const guard = createHostGuard([], (host) => refused.push(host))
    expect(() => guard.check({ rawHeaders: ['Host', 'evil.example:80'], localAddress: '127.0.0.1' })).toThrow(
      'allowedHosts',
    )
    expect(refused).toEqual(['evil.example'])
  })
})

test('addresses are compared in one form', () => {
  expect(normalizeAddress('::ffff:10.0.0.1')).toBe('10.0.0.1')
  expect(normalizeAddress('fe80::1%eth0')).toBe('fe80::1')
  expect(isLoopbackAddress('::ffff:127.0.0.1')).toBe(true)
  expect(isLoopbackAddress('127.evil.example')).toBe(false)
})
