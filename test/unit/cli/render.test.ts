import { describe, expect, test } from 'vitest'
import type { StatusReport } from '../../../src/admin/api.ts'
import { isDebugging, renderError } from '../../../src/cli/render/log.ts'
import { renderRemoval } from '../../../src/cli/render/table.ts'
import { renderImages, renderPushedImages, renderStatus } from '../../../src/cli/render/status.ts'
import { suggestNextStep, renderUp } from '../../../src/cli/render/up.ts'
import { createColors, createProgressBar, createPrompt, wantsColor } from '../../../src/cli/terminal.ts'
import type { ClientName } from '../../../src/clients/types.ts'
import { nothingDropped, type OmittedFlag } from '../../../src/daemon/up.ts'
import { MirrorError } from '../../../src/lib/errors.ts'

const plain = createColors(false)
const color = createColors(true)
const now = Date.parse('2026-11-21T12:00:00Z')

const image = (name: string, lastPulled?: string) => ({
  name,
  digest: 'sha256:00',
  bytes: 3_400_000,
  pulls: 3,
  ...(lastPulled !== undefined && { lastPulled }),
})

const report: StatusReport = {
  version: '1.2.3',
  running: true,
  runtime: 'process',
  pid: 42,
  startedAt: '2026-11-21T08:48:00Z',
  uptimeSeconds: 11_520,
  since: '2026-11-01T00:00:00Z',
  endpoints: {
    cache: ['http://127.0.0.1:5055'],
    registry: [],
    admin: ['http://127.0.0.1:5056'],
    networks: { kind: 'http://172.18.0.1:5055' },
  },
  networks: {},
  sendBlob: 'sendfile',
  cache: {
    pulls: 42,
    requests: 1300,
    hits: 1000,
    misses: 250,
    collapsed: 1,
    revalidated: 2,
    staleServed: 0,
    errors: 0,
    digestMismatches: 0,
    hitRatio: 0.8,
    bytesServed: 5e9,
    bytesFromUpstream: 1.6e9,
    bytesSaved: 3.4e9,
  },
  registry: { repositories: 0, tags: 0, manifests: 0, bytes: 0, uploads: 0 },
  upstreams: {
    'docker.io': {
      hits: 900,
      misses: 200,
      bytesFromUpstream: 1.5e9,
      state: 'ok',
      rateLimit: { limit: 100, remaining: 76, windowSeconds: 21_600, at: '2026-11-21T11:00:00Z' },
    },
    'ghcr.io': { hits: 100, misses: 50, bytesFromUpstream: 1e8, state: 'ok' },
  },
  storage: {
    path: '/data',
    bytes: 5e9,
    maxBytes: 20 * 1024 ** 3,
    blobs: 12,
    manifests: 3,
    pushedBytes: 0,
    minFree: 1024 ** 3,
  },
  refusedHosts: {},
  refusedRegistries: {},
  images: [image('docker.io/library/alpine:3.20', '2026-11-21T11:57:00Z')],
}

/** Returns a time of day of one date in the time zone of the test. */
const at = (hour: number, minute: number) => new Date(2026, 10, 21, hour, minute).toISOString()
const localNow = new Date(2026, 10, 21, 12, 0).getTime()

describe('the status', () => {
  test('shows the most important facts first, in aligned columns', () => {
    expect(renderStatus(report, plain, now)).toBe(`● mirror 1.2.3 has been up for 3 h 12 min (pid 42)

  cache     http://127.0.0.1:5055
            http://172.18.0.1:5055 (network kind)
  admin     http://127.0.0.1:5056
  pulls     42 since 2026-11-01
  requests  1,000 hits, 250 misses (80 % from the cache)
  saved     3.2 GiB of 4.7 GiB served; 1.5 GiB came from upstream
  disk      4.7 GiB of 20 GiB (23 %), /data

UPSTREAM   HITS  MISSES   FETCHED  STATE  QUOTA
docker.io   900     200   1.4 GiB  ok     76 of 100 pulls left in 6 h
ghcr.io     100      50  95.4 MiB  ok

IMAGE                             SIZE  PULLS  LAST PULLED  CHECKED
docker.io/library/alpine:3.20  3.2 MiB      3  3 min ago    –`)
  })

  test.each([
    [{ unlimited: true, at: '2026-11-21T11:00:00Z' } as const, 'unlimited'],
    [
      { limit: 100, remaining: 0, windowSeconds: 21_600, at: at(11, 0) },
      '0 of 100 pulls left until 17:00 at the latest',
    ],
    [
      { limit: 100, remaining: 0, windowSeconds: 21_600, at: at(11, 0), resetsAt: at(14, 5) },
      '0 of 100 pulls left until 14:05',
    ],
  ])('says when an exhausted quota is full again, or that there is none: %o', (rateLimit, text) => {
    const upstreams = { 'docker.io': { ...report.upstreams['docker.io']!, rateLimit, pullsAvoided: 1234 } }
    const shown = renderStatus({ ...report, upstreams }, plain, localNow)
    expect(shown).toContain(`ok     ${text}\n`)
    expect(shown).toContain("avoided   1,234 pulls of Docker Hub's quota (one for each request for a manifest)\n")
  })

  const troubled: StatusReport = {
    ...report,
    cliVersion: '1.10.0',
    networks: {
      kind: { state: 'waiting', reason: 'the network does not exist yet' },
      dev: { state: 'failed', reason: 'Cannot listen on 172.19.0.1:5055: another program is listening there.' },
      good: { state: 'listening', url: 'http://172.20.0.1:5055' },
    },
    upstreams: {
      'ghcr.io': {
        ...report.upstreams['ghcr.io']!,
        state: 'open',
        lastError: { message: 'ghcr.io refuses connections.', at: '2026-11-21T11:59:00Z', retryAfterSeconds: 21 },
      },
      'quay.io': {
        ...report.upstreams['ghcr.io']!,
        state: 'failing',
        lastError: { message: 'quay.io answered 503.', at: '2026-11-21T11:59:00Z' },
      },
    },
    storage: { ...report.storage, freeBytes: 300 * 1024 ** 2 },
    cache: { ...report.cache, errors: 3, staleServed: 2, digestMismatches: 1 },
    refusedHosts: { 'evil.example': 2 },
    refusedRegistries: { 'registry.corp.example': 3, 'other.example:5000': 1 },
  }
  const trouble = (columns?: number) => renderStatus(troubled, plain, now, columns).split('\n\n')[2]

  test('shows waiting, failed and refused things, each with a next step', () => {
    expect(trouble()).toBe(
      [
        '  update    this command is mirror 1.10.0, newer than the mirror that runs. To replace it: mirror up',
        '  waiting   network kind: the network does not exist yet. Next: kind create cluster',
        '            upstream ghcr.io refuses connections. Asked again in 21 s; cached images are served. Next: mirror logs',
        '  failing   upstream quay.io answered 503. Next: wait; the registry itself has a problem',
        '  failed    network dev: Cannot listen on 172.19.0.1:5055: another program is listening there. Next: free that port, or mirror up --cache-port N',
        '            disk: 300 MiB are free at /data, less than cache.minFree (1 GiB), so that new content may not be kept. Next: free some space, or mirror cache prune',
        '  errors    3 requests could not be answered. Next: mirror logs',
        '  stale     2 answers came from the cache because an upstream did not answer. Next: mirror logs',
        '  damaged   1 body from upstream did not match the digest. Next: mirror logs',
        `  refused   registry.corp.example (3×), other.example:5000 (1×): these registries are not mirrored. Next: add "upstreams: {registry.corp.example: {}, 'other.example:5000': {}}" to mirror.yaml, then: mirror up`,
        '            clients that reach the mirror as evil.example (2×). If they are yours: add "allowedHosts: ["evil.example"]" to mirror.yaml, then: mirror up',
      ].join('\n'),
    )
  })

  test.each([60, 80, 200])('fits a terminal of %d columns', (columns) => {
    const text = renderStatus({ ...troubled, upstreams: report.upstreams }, plain, now, columns)
    for (const line of text.split('\n')) expect(line.length).toBeLessThanOrEqual(columns)
  })

  test('wraps a long text below its name', () => {
    expect(trouble(60)?.split('\n').slice(0, 6)).toEqual([
      '  update    this command is mirror 1.10.0, newer than the',
      '            mirror that runs. To replace it: mirror up',
      '  waiting   network kind: the network does not exist yet.',
      '            Next: kind create cluster',
      '            upstream ghcr.io refuses connections. Asked',
      '            again in 21 s; cached images are served. Next:',
    ])
  })

  test.each([
    [
      'docker.io cannot be reached: the name registry-1.docker.io could not be resolved (offline, or DNS).',
      'upstream docker.io cannot be reached: the name registry-1.docker.io could not be resolved (offline, or DNS). Asked again in 9 s; cached images are served. Next: check the network and DNS of this machine',
    ],
    [
      'docker.io is rate limiting this mirror for 9 s.',
      'upstream docker.io is rate limiting this mirror for 9 s. Asked again in 9 s; cached images are served. Next: wait, or log in: docker login docker.io',
    ],
  ])('says once why it waits: %s', (message, text) => {
    const lastError = { message, at: '2026-11-21T11:59:00Z', retryAfterSeconds: 9 }
    const upstreams = { 'docker.io': { ...report.upstreams['ghcr.io']!, state: 'ok' as const, lastError } }
    const status = renderStatus({ ...report, upstreams }, plain, now)
    expect(status).toContain(`  waiting   ${text}\n`)
    expect(status).toMatch(/^docker\.io .* waiting/m)
  })

  test.each([
    ['the environment variable NOPE is not set', 'set it, then: mirror down && mirror up'],
    ['the file /p cannot be read (ENOENT)', 'correct that; the next request reads it again'],
  ])('names the step for a credential that cannot be read: %s', (why, step) => {
    const lastError = { message: `The credential for a.example cannot be used: ${why}.`, at: '2026-11-21T11:59:00Z' }
    const upstreams = { 'a.example': { ...report.upstreams['ghcr.io']!, state: 'failing' as const, lastError } }
    expect(renderStatus({ ...report, upstreams }, plain, now)).toContain(
      `  failing   upstream a.example: its credential cannot be used: ${why}. Next: ${step}\n`,
    )
  })

  test('says whether the command is older or newer than the mirror', () => {
    expect(renderStatus({ ...report, cliVersion: '1.2.2' }, plain, now)).toContain('older than the mirror that runs')
    expect(renderStatus({ ...report, cliVersion: '1.2.3-rc.1' }, plain, now)).toContain('older than')
    expect(renderStatus({ ...report, cliVersion: '2.0.0-rc.1' }, plain, now)).toContain('newer than')
  })

  test('says that no upstream is contacted, and until when', () => {
    expect(renderStatus(report, plain, now)).not.toContain('offline')
    const offline = (source: 'config' | 'session', active = true) =>
      renderStatus({ ...report, offline: { active, source } }, plain, now)
    expect(offline('session')).toContain(
      'no upstream is contacted (until the mirror restarts). To go online: mirror dashboard',
    )
    expect(offline('config')).toContain(
      'no upstream is contacted (cache.offline). Next: set it to false in mirror.yaml, then: mirror up',
    )
    expect(offline('session', false)).not.toContain('offline')
  })

  test('suggests a pull with the served address when no image is cached', () => {
    const empty = {
      ...report,
      images: [],
      upstreams: {},
      endpoints: { ...report.endpoints, cache: ['http://127.0.0.1:7'] },
    }
    expect(renderStatus(empty, plain, now)).toContain('docker pull 127.0.0.1:7/docker.io/library/alpine')
  })

  test('shows errors only when there are any', () => {
    const text = renderStatus(
      { ...report, cache: { ...report.cache, staleServed: 2, errors: 3, digestMismatches: 1 } },
      plain,
      now,
    )
    expect(text).toMatch(/stale +2 answers/)
    expect(text).toMatch(/errors +3/)
    expect(text).toMatch(/damaged +1 body/)
  })

  test('says why the mirror itself cannot fetch, and what to do', () => {
    const troubles = [
      'The mirror cannot open a file: EMFILE',
      'The mirror cannot send requests to upstreams: ERR_MODULE_NOT_FOUND',
    ]
    const text = renderStatus({ ...report, troubles }, plain, now)
    expect(text).toContain(
      'failed    The mirror cannot open a file: EMFILE. Next: allow it more open files (ulimit -n), then: mirror down && mirror up',
    )
    expect(text).toContain('The mirror cannot send requests to upstreams: ERR_MODULE_NOT_FOUND. Next: mirror logs')
    const reason = 'Cannot listen on 172.18.0.1:5055: the mirror has too many files open.'
    expect(renderStatus({ ...report, networks: { kind: { state: 'failed', reason } } }, plain, now)).toContain(
      'network kind: Cannot listen on 172.18.0.1:5055: the mirror has too many files open. Next: allow it more open files',
    )
    expect(renderStatus(report, plain, now)).not.toContain('failed')
  })

  test('says that the password file cannot be used, and where to correct it', () => {
    const troubles = [
      'Nobody can log in to the registry, because the password file /etc/htpasswd cannot be used: it does not exist.',
    ]
    expect(renderStatus({ ...report, troubles }, plain, now)).toContain(
      'failed    Nobody can log in to the registry, because the password file /etc/htpasswd cannot be used: it does not exist. Next: correct the file; the change takes effect at once',
    )
    expect(renderStatus({ ...report, runtime: 'container', troubles }, plain, now)).toContain(
      'Next: correct the file that "registry.auth.htpasswd" in mirror.yaml names, then: mirror up',
    )
  })

  test.each([
    ['read', 'containers may only pull (registry.networks: read)'],
    ['write', 'containers may push and delete (registry.networks or registry.listen allows it)'],
  ] as const)('says what containers of networks may do: %s', (networks, expected) => {
    const endpoints = { ...report.endpoints, registry: ['http://127.0.0.1:5001'] }
    const text = renderStatus({ ...report, endpoints, registry: { ...report.registry, networks } }, plain, now)
    expect(text).toContain(expected)
  })

  test('names pushed repositories whose record is damaged, and the file', () => {
    const lost = { path: '/q/1', original: '/r/1', reason: 'it cannot be read: push again', served: false }
    const kept = {
      repository: 'app',
      path: '/q/2',
      original: '/r/2',
      reason: '1 damaged line was left out',
      served: true,
    }
    const text = renderStatus({ ...report, registry: { ...report.registry, damaged: [lost, kept] } }, plain, now)
    expect(text).toContain('a pushed repository: /q/1: it cannot be read: push again')
    expect(text).toContain(
      'the pushed repository app: 1 damaged line was left out. Nothing is deleted for a week. Damaged lines: /q/2',
    )
  })

  test('names refused hosts without letting them write to the terminal', () => {
    const refusedHosts = { 'evil\x1b[2J.example': 2 }
    expect(renderStatus({ ...report, refusedHosts }, plain, now)).toContain('evil?[2J.example (2×)')
  })

  test('shows the images pulled last, and the number of others', () => {
    const images = Array.from({ length: 20 }, (_, day) =>
      image(`docker.io/library/a:${day}`, `2026-10-${String(day + 10)}T00:00:00Z`),
    )
    const text = renderStatus({ ...report, images }, plain, now)
    expect(text).toContain('library/a:19')
    expect(text).not.toContain('library/a:4 ')
    expect(text).toContain('and 5 more: mirror cache ls')
  })

  test('has the same text in colour', () => {
    // eslint-disable-next-line no-control-regex
    const bare = renderStatus(report, color, now).replaceAll(/\x1b\[\d+m/g, '')
    expect(bare).toBe(renderStatus(report, plain, now))
    expect(renderStatus(troubled, color, now)).toContain('\x1b[33mwaiting\x1b[39m')
  })
})

describe('images', () => {
  test('have short digests, and no negative age after a clock change', () => {
    const name = `ghcr.io/a/b@sha256:${'0123456789abcdef'.repeat(4)}`
    const text = renderImages([image(name, '2026-11-21T12:00:30Z')], plain, now)
    expect(text).toContain('ghcr.io/a/b@sha256:0123456789ab… ')
    expect(text).toContain('0 s ago')
  })
})

describe('long names of images', () => {
  const name = 'registry.example/platform/services/checkout-frontend'
  const render = (names: string[], columns?: number) =>
    renderImages(
      names.map((each) => ({ ...image(each, '2026-11-21T11:59:00Z'), checkedAt: '2026-11-21T11:59:30Z' })),
      plain,
      now,
      columns,
    ).split('\n')

  test('cost the less important columns first', () => {
    expect(render(['docker.io/library/alpine:3'], 80)[0]).toMatch(/^IMAGE +SIZE +PULLS +LAST PULLED +CHECKED$/)
    expect(render(['docker.io/library/alpine:3.20'], 60)[0]).toMatch(/^IMAGE +SIZE +PULLS +LAST PULLED$/)
    expect(render([`docker.io/bitnami/wordpress-nginx:1`], 60)[0]).toMatch(/^IMAGE +SIZE +LAST PULLED$/)
    expect(render(['quay.io/platform/services/checkout-frontend:2'], 60)[0]).toMatch(/^IMAGE +SIZE$/)
    expect(render([`${name}:1`])[0]).toMatch(/^IMAGE .* CHECKED$/)
  })

  test('stay whole on a line of their own where no column is left', () => {
    expect(render([`${name}:2026.11.30-rc1`, 'a:1'], 60)).toEqual([
      `${name}:2026.11.30-rc1`,
      '  size 3.2 MiB, pulls 3, last pulled 1 min ago, checked',
      '  30 s ago',
      'a:1',
      '  size 3.2 MiB, pulls 3, last pulled 1 min ago, checked',
      '  30 s ago',
    ])
  })

  test('stay whole among the pushed images', () => {
    const pushed = { name: 'platform/services/checkout-frontend:1', digest: `sha256:${'0'.repeat(64)}`, bytes: 1 }
    const text = renderPushedImages([{ ...pushed, pushedAt: '2026-11-21T11:59:00Z' }], plain, now, 60)
    expect(text).toBe(`IMAGE${' '.repeat(32)}  SIZE  PUSHED\n${pushed.name}   1 B  1 min ago`)
  })
})

describe('colours', () => {
  test.each([
    [true, {}, true],
    [false, {}, false],
    [true, { NO_COLOR: '1' }, false],
    [true, { NO_COLOR: '' }, true],
    [true, { TERM: 'dumb' }, false],
    [false, { FORCE_COLOR: '1' }, true],
    [true, { FORCE_COLOR: '0' }, false],
    [true, { NO_COLOR: '1', FORCE_COLOR: '1' }, false],
  ])('on a terminal (%s) with %j: %s', (isTTY, env, expected) => {
    expect(wantsColor({ isTTY }, env)).toBe(expected)
  })

  test('are escape codes where a stream wants them, whatever the stdout of this process is', () => {
    const { bold, dim, green, yellow, red } = color
    expect(process.stdout.isTTY).not.toBe(true)
    expect([bold, dim, green, yellow, red].map((colorizer) => colorizer('a'))).toEqual([
      '\x1b[1ma\x1b[22m',
      '\x1b[2ma\x1b[22m',
      '\x1b[32ma\x1b[39m',
      '\x1b[33ma\x1b[39m',
      '\x1b[31ma\x1b[39m',
    ])
    expect(red('')).toBe('')
    expect(plain.red('a')).toBe('a')
  })
})

describe('an error', () => {
  test('is rendered as its message and the next steps', () => {
    const error = new MirrorError('Port 1 is taken.', { hints: ['mirror up --cache-port 2'] })
    expect(renderError(error, plain, { debug: false })).toBe(
      'mirror: Port 1 is taken.\n\nNext:\n  mirror up --cache-port 2\n',
    )
  })

  test('shows a stack only with DEBUG', () => {
    const error = new Error('oops')
    expect(renderError(error, plain, { debug: false })).not.toContain('at ')
    expect(renderError(error, plain, { debug: false })).toContain('DEBUG=mirror*')
    expect(renderError(error, plain, { debug: true })).toContain('render.test.ts')
  })

  test('never shows a possible secret', () => {
    const error = new Error('GET https://bob:hunter2@a.example/?token=abc failed')
    expect(renderError(error, plain, { debug: true })).not.toMatch(/hunter2|abc/)
  })

  test.each([
    ['mirror*', true],
    ['foo, mirror:store', true],
    ['*', true],
    ['foo', false],
    [undefined, false],
  ])('is debugged with DEBUG=%s: %s', (DEBUG, expected) => {
    expect(isDebugging({ DEBUG })).toBe(expected)
  })
})

const streamOf = (isTTY: boolean) => {
  const written: string[] = []
  return { written, isTTY, columns: 40, write: (text: string) => written.push(text) > 0 }
}

describe('progress', () => {
  test('is one line that fits the terminal and is removed at the end', () => {
    const stream = streamOf(true)
    const bar = createProgressBar(stream)
    bar.update(1, 2, 'x'.repeat(100))
    bar.update(0, 0, '')
    bar.end()
    expect(stream.written[0]).toContain('50 %')
    expect(stream.written[0]!.replace('\x1b[K', '').length).toBeLessThanOrEqual(40)
    expect(stream.written.at(-1)).toBe('\r\x1b[K')
  })

  test('is not shown without a terminal', () => {
    const stream = streamOf(false)
    const bar = createProgressBar(stream)
    bar.update(1, 2, '')
    bar.end()
    expect(stream.written).toEqual([])
  })
})

test('no question is asked without a terminal', () => {
  expect(createPrompt({ isTTY: true }, {})).toBeUndefined()
  expect(createPrompt({}, { isTTY: true })).toBeUndefined()
  expect(createPrompt({ isTTY: true }, { isTTY: true })).toBeDefined()
})

test('a removal is reported with the space that it frees', () => {
  const removal = { images: ['a:1'], blobs: 2, bytes: 1500, unknown: [] }
  expect(renderRemoval(removal, false)).toBe('Removed: 1 image, 2 blobs, 1.5 KiB\n  a:1')
  expect(renderRemoval(removal, true)).toMatch(/^Would remove: 1 image/)
  expect(renderRemoval({ images: [], blobs: 0, bytes: 0, unknown: [] }, true)).toBe('Nothing to remove.')
})

test('`mirror up` names the reason why it replaced a mirror', () => {
  const { endpoints } = report
  const changed = ['version', 'cache']
  const up = {
    outcome: 'replaced' as const,
    changed,
    pid: 7,
    version: '2.0.0',
    endpoints,
    dropped: nothingDropped,
    moved: [],
  }
  expect(renderUp(up, plain)).toContain('restarted (changed: version, cache)')
  const plan = { changedKeys: ['version', 'cache.listen'], omitted: [] }
  expect(renderUp(up, plain, plan)).toContain('restarted (changed: version, cache.listen)')
})

test('`mirror up` names the flags of the last start that were not given, and how to keep what they did', () => {
  const up = {
    outcome: 'replaced' as const,
    changed: ['cache'],
    pid: 7,
    version: '2.0.0',
    endpoints: report.endpoints,
    dropped: nothingDropped,
    moved: [],
  }
  const port = { name: '--cache-port', text: '--cache-port 7055', key: 'cache.listen' }
  const off = { name: '--no-registry', text: '--no-registry', key: 'registry.enabled' }
  const render = (omitted: OmittedFlag[], networks: string[] = []) =>
    renderUp({ ...up, dropped: { networks, credentials: [] } }, plain, { changedKeys: ['cache.listen'], omitted })
  expect(render([port])).toContain(
    '  --cache-port was not given this time. To keep the mirror as it was: mirror up --cache-port 7055   (or cache.listen in mirror.yaml, for every start)',
  )
  expect(render([port, off])).toContain('--cache-port and --no-registry were not given this time.')
  const together = 'mirror up --cache-port 7055 --network dev   ('
  expect(render([port], ['dev']).split(together)).toHaveLength(3)
})

test('`mirror up` names the parts that the mirror no longer has, and how to keep them', () => {
  const { endpoints } = report
  const up = {
    outcome: 'connected' as const,
    changed: ['dev'],
    container: 'mirror',
    version: '2.0.0',
    endpoints,
    moved: [],
  }
  const text = renderUp({ ...up, dropped: { networks: ['dev', 'k3d-one'], credentials: ['ghcr.io'] } }, plain)
  expect(text).toContain('Containers on dev, k3d-one no longer reach it.')
  expect(text).toContain('mirror up --network dev --network k3d-one')
  expect(text).toContain('no longer has the credentials of ghcr.io')
  expect(renderUp({ ...up, dropped: nothingDropped }, plain)).not.toContain('no longer')
})

test("`mirror up` says that the addresses of a mirror on another machine are that machine's", () => {
  const engine = 'ssh://me@there'
  const { endpoints } = report
  const moved = [{ of: 'cache', from: 'http://127.0.0.1:5055', to: undefined, on: 'tcp://10.1.2.3:2376' }]
  const up = {
    outcome: 'replaced' as const,
    changed: ['runtime'],
    container: 'mirror',
    version: '2.0.0',
    endpoints,
    dropped: nothingDropped,
    moved,
  }
  const text = renderUp({ ...up, engine }, plain)
  expect(text).toContain('(container mirror on ssh://me@there)')
  expect(text).toContain('addresses of that machine')
  expect(text).toContain('The cache was at http://127.0.0.1:5055 of tcp://10.1.2.3:2376; nothing answers there now')
  expect(renderUp(up, plain)).not.toContain('that machine')
  const status = renderStatus({ ...report, runtime: 'container', engine }, plain, now)
  expect(status).toContain('(container on ssh://me@there)')
  expect(status).toContain('addresses of that machine, not of this one')
})

describe('the next step', () => {
  const process = { outcome: 'started', endpoints: report.endpoints } as const
  const nobody = { configured: 0, installed: [], stale: [] }

  test('is to configure the installed clients when none is configured', () => {
    expect(suggestNextStep(process, { ...nobody, installed: ['docker'] })).toContain('(has docker pull through it)')
    expect(suggestNextStep(process, { ...nobody, installed: ['docker', 'podman', 'kind'] })).toContain(
      'docker, podman and kind',
    )
    expect(suggestNextStep(process, nobody)).toMatch(
      /mirror configure CLIENT .*\nTry: +docker pull \S+:\d+\/docker\.io/,
    )
    const trial = (...installed: ClientName[]) =>
      suggestNextStep(process, { ...nobody, installed })?.split('Try:   ')[1]
    expect(trial('podman', 'kind')).toMatch(/^podman pull --tls-verify=false \S+:\d+\/docker\.io\/library\/alpine$/)
    expect(trial('containerd')).toMatch(/^sudo ctr images pull --plain-http \S+\/alpine:latest$/)
    expect(trial('docker', 'podman')).toMatch(/^docker pull /)
  })

  test('is a kind cluster when the mirror is in a container and kind is installed', () => {
    expect(
      suggestNextStep({ ...process, container: 'mirror' }, { ...nobody, installed: ['docker', 'kind'] }),
    ).toContain('mirror configure kind | kind create cluster --config -')
  })

  test('is the status once clients are configured, and none when the mirror was already running', () => {
    expect(suggestNextStep(process, { ...nobody, configured: 2 })).toContain('mirror status')
    expect(suggestNextStep({ ...process, outcome: 'already-up' }, { ...nobody, configured: 2 })).toBeUndefined()
  })
})
