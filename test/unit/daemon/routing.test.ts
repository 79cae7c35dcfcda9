import { describe, expect, test } from 'vitest'
import { createRouting } from '../../../src/daemon/upstreams.ts'
import { builtInUpstreams } from '../../../src/upstream/upstream.ts'

const route = createRouting({ configured: new Set(['registry.corp.example:5000']), defaultUpstream: 'docker.io' })
const ask = (registry: string | undefined, name: string, byNamespace = false) => route({ registry, name, byNamespace })

describe('routing', () => {
  test('a request that names no registry means the default upstream', () => {
    expect(ask(undefined, 'bitnami/redis')).toEqual({ host: 'docker.io', name: 'bitnami/redis' })
  })

  test('a single-segment name is below library/ on Docker Hub, and nowhere else', () => {
    expect(ask('docker.io', 'alpine')).toEqual({ host: 'docker.io', name: 'library/alpine' })
    expect(ask('registry.k8s.io', 'pause')).toEqual({ host: 'registry.k8s.io', name: 'pause' })
  })

  test.each([...builtInUpstreams, 'registry.corp.example:5000'])('%s is allowed', (host) => {
    expect(ask(host, 'a/b')).toEqual({ host, name: 'a/b' })
  })

  test.each(['169.254.169.254', '127.0.0.1:1', 'evil.example', 'registry.corp.example', 'ghcr.io.evil.example'])(
    '%s is not allowed',
    (host) => {
      expect(ask(host, 'a/b', true)).toBeUndefined()
    },
  )

  test('*.pkg.dev is allowed for clients that send ns, and for no others', () => {
    expect(ask('europe-docker.pkg.dev', 'p/r/i', true)).toEqual({ host: 'europe-docker.pkg.dev', name: 'p/r/i' })
    expect(ask('europe-docker.pkg.dev', 'p/r/i')).toBeUndefined()
    expect(ask('a.evil.pkg.dev.example', 'p/r/i', true)).toBeUndefined()
  })

  test('a default upstream needs no entry', () => {
    const route = createRouting({ configured: new Set(), defaultUpstream: 'registry.corp.example' })
    expect(route({ registry: undefined, name: 'app', byNamespace: false })?.host).toBe('registry.corp.example')
  })
})
