import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { listChangedParts, hashConfig, defaultConfig } from '../../../src/config/config.ts'
import { findMisspelledVariables, loadConfig } from '../../../src/config/load.ts'
import { mirrorPaths } from '../../../src/config/paths.ts'
import { MirrorError } from '../../../src/lib/errors.ts'

let home: string
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-config-'))
})
afterEach(() => rm(home, { recursive: true }))

function load(env: Record<string, string> = {}) {
  const all = { MIRROR_HOME: home, ...env }
  const paths = mirrorPaths({ platform: process.platform, env: all, homedir: home, cwd: home })
  return loadConfig({ paths, env: all, homedir: home, cwd: home })
}

const write = (text: string) => writeFile(join(home, 'mirror.yaml'), text)

async function getRefusal(env: Record<string, string> = {}): Promise<MirrorError> {
  const error = await load(env).then(
    () => undefined,
    (error: unknown) => error,
  )
  expect(error).toBeInstanceOf(MirrorError)
  expect((error as MirrorError).exit).toBe(2)
  return error as MirrorError
}

describe('the configuration', () => {
  test('is the default without a file', async () => {
    expect(await load()).toEqual(defaultConfig())
  })

  test('prefers the environment to the file, and the file to the defaults', async () => {
    await write('cache: {maxSize: 1GiB, tagFreshness: 1m, timeouts: {idle: 1s}}\nlog: {level: warn}')
    const { cache, log } = await load({ MIRROR_CACHE_MAX_SIZE: '2GiB', MIRROR_CACHE_TIMEOUTS_CONNECT: '2s' })
    expect(cache).toMatchObject({ maxSize: 2 * 1024 ** 3, tagFreshness: 60_000, stale: 'on-error' })
    expect(cache.timeouts).toEqual({ connect: 2000, headers: 10_000, idle: 1000, revalidate: 3000 })
    expect(log.level).toBe('warn')
  })

  test('has a variable for every key outside the upstreams', async () => {
    const config = await load({
      MIRROR_CACHE_LISTEN: '127.0.0.1:1, [::1]:2',
      MIRROR_CACHE_OFFLINE: 'true',
      MIRROR_REGISTRY_ENABLED: '0',
      MIRROR_REGISTRY_AUTH_HTPASSWD: 'htpasswd',
      MIRROR_ADMIN_LISTEN: '127.0.0.1:3',
      MIRROR_NETWORKS: 'kind,dev',
      MIRROR_ALLOWED_HOSTS: 'mirror.lan',
      MIRROR_LOG_LEVEL: 'debug',
      MIRROR_DEFAULT_UPSTREAM: 'ghcr.io',
      MIRROR_TLS_CERT: 'a',
      MIRROR_TLS_KEY: '/b',
    })
    expect(config).toMatchObject({
      cache: {
        listen: [
          { host: '127.0.0.1', port: 1 },
          { host: '::1', port: 2 },
        ],
        offline: true,
      },
      registry: { enabled: false, auth: { htpasswd: join(home, 'htpasswd') } },
      admin: { listen: [{ host: '127.0.0.1', port: 3 }] },
      networks: ['kind', 'dev'],
      allowedHosts: ['mirror.lan'],
      log: { level: 'debug' },
      defaultUpstream: 'ghcr.io',
      tls: { cert: join(home, 'a'), key: '/b' },
    })
  })

  test('adds the networks of flags to the configured ones from any source', async () => {
    expect((await load({ MIRROR_NETWORK: 'dev,kind' })).networks).toEqual(['kind', 'dev'])
    await write('networks: [one]')
    expect((await load({ MIRROR_NETWORK: 'dev' })).networks).toEqual(['one', 'dev'])
    expect((await load({ MIRROR_NETWORKS: 'two', MIRROR_NETWORK: 'dev' })).networks).toEqual(['two', 'dev'])
  })

  test('merges two ports of one host into the port of a flag', async () => {
    await write('cache: {listen: ["127.0.0.1:1", "127.0.0.1:2", "[::1]:1"]}')
    expect((await load({ MIRROR_CACHE_PORT: '7' })).cache.listen).toEqual([
      { host: '127.0.0.1', port: 7 },
      { host: '::1', port: 7 },
    ])
  })

  test('applies the ports of flags last, to every address', async () => {
    await write('cache: {listen: ["127.0.0.1:7000", "[::1]:7000"]}')
    const config = await load({ MIRROR_CACHE_PORT: '0', MIRROR_ADMIN_PORT: '7001', MIRROR_NO_REGISTRY: 'true' })
    expect(config.cache.listen.map(({ port }) => port)).toEqual([0, 0])
    expect(config.admin.listen).toEqual([{ host: '127.0.0.1', port: 7001 }])
    expect(config.registry.enabled).toBe(false)
  })

  test('ignores empty variables, unknown variables with the prefix, and service variables of Kubernetes', async () => {
    const env = { MIRROR_LOG_LEVEL: '', MIRROR_SERVICE_HOST: '10.0.0.1', MIRROR_CACHE_PORT: 'tcp://10.0.0.1:5055' }
    expect(await load(env)).toEqual(defaultConfig())
  })

  test('is refused with the problems of the file and of the environment together', async () => {
    await write('log: {level: loud}')
    const { message } = await getRefusal({ MIRROR_CACHE_MAX_SIZE: 'big', MIRROR_CACHE_PORT: '70000' })
    expect(message).toContain('has 3 problems')
    expect(message).toContain('mirror.yaml:1:14 log.level: must be one of')
    expect(message).toContain('MIRROR_CACHE_MAX_SIZE: must be a size')
    expect(message).toContain('MIRROR_CACHE_PORT: must be a whole number from 0 to 65535')
  })

  test('is refused when two listeners share an address, and the error names the cause', async () => {
    const byFlag = await getRefusal({ MIRROR_CACHE_PORT: '5001' })
    expect(byFlag.message).toContain(
      '--cache-port or MIRROR_CACHE_PORT: the cache cannot listen on 127.0.0.1:5001, which the registry has (the default)',
    )
    expect(byFlag.hints[0]).toBe('Add --registry-port 6001   (or MIRROR_REGISTRY_PORT=6001)')
    expect([byFlag.message, ...byFlag.hints].join()).not.toContain('mirror.yaml')

    const byVariable = await getRefusal({ MIRROR_ADMIN_LISTEN: '127.0.0.1:5055' })
    expect(byVariable.message).toContain('MIRROR_ADMIN_LISTEN: the admin cannot listen on 127.0.0.1:5055')
    expect(byVariable.hints[0]).toContain('Add --cache-port 6055')

    await write('registry: {listen: ["127.0.0.1:5055"]}')
    const byFile = await getRefusal({})
    expect(byFile.message).toContain('mirror.yaml, registry.listen: the registry cannot listen on 127.0.0.1:5055')
  })

  test('names only the sources with problems in its hint', async () => {
    expect((await getRefusal({ MIRROR_CACHE_MAX_SIZE: 'big' })).hints[0]).toBe('Fix the variable named above')
    await write('log: {level: loud}')
    expect((await getRefusal({})).hints[0]).toMatch(/^Fix .*mirror\.yaml$/)
    const both = await getRefusal({ MIRROR_CACHE_MAX_SIZE: 'big' })
    expect(both.hints[0]).toMatch(/^Fix .*mirror\.yaml or the variable named above$/)
  })

  test('is refused when the named file does not exist', async () => {
    const { message, hints } = await getRefusal({ MIRROR_CONFIG: 'absent.yaml' })
    expect(message).toContain('absent.yaml')
    expect(hints.join()).toContain('mirror init')
  })

  test('is refused when its file is a folder', async () => {
    expect((await getRefusal({ MIRROR_CONFIG: '.' })).message).toContain('cannot be read')
  })
})

describe('hashes of the configuration', () => {
  test('tell which parts changed, in any order of keys', () => {
    const before = hashConfig(defaultConfig(), '/data')
    const same = defaultConfig()
    const reordered = { ...same, cache: Object.fromEntries(Object.entries(same.cache).toReversed()) as never }
    expect(listChangedParts(before, hashConfig(reordered, '/data'))).toEqual([])
    const other = { ...defaultConfig(), networks: [], log: { level: 'debug' as const } }
    expect(listChangedParts(before, hashConfig(other, '/elsewhere'))).toEqual(['networks', 'log', 'data'])
  })
})

test('a variable that resembles a setting is found, and no other', () => {
  const env = {
    MIRROR_CACHE_MAXSIZE: '5GiB',
    MIRROR_CACHE_PROT: '6055',
    MIRROR_LOG_LEVL: 'debug',
    MIRROR_HOM: '/home',
    MIRROR_CACHE_MAX_SIZE: '5GiB',
    MIRROR_NO_QUOTA_PROBE: '1',
    MIRROR_NO_SENDFILE: '1',
    MIRROR_YES: 'true',
    MIRROR_PASSWORD: 'secret',
    // Kubernetes sets these for services named mirror and mirror-cache.
    MIRROR_SERVICE_HOST: '10.0.0.1',
    MIRROR_SERVICE_PORT: '5055',
    MIRROR_CACHE_PORT_5055_TCP_ADDR: '10.0.0.1',
    MIRROR_CACHE_SERVICE_PORT: '5055',
    MIRROR_PORT: 'tcp://10.0.0.1:5055',
    MIRROR_CACHE_LISTN: '',
    CACHE_MAXSIZE: '5GiB',
  }
  expect(findMisspelledVariables(env)).toEqual([
    { name: 'MIRROR_CACHE_MAXSIZE', meant: 'MIRROR_CACHE_MAX_SIZE' },
    { name: 'MIRROR_CACHE_PROT', meant: 'MIRROR_CACHE_PORT' },
    { name: 'MIRROR_LOG_LEVL', meant: 'MIRROR_LOG_LEVEL' },
    { name: 'MIRROR_HOM', meant: 'MIRROR_HOME' },
  ])
})
