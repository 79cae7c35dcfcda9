import { describe, expect, test } from 'vitest'
import { createPaint, wantsColor } from '../../../src/cli/paint.ts'
import { createProgressBar } from '../../../src/cli/progress-bar.ts'
import { createPrompt } from '../../../src/cli/prompt.ts'
import { isDebugging, renderError } from '../../../src/cli/render-error.ts'
import { renderImages } from '../../../src/cli/render-images.ts'
import { renderRemoval } from '../../../src/cli/render-removal.ts'
import { renderStatus } from '../../../src/cli/render-status.ts'
import { renderUp } from '../../../src/cli/render-up.ts'
import { MirrorError } from '../../../src/lib/errors.ts'
import type { StatusReport } from '../../../src/server/admin-api.ts'

const plain = createPaint(false)
const color = createPaint(true)
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
    'ghcr.io': { hits: 100, misses: 50, bytesFromUpstream: 1e8, state: 'open' },
  },
  storage: { path: '/data', bytes: 5e9, maxBytes: 20e9, blobs: 12, manifests: 3, pushedBytes: 0 },
  refusedHosts: {},
  refusedRegistries: {},
  images: [image('docker.io/library/alpine:3.20', '2026-11-21T11:57:00Z')],
}

describe('the status', () => {
  test('tells what matters first, in aligned columns', () => {
    expect(renderStatus(report, plain, now)).toBe(`● mirror 1.2.3 is up for 3 h 12 min (pid 42)

  cache     http://127.0.0.1:5055
            http://172.18.0.1:5055 (network kind)
  admin     http://127.0.0.1:5056
  pulls     1,000 hits, 250 misses: 80 % from the cache
  saved     3.4 GB of 5.0 GB served since 2026-11-01; 1.6 GB came from upstream
  disk      5.0 GB, 20.0 GB allowed, 25 % full (/data)
  sends     blobs by the kernel (sendfile)

UPSTREAM   HITS  MISSES  FETCHED  STATE  QUOTA
docker.io   900     200   1.5 GB  ok     76 of 100 pulls left in 6 h
ghcr.io     100      50   100 MB  down

IMAGE                            SIZE  PULLS  LAST PULLED  CHECKED
docker.io/library/alpine:3.20  3.4 MB      3  3 min ago    –`)
  })

  test('says what to try when nothing is cached, with the address that is served', () => {
    const empty = {
      ...report,
      images: [],
      upstreams: {},
      endpoints: { ...report.endpoints, cache: ['http://127.0.0.1:7'] },
    }
    expect(renderStatus(empty, plain, now)).toContain('docker pull 127.0.0.1:7/docker.io/library/alpine')
  })

  test('tells of errors only when there are any', () => {
    const text = renderStatus(
      { ...report, cache: { ...report.cache, staleServed: 2, errors: 3, digestMismatches: 1 } },
      plain,
      now,
    )
    expect(text).toMatch(/stale +2 answers/)
    expect(text).toMatch(/errors +3/)
    expect(text).toMatch(/damaged +1 bodies/)
  })

  test('names refused hosts without letting them write to the terminal', () => {
    const refusedHosts = { 'evil\x1b[2J.example': 2 }
    expect(renderStatus({ ...report, refusedHosts }, plain, now)).toContain('evil?[2J.example (2×)')
  })

  test('shows the images pulled last, and how many there are besides', () => {
    const images = Array.from({ length: 20 }, (_, day) =>
      image(`docker.io/library/a:${day}`, `2026-10-${String(day + 10)}T00:00:00Z`),
    )
    const text = renderStatus({ ...report, images }, plain, now)
    expect(text).toContain('library/a:19')
    expect(text).not.toContain('library/a:4 ')
    expect(text).toContain('and 5 more: mirror cache ls')
  })

  test('has the same words in colour', () => {
    // eslint-disable-next-line no-control-regex
    const bare = renderStatus(report, color, now).replaceAll(/\x1b\[\d+m/g, '')
    expect(bare).toBe(renderStatus(report, plain, now))
    expect(renderStatus(report, color, now)).toContain('\x1b[31mdown\x1b[39m')
  })
})

describe('images', () => {
  test('have short digests and no future', () => {
    const name = `ghcr.io/a/b@sha256:${'0123456789abcdef'.repeat(4)}`
    const text = renderImages([image(name, '2026-11-21T12:00:30Z')], plain, now)
    expect(text).toContain('ghcr.io/a/b@sha256:0123456789ab… ')
    expect(text).toContain('0 s ago')
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
})

describe('an error', () => {
  test('is what happened, and what to do next', () => {
    const error = new MirrorError('Port 1 is taken.', { hints: ['mirror up --cache-port 2'] })
    expect(renderError(error, plain, { debug: false })).toBe(
      'mirror: Port 1 is taken.\n\nNext:\n  mirror up --cache-port 2\n',
    )
  })

  test('shows a stack only to who debugs', () => {
    const error = new Error('oops')
    expect(renderError(error, plain, { debug: false })).not.toContain('at ')
    expect(renderError(error, plain, { debug: false })).toContain('DEBUG=mirror*')
    expect(renderError(error, plain, { debug: true })).toContain('render.test.ts')
  })

  test('never shows what could be a secret', () => {
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
  test('is one line that fits a terminal, and leaves nothing', () => {
    const stream = streamOf(true)
    const bar = createProgressBar(stream)
    bar.update(1, 2, 'x'.repeat(100))
    bar.update(0, 0, '')
    bar.end()
    expect(stream.written[0]).toContain('50 %')
    expect(stream.written[0]!.replace('\x1b[K', '').length).toBeLessThanOrEqual(40)
    expect(stream.written.at(-1)).toBe('\r\x1b[K')
  })

  test('is silent elsewhere', () => {
    const stream = streamOf(false)
    const bar = createProgressBar(stream)
    bar.update(1, 2, '')
    bar.end()
    expect(stream.written).toEqual([])
  })
})

test('nobody is asked without a terminal', () => {
  expect(createPrompt({ isTTY: true }, {})).toBeUndefined()
  expect(createPrompt({}, { isTTY: true })).toBeUndefined()
  expect(createPrompt({ isTTY: true }, { isTTY: true })).toBeDefined()
})

test('a removal is told with what it frees', () => {
  const removal = { images: ['a:1'], blobs: 2, bytes: 1500, unknown: [] }
  expect(renderRemoval(removal, false)).toBe('Removed: 1 image, 2 blobs, 1.5 KiB\n  a:1')
  expect(renderRemoval(removal, true)).toMatch(/^Would remove: 1 image/)
  expect(renderRemoval({ images: [], blobs: 0, bytes: 0, unknown: [] }, true)).toBe('Nothing to remove.')
})

test('a replaced mirror says why', () => {
  const { endpoints } = report
  const changed = ['version', 'cache']
  const up = { outcome: 'replaced' as const, changed, pid: 7, version: '2.0.0', endpoints, moved: [] }
  expect(renderUp(up, plain)).toContain('in place of the one before: changed: version, cache')
})

test('a mirror on another machine says whose its addresses are', () => {
  const engine = 'ssh://me@there'
  const { endpoints } = report
  const moved = [{ of: 'cache', from: 'http://127.0.0.1:5055', to: undefined, on: 'tcp://10.1.2.3:2376' }]
  const up = {
    outcome: 'replaced' as const,
    changed: ['runtime'],
    container: 'mirror',
    version: '2.0.0',
    endpoints,
    moved,
  }
  const text = renderUp({ ...up, engine }, plain)
  expect(text).toContain('(container mirror on ssh://me@there)')
  expect(text).toContain('addresses of that machine')
  expect(text).toContain('The cache was at http://127.0.0.1:5055 of tcp://10.1.2.3:2376; nobody answers there now')
  expect(renderUp(up, plain)).not.toContain('that machine')
  const status = renderStatus({ ...report, runtime: 'container', engine }, plain, now)
  expect(status).toContain('(container on ssh://me@there)')
  expect(status).toContain('addresses of that machine, not of this one')
})
