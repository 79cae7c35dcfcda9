import { describe, expect, test } from 'vitest'
import {
  DockerError,
  getKindNetworkName,
  computeKindSubnet,
  createKindNetwork,
  resolveNetworkNames,
} from '../../../src/docker/engine.ts'
import { createFakeEngine } from '../../support/fake-engine.ts'

describe("kind's network", () => {
  test('has the name that kind uses', () => {
    expect(getKindNetworkName({})).toBe('kind')
    const env = { KIND_EXPERIMENTAL_DOCKER_NETWORK: 'other' }
    expect(getKindNetworkName(env)).toBe('other')
    expect(resolveNetworkNames(['kind', 'mine', 'other'], env)).toEqual(['other', 'mine'])
  })

  test('has an IPv6 subnet computed from the name', () => {
    expect(computeKindSubnet('kind', 0)).toBe('fc00:f853:ccd:e793::/64')
    expect(computeKindSubnet('kind', 1)).not.toBe(computeKindSubnet('kind', 0))
  })

  test('is created like kind creates it, with the MTU of the engine', async () => {
    const { networks } = createFakeEngine()
    await createKindNetwork(networks, 'kind')
    expect(await networks.find('kind')).toMatchObject({
      driver: 'bridge',
      ipv6: true,
      options: {
        'com.docker.network.bridge.enable_ip_masquerade': 'true',
        'com.docker.network.driver.mtu': '1400',
      },
    })
  })

  test('is IPv4 only where the engine has no IPv6', async () => {
    const docker = createFakeEngine()
    docker.refuseNetwork = ({ ipv6Subnet }) =>
      ipv6Subnet === undefined ? undefined : 'Cannot read IPv6 setup for bridge br-1: no such file'
    await createKindNetwork(docker.networks, 'kind')
    expect(docker.done).toEqual(['network kind IPv4'])
  })

  test('gets another subnet when the first is in use', async () => {
    const docker = createFakeEngine()
    docker.refuseNetwork = ({ ipv6Subnet }) =>
      ipv6Subnet === computeKindSubnet('kind', 0) ? 'Pool overlaps with other one on this address space' : undefined
    await createKindNetwork(docker.networks, 'kind')
    expect(docker.done).toEqual([`network kind ${computeKindSubnet('kind', 1)}`])
  })

  test('may be created by another program at the same time', async () => {
    const { networks } = createFakeEngine()
    await networks.create({ name: 'kind', ipv6Subnet: undefined, options: {} })
    await createKindNetwork(networks, 'kind')
  })

  test('is an error when the engine refuses it for another reason', async () => {
    const docker = createFakeEngine()
    docker.refuseNetwork = () => 'could not find an available, non-overlapping IPv4 address pool'
    await expect(createKindNetwork(docker.networks, 'kind')).rejects.toBeInstanceOf(DockerError)
  })
})
