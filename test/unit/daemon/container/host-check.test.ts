import { describe, expect, test } from 'vitest'
import { parseDefaultGateways, createHostCheck, isFromHost } from '../../../../src/daemon/container/handoff.ts'
import { isOutOfDescriptors } from '../../../../src/server/respond.ts'

describe('a connection to a container', () => {
  const gateways = ['172.18.0.1']
  const localAddress = '::ffff:172.18.0.5'

  test.each([
    ['of the gateway by which the engine forwards a published port', '::ffff:172.18.0.1', true],
    ['of the same, to an IPv4 socket', '172.18.0.1', true],
    ['from inside the container', '127.0.0.1', true],
    ['from inside the container, by IPv6', '::1', true],
    ['from the container to its own address', '::ffff:172.18.0.5', true],
    ['of another container', '::ffff:172.18.0.2', false],
    ['of another container, by IPv6', 'fc00:f853:ccd:e793::2', false],
    ['of the gateway of another network', '172.19.0.1', false],
    ['of another machine', '192.168.1.20', false],
    ['of nobody, because the client has left', undefined, false],
    ['of an address that only looks like the gateway', '::ffff:172.18.0.11', false],
  ])('is recognised as one from this machine or not: %s', (_, remoteAddress, expected) => {
    expect(isFromHost({ remoteAddress, localAddress }, { gateways, subnets: undefined })).toBe(expected)
  })

  test.each([
    ['what a virtual machine forwards', '192.168.65.1', true],
    ['what a rootless engine forwards', '::ffff:10.0.2.2', true],
    ['the gateway', '172.18.0.1', true],
    ['another container', '172.18.0.2', false],
    ['another container on the second network', '::ffff:172.20.255.254', false],
    ['another container, by IPv6', 'fc00:f853:ccd:e793::2', false],
  ])(
    'is recognised as one from this machine or not, in an engine in a virtual machine: %s',
    (_, remoteAddress, expected) => {
      const subnets = ['127.0.0.1/8', '172.18.0.5/16', '172.20.0.2/16', 'fc00:f853:ccd:e793::5/64']
      expect(isFromHost({ remoteAddress, localAddress }, { gateways, subnets })).toBe(expected)
    },
  )
})

test('only the gateways of default routes are parsed', () => {
  const routes = `Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth1	00000000	010012AC	0003	0	0	0	00000000	0	0	0
eth0	00000000	010011AC	0003	0	0	100	00000000	0	0	0
eth0	000011AC	00000000	0001	0	0	0	0000FFFF	0	0	0
eth2	0000140A	0100000A	0003	0	0	0	0000FFFF	0	0	0
eth3	00000000	0200000A	0003	0	0	0	0000FFFF	0	0	0
`
  expect(parseDefaultGateways(routes)).toEqual(['172.18.0.1', '172.17.0.1'])
  expect(parseDefaultGateways('')).toEqual([])
})

test('a mirror in a container of mirror up recognises its host by the routes of the kernel', () => {
  const check = createHostCheck({ MIRROR_INSTANCE: 'one' })!
  expect(check({ remoteAddress: '127.0.0.1', localAddress: '127.0.0.1' })).toBe(true)
  expect(check({ remoteAddress: '203.0.113.7', localAddress: '172.18.0.5' })).toBe(false)
  const enclosed = createHostCheck({ MIRROR_INSTANCE: 'one', MIRROR_ENGINE_ENCLOSED: '1' })!
  expect(enclosed({ remoteAddress: '203.0.113.7', localAddress: '172.18.0.5' })).toBe(true)
})

describe('a container whose routes cannot be read', () => {
  const failing = (code: string) =>
    createHostCheck(
      { MIRROR_INSTANCE: 'one' },
      {
        readRoutes: () => {
          throw Object.assign(new Error(code), { code, syscall: 'open' })
        },
      },
    )!
  const connection = { remoteAddress: '172.18.0.1', localAddress: '172.18.0.5' }

  test.each(['EMFILE', 'ENFILE'])('throws %s instead of refusing its host', (code) => {
    expect(() => failing(code)(connection)).toThrow(code)
  })

  test.each(['ENOENT', 'EACCES'])('recognises no host when they fail with %s', (code) => {
    expect(failing(code)(connection)).toBe(false)
  })
})

describe('a container in an engine in a virtual machine, whose interfaces cannot be listed', () => {
  /** Throws the error that Node's `networkInterfaces` throws. */
  const failing = (code: string) =>
    createHostCheck(
      { MIRROR_INSTANCE: 'one', MIRROR_ENGINE_ENCLOSED: '1' },
      {
        readRoutes: () => '',
        interfaces: () => {
          const syscall = 'uv_interface_addresses'
          const message = `A system error occurred: ${syscall} returned ${code}`
          throw Object.assign(new Error(message), { code: 'ERR_SYSTEM_ERROR', syscall, info: { code, syscall } })
        },
      },
    )!
  const connection = { remoteAddress: '192.168.65.1', localAddress: '172.18.0.5' }

  test.each(['EMFILE', 'ENFILE'])('throws %s, so that the client retries', (code) => {
    const error = thrownBy(() => failing(code)(connection))
    expect(isOutOfDescriptors(error)).toBe(true)
  })

  test.each(['EACCES', 'EAFNOSUPPORT'])('recognises no host outside of its networks when they fail with %s', (code) => {
    expect(failing(code)(connection)).toBe(false)
    expect(failing(code)({ ...connection, remoteAddress: '127.0.0.1' })).toBe(true)
  })
})

function thrownBy(call: () => unknown): unknown {
  try {
    return call()
  } catch (error) {
    return error
  }
}
