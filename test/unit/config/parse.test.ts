import { describe, expect, test } from 'vitest'
import { defaultConfig } from '../../../src/config/config.ts'
import { parseConfig } from '../../../src/config/parse.ts'
import { formatProblem } from '../../../src/config/values.ts'

const parse = (text: string) =>
  parseConfig({ text, path: '/etc/mirror/mirror.yaml', label: 'mirror.yaml', homedir: '/home/me' })

function configOf(text: string) {
  const result = parse(text)
  if ('problems' in result) throw new Error(result.problems.map(formatProblem).join('\n'))
  return result.config
}

function problemsOf(text: string): string[] {
  const result = parse(text)
  return 'problems' in result ? result.problems.map(formatProblem) : []
}

describe('a good mirror.yaml', () => {
  test.each(['', '# only a comment\n', '---\n', 'cache:\nupstreams:\n', '{}'])('%j means the defaults', (text) => {
    expect(configOf(text)).toEqual(defaultConfig())
  })

  test('with every key is parsed completely', () => {
    const config = configOf(`
cache:
  listen: ["127.0.0.1:5055", "[::1]:5055"]
  maxSize: 20GiB
  maxAge: 168h
  minFree: 1GiB
  tagFreshness: 10s
  stale: on-error
  offline: false
  verifyReads: auto
  shareCredentials: false
  prefetch: {layers: 6, rangesPerBlob: 4, rangeBytes: 32MiB, rangeMinSize: 128MiB}
  timeouts: {connect: 5s, headers: 10s, idle: 30s, revalidate: 3s}
registry:
  enabled: true
  listen: ["127.0.0.1:5001"]
  deletes: true
  networks: read
  auth: {htpasswd: ./htpasswd}
admin:
  listen: ["127.0.0.1:5056"]
networks: [kind]
allowedHosts: []
log: {level: info}
upstreams:
  docker.io:
    url: https://registry-1.docker.io
    credentials: docker-config
    tokenHosts: []
    ca: ./corp-ca.pem
    tagFreshness: 10s
    prefix: hub
  registry.corp.example: {}
defaultUpstream: docker.io
tls: {cert: ./tls.crt, key: ~/tls.key, ca: ./ca.crt}
`)
    const defaults = defaultConfig()
    expect(config).toEqual({
      ...defaults,
      cache: {
        ...defaults.cache,
        listen: [
          { host: '127.0.0.1', port: 5055 },
          { host: '::1', port: 5055 },
        ],
      },
      registry: { ...defaults.registry, auth: { htpasswd: '/etc/mirror/htpasswd' } },
      upstreams: {
        'docker.io': {
          url: 'https://registry-1.docker.io',
          prefix: 'hub',
          credentials: { from: 'docker-config' },
          tokenHosts: [],
          ca: '/etc/mirror/corp-ca.pem',
          tagFreshness: 10_000,
        },
        'registry.corp.example': {
          url: 'https://registry.corp.example',
          prefix: undefined,
          credentials: { from: 'docker-config' },
          tokenHosts: [],
          ca: undefined,
          tagFreshness: undefined,
        },
      },
      tls: { cert: '/etc/mirror/tls.crt', key: '/home/me/tls.key', ca: '/etc/mirror/ca.crt' },
    })
  })

  test('may have an upstream without a value', () => {
    expect(configOf('upstreams:\n  registry.corp.example:5000:\n').upstreams).toHaveProperty([
      'registry.corp.example:5000',
      'url',
    ])
  })

  test.each(['docker.io', 'index.docker.io', 'registry-1.docker.io', 'Docker.IO'])('%s is Docker Hub', (name) => {
    expect(configOf(`upstreams: {${name}: {}}`).upstreams).toHaveProperty(
      ['docker.io', 'url'],
      'https://registry-1.docker.io',
    )
  })

  test('may take credentials from a file or a variable', () => {
    const { upstreams } = configOf(`
upstreams:
  a.example: {credentials: anonymous}
  b.example: {credentials: {username: 0123, passwordFile: secret}}
  c.example: {credentials: {username: bob, passwordEnv: CORP_PASSWORD}}`)
    expect(Object.values(upstreams).map(({ credentials }) => credentials)).toEqual([
      { from: 'anonymous' },
      { from: 'password-file', username: '0123', passwordFile: '/etc/mirror/secret' },
      { from: 'password-env', username: 'bob', passwordEnv: 'CORP_PASSWORD' },
    ])
  })

  test('may use aliases and anchors', () => {
    const { upstreams } = configOf('upstreams:\n  a.example: &same {tagFreshness: 1m}\n  b.example: *same\n')
    expect(upstreams['b.example']).toMatchObject({ url: 'https://b.example', tagFreshness: 60_000 })
  })

  test('may use 0 for no limit, and a single address for a list', () => {
    const { cache } = configOf('cache: {maxSize: 0, maxAge: 0, tagFreshness: 0, listen: "localhost:0"}')
    expect(cache).toMatchObject({ maxSize: 0, maxAge: 0, tagFreshness: 0, listen: [{ host: 'localhost', port: 0 }] })
  })

  test('may have a URL with a path, whose trailing slash is removed', () => {
    const { upstreams } = configOf('upstreams: {a.example: {url: "http://10.0.0.7:5000/proxy/"}}')
    expect(upstreams['a.example']!.url).toBe('http://10.0.0.7:5000/proxy')
  })
})

describe('a bad mirror.yaml', () => {
  test('has all its problems reported at once, with path, line and column, in the order of the file', () => {
    expect(
      problemsOf(`cache:
  maxSize: lots
  listen: [5055, "0.0.0.0:99999"]
  tagFreshnes: 10s
  timeouts: {connect: 0s, idle: 30}
registry: [a]
upstreams:
  a.example:
    url: https://bob:hunter2@a.example
    credentials: {username: bob}
  "bad host": {}
`),
    ).toEqual([
      'mirror.yaml:2:12 cache.maxSize: must be a size such as 20GiB or 500MB, not "lots"',
      'mirror.yaml:3:12 cache.listen[0]: needs an address: 127.0.0.1:5055 for this machine only, 0.0.0.0:5055 for all interfaces',
      'mirror.yaml:3:18 cache.listen[1]: has a port above 65535',
      'mirror.yaml:4:3 cache.tagFreshnes: is not a known key; did you mean tagFreshness?',
      'mirror.yaml:5:23 cache.timeouts.connect: must be more than 0 and at most 1h',
      'mirror.yaml:5:33 cache.timeouts.idle: needs a unit: 30s, 30m or 30h',
      'mirror.yaml:6:11 registry: must be a map of keys and values',
      'mirror.yaml:9:10 upstreams["a.example"].url: must not contain a user name or password; use the key credentials',
      'mirror.yaml:10:18 upstreams["a.example"].credentials: needs the key passwordFile or passwordEnv; the password itself does not belong here',
      'mirror.yaml:11:3 upstreams["bad host"]: must be a registry\'s host name with an optional port, such as ghcr.io, not "bad host"',
    ])
  })

  test.each([
    ['a key twice', 'log: {level: info}\nlog: {level: warn}', 'mirror.yaml:2:1 log: is already given in line 1'],
    ['one upstream by two names', 'upstreams:\n  docker.io:\n  index.docker.io:', 'means the same as docker.io above'],
    ['broken YAML', 'cache: {maxSize: 1GiB', 'mirror.yaml:1:22: is not valid YAML: a { is not closed'],
    ['a list without its end', 'networks: ["a"\nlog:\n  level: info', 'is not valid YAML: a [ is not closed'],
    ['a key without a colon', 'cache:\n  maxSize\n  a: 1', 'mirror.yaml:2:3: is not valid YAML: a colon is missing'],
    ['a tab', 'cache:\n\tmaxSize: 1GiB', 'mirror.yaml:2:1: is not valid YAML: it is indented with a tab'],
    ['two documents', '---\na: 1\n---\nb: 2', 'mirror.yaml:3:1: is not valid YAML'],
    ['an unknown tag', 'cache: {maxSize: !!js 1GiB}', 'mirror.yaml:1:18: is not valid YAML'],
    ['an unknown anchor', 'cache: *nothing', 'has no anchor named nothing'],
    ['a list at the top', '- cache', 'mirror.yaml:1:1: must be a map of keys and values'],
    ['a map for a value', 'cache: {maxSize: {a: 1}}', 'cache.maxSize: must be a single value, not a map'],
    ['a map for a list', 'networks: {kind: true}', 'networks: must be a list'],
    ['an empty list of addresses', 'cache: {listen: []}', 'cache.listen: must name at least one'],
    ['a port alone', 'cache: {listen: [":5055"]}', 'needs an address: 127.0.0.1:5055'],
    ['an address alone', 'cache: {listen: [127.0.0.1]}', 'needs a port: 127.0.0.1:5055'],
    ['IPv6 without brackets', 'cache: {listen: ["::1"]}', 'needs brackets and a port: [::1]:5055'],
    ['a host name to listen on', 'cache: {listen: ["my.host:5055"]}', 'must be an IP address and a port'],
    ['an impossible address', 'cache: {listen: ["300.0.0.1:5055"]}', 'must be an IP address and a port'],
    ['a yes', 'cache: {offline: yes}', 'cache.offline: must be true or false, not "yes"'],
    ['a negative number', 'cache: {prefetch: {layers: -1}}', 'must be a whole number from 0 to 64'],
    ['a key of another section', 'maxSize: 1GiB', 'is not a known key; did you mean cache.maxSize?'],
    [
      'a mistyped key of another section',
      'registry: {htpaswd: ./a}',
      'is not a known key; did you mean registry.auth.htpasswd?',
    ],
    ['a key of two other sections', 'listen: 127.0.0.1:1', 'is not a known key; here there are cache, registry,'],
    ['a short unknown key', 'x: 1', 'is not a known key; here there are cache, registry,'],
    ['a mistyped word', 'cache: {stale: on-eror}', 'not "on-eror"; did you mean on-error?'],
    ['an unknown word', 'cache: {stale: sometimes}', 'must be one of on-error, always, never, not "sometimes"'],
    ['an infinite size', 'cache: {maxSize: 1e400}', 'must be a size'],
    ['an FTP URL', 'upstreams: {a.example: {url: "ftp://a.example"}}', 'must be a URL that starts with https://'],
    ['a query in a URL', 'upstreams: {a.example: {url: "https://a.example/?x=1"}}', 'must not have a query'],
    ['a URL with /v2', 'upstreams: {a.example: {url: "https://a.example/v2/"}}', 'must end before /v2'],
    [
      'a URL with the prefix in it',
      'upstreams:\n  docker.io:\n    url: https://harbor.corp/v2/hub',
      'mirror.yaml:3:10 upstreams["docker.io"].url: must end before /v2, which is added; write url: https://harbor.corp and prefix: hub',
    ],
    [
      'a URL with a base and a long prefix in it',
      'upstreams: {docker.io: {url: "https://x.corp/a/v2/b/c/"}}',
      'write url: https://x.corp/a and prefix: b/c',
    ],
    ['a prefix in upper case', 'upstreams: {a.b: {prefix: Hub}}', 'prefix: must be a repository path in lower case'],
    ['an empty prefix', 'upstreams: {a.b: {prefix: ""}}', 'must be a repository path in lower case'],
    ['a prefix of a slash', 'upstreams: {a.b: {prefix: /}}', 'must be a repository path in lower case'],
    ['a prefix that climbs', 'upstreams: {a.b: {prefix: a/../b}}', 'must be a repository path in lower case'],
    ['a prefix with a query', 'upstreams: {a.b: {prefix: "a?b"}}', 'must be a repository path in lower case'],
    ['a prefix with slashes around', 'upstreams: {a.b: {prefix: /a/b/}}', 'prefix: must be a/b: without /v2/'],
    ['a prefix with /v2', 'upstreams: {a.b: {prefix: /v2/hub}}', 'prefix: must be hub: without /v2/'],
    ['a URL for a prefix', 'upstreams: {a.b: {prefix: "https://a.b/hub"}}', 'the host belongs to url'],
    ['a password', 'upstreams: {a.example: {credentials: {username: a, password: b}}}', 'is not a known key'],
    ['both passwords', 'upstreams: {a.b: {credentials: {username: a, passwordFile: b, passwordEnv: C}}}', 'not both'],
    ['a word for credentials', 'upstreams: {a.b: {credentials: none}}', 'must be one of docker-config, anonymous'],
    ['half of TLS', 'tls: {cert: a.pem}', 'tls: needs both cert and key'],
    [
      'a port in a host name',
      'allowedHosts: ["mirror.lan:5055"]',
      'allowedHosts[0]: must be a host name without a port',
    ],
    ['a merge key', 'cache: {<<: {offline: true}}', 'cache["<<"]: is not a known key'],
    ['__proto__', 'upstreams: {__proto__: {}}', "must be a registry's host name"],
  ])('%s is a problem', (_name, text, message) => {
    expect(problemsOf(text)).toEqual([expect.stringContaining(message)])
  })

  test.each([
    [
      'aliases that expand without end',
      'a: &a [x,x,x,x,x,x,x,x]\n' +
        'bcdefgh'.replaceAll(
          /./g,
          (to) => `${to}: &${to} [${`*${String.fromCharCode(to.charCodeAt(0) - 1)},`.repeat(8)}]\n`,
        ),
    ],
    ['an alias of itself', 'cache: &a {timeouts: *a}'],
    ['deep brackets', '['.repeat(100_000)],
    ['deep lists', '- '.repeat(100_000)],
    ['a huge file', `# ${'x'.repeat(300_000)}`],
  ])('with %s is reported as a problem without a crash', (_name, text) => {
    expect(problemsOf(text).length).toBeGreaterThan(0)
  })

  test('does not have a password in a URL repeated', () => {
    expect(problemsOf('upstreams: {a.example: {url: "https://bob:hunter2@a.example"}}').join()).not.toContain('hunter2')
  })
})
