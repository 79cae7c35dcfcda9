import { describe, expect, test } from 'vitest'
import { createContainerConfig, toContainerPorts } from '../../../../src/daemon/container/desired.ts'
import { type Config, defaultConfig } from '../../../../src/config/config.ts'
import { parseConfig } from '../../../../src/config/parse.ts'
import { getMachineNames } from '../../../../src/lib/network.ts'
import { createHostGuard } from '../../../../src/server/request-guard.ts'

/** Parses the configuration as the mirror in the container does. */
function parseConfigOfContainer(
  config: Config,
  handedOver: string[] = [],
): { inside: Config; files: Readonly<Record<string, string>> } {
  const { text, files } = createContainerConfig(config, toContainerPorts(config), handedOver)
  const parsed = parseConfig({ text, path: '/data/home/handed/mirror.yaml', label: 'mirror.yaml', homedir: '/' })
  if (!('config' in parsed)) throw new Error(JSON.stringify(parsed.problems))
  return { inside: parsed.config, files }
}

const at = (port: number) => [{ host: '::', port }]

describe('the configuration inside a container', () => {
  test('is that of the host except for addresses and networks', () => {
    const config = defaultConfig()
    config.cache.maxSize = 12_345_678
    config.cache.maxAge = 0
    config.cache.stale = 'never'
    config.cache.timeouts.connect = 1234
    config.allowedHosts = ['cache.example']
    config.log.level = 'debug'
    config.networks = ['kind', 'compose_default']
    const { inside, files } = parseConfigOfContainer(config)
    expect(inside).toEqual({
      ...config,
      cache: { ...config.cache, listen: at(5055) },
      registry: { ...config.registry, listen: at(5001) },
      admin: { listen: at(5056) },
      networks: [],
      allowedHosts: expect.arrayContaining(['cache.example']) as unknown,
    })
    expect(files).toEqual({})
  })

  test('allows the names and addresses of the host', () => {
    const config = defaultConfig()
    config.allowedHosts = ['cache.example']
    config.cache.listen = ['127.0.0.1', '192.168.7.5', '0.0.0.0', 'fd00::5'].map((host) => ({ host, port: 5055 }))
    const { allowedHosts } = parseConfigOfContainer(config).inside
    for (const name of ['cache.example', '192.168.7.5', ...getMachineNames()]) expect(allowedHosts).toContain(name)
    expect(allowedHosts).not.toContain('0.0.0.0')
    const guard = createHostGuard(allowedHosts, () => {})
    for (const host of ['192.168.7.5:5055', '[fd00::5]:5055'])
      expect(() => guard.check({ rawHeaders: ['Host', host], localAddress: '172.17.0.2' }), host).not.toThrow()
  })

  test('has the ports of the host, and the default ones for free ports', () => {
    const config = defaultConfig()
    config.cache.listen = [{ host: '127.0.0.1', port: 6055 }]
    config.registry.listen = [{ host: '127.0.0.1', port: 0 }]
    expect(toContainerPorts(config)).toEqual({
      cache: { inside: 6055, outside: 6055 },
      registry: { inside: 5001, outside: 0 },
      admin: { inside: 5056, outside: 5056 },
    })
    expect(parseConfigOfContainer(config).inside.cache.listen).toEqual(at(6055))
    config.registry.enabled = false
    expect(toContainerPorts(config).registry).toBeUndefined()
    expect(parseConfigOfContainer(config).inside.registry.enabled).toBe(false)
  })

  test('names each exported file once, by a unique name', () => {
    const config = defaultConfig()
    const upstream = { credentials: { from: 'anonymous' as const }, tokenHosts: [], tagFreshness: undefined }
    config.upstreams = {
      'a.example': { ...upstream, url: 'https://a.example', ca: '/etc/a/ca.pem', tagFreshness: 0 },
      'b.example': { ...upstream, url: 'https://b.example', ca: '/etc/b/ca.pem' },
      'c.example': { ...upstream, url: 'https://c.example', ca: '/etc/a/ca.pem' },
    }
    config.tls = { cert: '/etc/tls.crt', key: '/etc/tls.key', ca: '/etc/tls-ca.crt' }
    config.registry.auth = { htpasswd: '/etc/my passwords' }
    const { inside, files } = parseConfigOfContainer(config)
    const getHostPath = (path: string | undefined) => files[path!.replace('/data/home/handed/', '')]
    expect(getHostPath(inside.tls!.cert)).toBe('/etc/tls.crt')
    expect(getHostPath(inside.tls!.key)).toBe('/etc/tls.key')
    // Expects no CA in the container, because clients are configured on the machine itself.
    expect(inside.tls!.ca).toBeUndefined()
    expect(getHostPath(inside.registry.auth!.htpasswd)).toBe('/etc/my passwords')
    const authorities = Object.values(inside.upstreams).map(({ ca }) => getHostPath(ca))
    expect(authorities).toEqual(['/etc/a/ca.pem', '/etc/b/ca.pem', '/etc/a/ca.pem'])
    expect(Object.keys(files)).toHaveLength(5)
    expect(inside.upstreams['a.example']!.tagFreshness).toBe(0)
  })

  test('has credentials only for registries whose credentials are exported', () => {
    const config = defaultConfig()
    config.cache.shareCredentials = true
    const credentials = { from: 'password-file' as const, username: 'me', passwordFile: '/home/me/secret' }
    const upstream = { credentials, tokenHosts: [], tagFreshness: undefined, ca: undefined }
    config.upstreams = {
      'a.example': { ...upstream, url: 'https://a.example' },
      'b.example': { ...upstream, url: 'https://b.example' },
    }
    const { inside, files } = parseConfigOfContainer(config, ['a.example', 'docker.io'])
    expect(
      Object.entries(inside.upstreams).map(([host, { url, credentials }]) => [host, url, credentials.from]),
    ).toEqual([
      ['a.example', 'https://a.example', 'docker-config'],
      ['docker.io', 'https://registry-1.docker.io', 'docker-config'],
      ['b.example', 'https://b.example', 'anonymous'],
    ])
    expect(files).toEqual({})
  })
})
