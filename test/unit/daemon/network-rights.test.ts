import { expect, test } from 'vitest'
import { getNetworkRights } from '../../../src/daemon/networks.ts'

const networks = { kind: 'http://172.18.0.1:5055', dev: 'http://[fc00::1]:5055' }

test.each([
  ['read', 'http://127.0.0.1:5001', false, 'read'],
  ['write', 'http://127.0.0.1:5001', false, 'write'],
  ['read', 'http://192.168.1.10:5001', false, 'read'],
  ['read', 'http://172.18.0.1:5001', false, 'write'],
  ['read', 'https://[fc00::1]:5001', false, 'write'],
  ['read', 'http://0.0.0.0:5001', false, 'write'],
  ['read', 'http://[::]:5001', false, 'write'],
  ['read', 'http://0.0.0.0:5001', true, 'read'],
  ['write', 'http://0.0.0.0:5001', true, 'write'],
] as const)(
  'with registry.networks: %s and a registry on %s (in a container: %s), containers of networks may %s',
  (setting, registry, isInContainer, expected) => {
    expect(getNetworkRights(setting, { registry: [registry], networks }, isInContainer)).toBe(expected)
  },
)
