import { describe, expect, test } from 'vitest'
import { resolveClientAddress, describeLoopbackProblem, type MirrorEndpoints } from '../../../src/clients/address.ts'
import type { ClientLocation } from '../../../src/clients/types.ts'

const endpoints: MirrorEndpoints = {
  runtime: 'process',
  cache: ['http://10.1.2.3:5055', 'http://127.0.0.1:5055'],
  registry: ['http://127.0.0.1:5001'],
  networks: { kind: 'http://172.18.0.1:5055' },
}
const kindNodes: ClientLocation = { in: 'network', what: 'kind nodes', network: 'kind' }
const machine: ClientLocation = { in: 'vm', what: 'Docker Desktop', hostName: 'host.docker.internal' }

describe('the address of the mirror', () => {
  test('is the loopback address for a client on the host', () => {
    expect(resolveClientAddress({ in: 'host' }, endpoints)).toEqual({
      cache: 'http://127.0.0.1:5055',
      registry: 'http://127.0.0.1:5001',
      why: 'this machine reaches the mirror at http://127.0.0.1:5055',
    })
  })

  test('on another machine is known only for the networks of its engine', () => {
    const networks = { kind: 'http://mirror.svc:5055' }
    const remote = { ...endpoints, runtime: 'container' as const, networks, engine: 'ssh://me@there' }
    expect(resolveClientAddress(kindNodes, remote)).toMatchObject({
      cache: 'http://mirror.svc:5055',
      registry: 'http://mirror.svc:5001',
    })
    const refusal = { name: 'MirrorError', exit: 4, message: expect.stringContaining('on ssh://me@there') }
    expect(() => resolveClientAddress({ in: 'host' }, remote)).toThrow(expect.objectContaining(refusal))
    expect(() => resolveClientAddress(machine, remote)).toThrow(expect.objectContaining(refusal))
    const inVm = { ...kindNodes, network: 'other', hostName: 'host.docker.internal' } as const
    expect(() => resolveClientAddress(inVm, remote)).toThrow('on the Docker network other')
  })

  test('is the loopback address when the mirror listens on all addresses', () => {
    const everywhere = { ...endpoints, cache: ['http://0.0.0.0:5055'], registry: [] }
    expect(resolveClientAddress({ in: 'host' }, everywhere)).toMatchObject({
      cache: 'http://127.0.0.1:5055',
      registry: undefined,
    })
  })

  test("is the host's name for a client in a virtual machine", () => {
    expect(resolveClientAddress(machine, endpoints)).toMatchObject({
      cache: 'http://host.docker.internal:5055',
      registry: 'http://host.docker.internal:5001',
    })
  })

  test('is the gateway of the Docker network when the mirror is a process', () => {
    expect(resolveClientAddress(kindNodes, endpoints)).toEqual({
      cache: 'http://172.18.0.1:5055',
      registry: 'http://172.18.0.1:5001',
      why: 'kind nodes reach this process at http://172.18.0.1:5055, the gateway of network kind',
    })
  })

  test('is the name on the Docker network when the mirror is a container', () => {
    const container = { ...endpoints, runtime: 'container', networks: { kind: 'http://mirror.svc:5055' } } as const
    expect(resolveClientAddress(kindNodes, container)).toMatchObject({
      cache: 'http://mirror.svc:5055',
      registry: 'http://mirror.svc:5001',
      why: 'kind nodes reach the mirror at http://mirror.svc:5055, its name on network kind',
    })
  })

  test('on a network that is not served is an error with the command that fixes it', () => {
    expect(() => resolveClientAddress({ ...kindNodes, network: 'dev' }, endpoints)).toThrow(
      expect.objectContaining({ exit: 4, hints: expect.arrayContaining(['mirror up --network dev']) }),
    )
  })

  test('for a client in its own network namespace is an error with the reason', () => {
    const location = { in: 'isolated', what: 'Rootless Docker', why: 'its loopback is its own', hints: [] } as const
    expect(() => resolveClientAddress(location, endpoints)).toThrow('its loopback is its own')
    const hints = ['mirror configure docker --mirror http://10.0.2.2:PORT']
    const own = { ...endpoints, cache: ['http://127.0.0.1:7055'] }
    expect(() => resolveClientAddress({ ...location, hints }, own)).toThrow(
      expect.objectContaining({
        hints: expect.arrayContaining(['mirror configure docker --mirror http://10.0.2.2:7055']),
      }),
    )
  })
})

describe('the warning about a given loopback address', () => {
  test.each([
    ['http://127.0.0.1:5055', { in: 'host' } as const, false],
    ['http://127.0.0.1:5055', kindNodes, true],
    ['http://localhost:5055', machine, true],
    ['http://mirror:5055', kindNodes, false],
  ])('%s for a client at %o is given: %s', (url, location, doubtful) => {
    expect(describeLoopbackProblem(url, location) !== undefined).toBe(doubtful)
  })
})
