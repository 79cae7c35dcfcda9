import { expect, test } from 'vitest'
import { type Config, defaultConfig, toConfigDocument } from '../../../src/config/config.ts'
import { parseConfig } from '../../../src/config/parse.ts'

const everything: Config = {
  cache: {
    listen: [
      { host: '127.0.0.1', port: 0 },
      { host: '::1', port: 6055 },
    ],
    maxSize: 12_345_678,
    maxAge: 0,
    minFree: 3,
    tagFreshness: 1234,
    stale: 'never',
    offline: true,
    verifyReads: 'always',
    shareCredentials: true,
    prefetch: { layers: 1, rangesPerBlob: 2, rangeBytes: 3_000_000, rangeMinSize: 4_000_001 },
    timeouts: { connect: 1001, headers: 1002, idle: 1003, revalidate: 1004 },
  },
  registry: {
    enabled: false,
    listen: [{ host: 'localhost', port: 6001 }],
    deletes: false,
    networks: 'write',
    auth: { htpasswd: '/here/htpasswd' },
  },
  admin: { listen: [{ host: '127.0.0.1', port: 6056 }] },
  networks: ['kind', 'compose_default'],
  allowedHosts: ['cache.example'],
  log: { level: 'debug' },
  upstreams: {
    'a.example': {
      url: 'http://a.example:8080/prefix',
      prefix: 'group/project',
      credentials: { from: 'password-file', username: 'me', passwordFile: '/here/password' },
      tokenHosts: ['token.example'],
      ca: '/here/ca.pem',
      tagFreshness: 5,
    },
    'b.example': {
      url: 'https://b.example',
      prefix: undefined,
      credentials: { from: 'password-env', username: 'me', passwordEnv: 'PASSWORD' },
      tokenHosts: [],
      ca: undefined,
      tagFreshness: undefined,
    },
    'c.example': {
      url: 'https://c.example',
      prefix: undefined,
      credentials: { from: 'anonymous' },
      tokenHosts: [],
      ca: undefined,
      tagFreshness: 0,
    },
  },
  defaultUpstream: 'a.example',
  tls: { cert: '/here/tls.crt', key: '/here/tls.key', ca: '/here/ca.pem' },
}

test.each([
  ['by default', defaultConfig()],
  ['with every key', everything],
])('a configuration %s is the same after it is rendered and loaded in another folder', (_, config) => {
  const text = JSON.stringify(toConfigDocument(config))
  const parsed = parseConfig({ text, path: '/elsewhere/mirror.yaml', label: 'mirror.yaml', homedir: '/' })
  expect(parsed).toEqual({ config })
})
