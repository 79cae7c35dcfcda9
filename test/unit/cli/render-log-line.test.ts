import { describe, expect, test } from 'vitest'
import { parseAgentName, createLogRenderer } from '../../../src/cli/render/log.ts'
import { createColors } from '../../../src/cli/terminal.ts'

/** at is 19:01:40 in local time. */
const at = new Date(2026, 10, 21, 19, 1, 40)
const digest = `sha256:${'0123456789abcdef'.repeat(4)}`
const dockerAgent =
  'docker/20.10.24+dfsg1 go/go1.19.8 git-commit/5d6db84 kernel/6.1.0 os/linux arch/amd64 UpstreamClient(Docker-Client/20.10.24+dfsg1 \\(linux\\))'

function render(fields: object, columns?: number, inColor = false): string {
  const renderLine = createLogRenderer({ colors: createColors(inColor), columns: () => columns, now: at.getTime() })
  return renderLine(JSON.stringify({ level: 'info', time: at.toISOString(), ...fields }))
}

const request = {
  listener: 'cache',
  method: 'GET',
  url: `/v2/library/redis/blobs/${digest}?ns=docker.io`,
  kind: 'blob',
  repository: 'docker.io/library/redis',
  reference: digest,
  status: 200,
  upstream: 'docker.io',
  cache: 'hit',
  bytes: 13_212_058,
  ms: 79,
  client: '127.0.0.1',
  agent: dockerAgent,
  msg: 'request',
}
const manifest = { ...request, kind: 'manifest', reference: '7', bytes: 1600, url: '/v2/library/redis/manifests/7' }
const own = { listener: 'registry', repository: 'team/app', upstream: undefined, cache: undefined }

describe('a request in the log', () => {
  test('is one line with time, source, content, size, duration and client', () => {
    expect(render(request)).toBe('19:01:40 HIT GET docker.io/library/redis blob 12.6 MiB 79 ms docker/20.10.24')
  })

  test.each([
    ['hit', 'HIT GET docker.io/library/redis:7 manifest 1.6 KiB'],
    ['revalidated', 'HIT GET docker.io/library/redis:7 manifest (checked) 1.6 KiB'],
    ['stale', 'STALE GET docker.io/library/redis:7 manifest 1.6 KiB'],
    ['miss', 'MISS GET docker.io/library/redis:7 manifest 1.6 KiB'],
    ['collapsed', 'JOINED GET docker.io/library/redis:7 manifest 1.6 KiB'],
    ['passed', 'PASSED GET docker.io/library/redis:7 manifest 1.6 KiB'],
  ])('says what Cache-Status says: %s', (cache, expected) => {
    expect(render({ ...manifest, cache })).toBe(`19:01:40 ${expected} 79 ms docker/20.10.24`)
  })

  test('says why content was served that the upstream did not confirm', () => {
    const warning = 'docker.io refused the connection; served tag redis:7 as of 18:20 UTC'
    expect(render({ ...manifest, cache: 'stale', warning })).toBe(
      `19:01:40 STALE GET docker.io/library/redis:7 manifest 1.6 KiB 79 ms docker/20.10.24 – ${warning}`,
    )
    // Each hit of the next seconds has the same reason.
    expect(render({ ...manifest, cache: 'hit', warning })).not.toContain(warning)
  })

  test.each([
    [{ reason: 'first' }, ''],
    [{ reason: 'removed' }, ' (removed)'],
    [{ reason: 'evicted', evictedAt: new Date(at.getTime() - 7_200_000).toISOString() }, ' (evicted 2 h ago)'],
    [{ reason: 'not\u001b granted' }, ' (not? granted)'],
  ])('says shortly why it was a miss: %o', (reason, expected) => {
    expect(render({ ...request, cache: 'miss', ...reason })).toBe(
      `19:01:40 MISS GET docker.io/library/redis blob${expected} 12.6 MiB 79 ms docker/20.10.24`,
    )
  })

  test.each([
    [
      'a manifest by digest',
      { ...manifest, reference: digest },
      'HIT GET docker.io/library/redis@sha256:0123456789ab… manifest 1.6 KiB',
    ],
    ['a HEAD', { ...manifest, method: 'HEAD', bytes: 0 }, 'HIT HEAD docker.io/library/redis:7 manifest'],
    ['a part', { ...request, status: 206, bytes: 1024 }, 'HIT GET docker.io/library/redis blob part 1 KiB'],
    ['nothing new', { ...manifest, status: 304, bytes: 0 }, 'HIT GET docker.io/library/redis:7 manifest not modified'],
    ['a check of a client', { ...manifest, probe: true }, 'CHECK GET docker.io/library/redis:7 manifest 1.6 KiB'],
    [
      'a pushed blob',
      {
        ...request,
        ...own,
        method: 'PATCH',
        kind: 'upload',
        reference: undefined,
        received: 2048,
        bytes: 0,
        status: 202,
      },
      'OK PATCH team/app upload 2 KiB',
    ],
    [
      'a published blob',
      { ...request, ...own, method: 'PUT', kind: 'upload', bytes: 0, status: 201 },
      'OK PUT team/app blob',
    ],
    [
      'a pushed manifest',
      { ...manifest, ...own, method: 'PUT', received: 500, bytes: 0, status: 201 },
      'OK PUT team/app:7 manifest 500 B',
    ],
    ['a deletion', { ...manifest, ...own, method: 'DELETE', bytes: 0, status: 202 }, 'OK DELETE team/app:7 manifest'],
    ['a read from the registry', { ...manifest, ...own, cache: 'own' }, 'LOCAL GET team/app:7 manifest 1.6 KiB'],
    [
      'a probe before a push',
      { ...request, ...own, method: 'HEAD', status: 404, bytes: 0, error: `There is no blob ${digest} in team/app.` },
      'ABSENT HEAD team/app blob',
    ],
  ])('shows %s', (_, fields, expected) => {
    expect(render(fields)).toBe(`19:01:40 ${expected} 79 ms docker/20.10.24`)
  })

  test('that failed ends with the reason', () => {
    const failed = {
      ...manifest,
      level: 'warn',
      cache: undefined,
      status: 502,
      bytes: 0,
      error: 'docker.io answered 503: busy.',
    }
    expect(render(failed)).toBe(
      '19:01:40 502 GET docker.io/library/redis:7 manifest 79 ms docker/20.10.24 – docker.io answered 503: busy.',
    )
    expect(render({ ...failed, status: 499, error: undefined })).toBe(
      '19:01:40 LEFT GET docker.io/library/redis:7 manifest 79 ms docker/20.10.24 – the client closed the connection',
    )
  })

  test.each([
    [60, '19:01:40 HIT GET docker.io/library/redis blob 12.6 MiB 79 ms'],
    [80, '19:01:40 HIT GET docker.io/library/redis blob 12.6 MiB 79 ms docker/20.10.24'],
    [200, '19:01:40 HIT GET docker.io/library/redis blob 12.6 MiB 79 ms docker/20.10.24'],
  ])('fits %d columns', (columns, expected) => {
    expect(render(request, columns)).toBe(expected)
  })

  test.each([
    [60, 'blob 12.6 MiB 79 ms'],
    [80, 'blob 12.6 MiB 79 ms docker/20.10.24'],
    [87, 'blob 12.6 MiB 79 ms docker/20.10.24'],
    [88, 'blob 12.6 MiB 79 ms docker/20.10.24 mx3su7rht3j'],
    [undefined, 'blob 12.6 MiB 79 ms docker/20.10.24 mx3su7rht3j'],
  ])('ends with its id where %s columns have room', (columns, expected) => {
    expect(render({ id: 'mx3su7rht3j', ...request }, columns)).toBe(
      `19:01:40 HIT GET docker.io/library/redis ${expected}`,
    )
  })

  test('that failed has its id, on each width', () => {
    const failed = {
      id: 'mx3su7rht3j',
      ...manifest,
      cache: undefined,
      status: 404,
      error: 'docker.io does not have it.',
    }
    for (const columns of [60, 200, undefined]) expect(render(failed, columns)).toContain('mx3su7rht3j')
    expect(render(failed)).toBe(
      '19:01:40 404 GET docker.io/library/redis:7 manifest 79 ms docker/20.10.24 mx3su7rht3j – docker.io does not have it.',
    )
  })

  const long = {
    ...manifest,
    repository: 'registry.access.redhat.com/ubi9/ubi-minimal-with-a-long-name',
    cache: 'miss',
  }
  test.each([60, 80, 200])('with a long name fits %d columns too', (columns) => {
    const text = render(long, columns)
    expect(text.length).toBeLessThanOrEqual(columns)
    expect(text).not.toContain('\n')
    expect(text).toMatch(/^19:01:40 MISS GET regist\S+name:7 manifest 1\.6 KiB 79 ms/)
  })

  test('that failed is wrapped, not cut, on a narrow terminal', () => {
    const error = 'registry.corp.example is not mirrored (asked for team/app). To mirror it, add it to mirror.yaml.'
    const failed = { ...manifest, repository: 'registry.corp.example/team/app', cache: undefined, status: 404, error }
    expect(render(failed, 60)).toBe(
      [
        '19:01:40 404 GET registry.corp.example/team/app:7 manifest',
        '         79 ms docker/20.10.24 – registry.corp.example is',
        '         not mirrored (asked for team/app). To mirror it,',
        '         add it to mirror.yaml.',
      ].join('\n'),
    )
  })

  test('that an older version logged is shown with its path', () => {
    const { kind: _k, repository: _r, reference: _f, listener: _l, ...old } = manifest
    expect(render(old)).toBe('19:01:40 HIT GET /v2/library/redis/manifests/7 1.6 KiB 79 ms docker/20.10.24')
  })

  test('has colours for its source, and the same text without colours', () => {
    const bare = (text: string) => text.replaceAll(/\x1b\[\d+m/g, '') // eslint-disable-line no-control-regex
    expect(render(request, 80, true)).toContain('\x1b[32mHIT\x1b[39m')
    expect(render({ ...request, status: 502, error: 'x' }, 80, true)).toContain('\x1b[31m502\x1b[39m')
    for (const fields of [request, manifest]) expect(bare(render(fields, 80, true))).toBe(render(fields, 80))
  })

  test('cannot send control characters to the terminal', () => {
    const evil = '\x1b[2J\x07'
    const text = render({ ...manifest, repository: `a${evil}`, reference: evil, agent: `x${evil}/1`, method: evil })
    // eslint-disable-next-line no-control-regex
    expect(text).not.toMatch(/[\x00-\x1f]/)
  })
})

describe('a user agent', () => {
  test.each([
    [dockerAgent, 'docker/20.10.24'],
    ['containerd/v2.0.0', 'containerd/2.0.0'],
    ['containers/5.23.1 (github.com/containers/image)', 'containers/5.23.1'],
    ['crane/v0.20.2 go-containerregistry/v0.20.2', 'crane/0.20.2'],
    ['Buildah/1.28.2', 'Buildah/1.28.2'],
    ['curl', 'curl'],
    ['', undefined],
    [undefined, undefined],
    [`${'x'.repeat(300)}/1`, 'x'.repeat(40)],
  ])('is a product and its version: %s', (agent, expected) => {
    expect(parseAgentName(agent)).toBe(expected)
  })
})

const pull = {
  msg: 'pull',
  listener: 'cache',
  image: 'docker.io/library/redis:7',
  digest,
  bytes: 47_395_635,
  hits: 1,
  misses: 8,
  bytesFromUpstream: 47_394_000,
  ms: 3240,
  client: '127.0.0.1',
  agent: dockerAgent,
}

describe('the summary of a pull', () => {
  test.each([
    [
      60,
      `19:01:40 PULL docker.io/library/redis:7 45.2 MiB: 1 hit, 8
         misses, 45.2 MiB from upstream, 3.2 s
         docker/20.10.24`,
    ],
    [
      80,
      `19:01:40 PULL docker.io/library/redis:7 45.2 MiB: 1 hit, 8 misses, 45.2 MiB from
         upstream, 3.2 s docker/20.10.24`,
    ],
    [
      200,
      '19:01:40 PULL docker.io/library/redis:7 45.2 MiB: 1 hit, 8 misses, 45.2 MiB from upstream, 3.2 s docker/20.10.24',
    ],
  ])('fits %d columns', (columns, expected) => {
    expect(render(pull, columns)).toBe(expected)
  })

  test('names the client that is not on this machine, a digest in short, and what failed', () => {
    const fields = {
      ...pull,
      image: `ghcr.io/a/b@${digest}`,
      client: '172.18.0.2',
      agent: 'containerd/v2.0.0',
      failed: 2,
    }
    expect(render(fields)).toBe(
      '19:01:40 PULL ghcr.io/a/b@sha256:0123456789ab… 45.2 MiB: 1 hit, 8 misses, 45.2 MiB from upstream, 2 failed, 3.2 s containerd/2.0.0 172.18.0.2',
    )
  })

  test('of a pushed image says that it is local', () => {
    expect(render({ ...pull, listener: 'registry', image: 'app:1' })).toBe(
      '19:01:40 PULL app:1 45.2 MiB: from the local registry, 3.2 s docker/20.10.24',
    )
  })

  test('of a push has the same form', () => {
    const push = { ...pull, msg: 'push', listener: 'registry', image: 'team/app:1', blobs: 3, held: 2 }
    expect(render(push)).toBe('19:01:40 PUSH team/app:1 45.2 MiB: 3 blobs, 2 there already, 3.2 s docker/20.10.24')
  })
})

describe('any other line of the log', () => {
  test('is shown as its message with its fields', () => {
    expect(render({ level: 'warn', url: 'http://a', n: 1, msg: 'it is odd' })).toBe(
      '19:01:40 warn  it is odd  url=http://a n=1',
    )
  })

  test('names where the mirror listens', () => {
    const endpoints = { cache: ['http://127.0.0.1:5055'], registry: [], networks: { kind: 'http://172.18.0.1:5055' } }
    expect(render({ endpoints, msg: 'the mirror is up' }, 60)).toBe(
      [
        '19:01:40 info  the mirror is up',
        '         endpoints.cache=http://127.0.0.1:5055',
        '         endpoints.networks.kind=http://172.18.0.1:5055',
      ].join('\n'),
    )
  })

  test('shortens a long list, and keeps the lines of a stack', () => {
    const images = ['a', 'b', 'c', 'd', 'e', 'f', 'g']
    expect(render({ images, msg: 'removed cached content' })).toBe(
      '19:01:40 info  removed cached content  images=a,b,c,d,e,… (7 in all)',
    )
    expect(render({ level: 'error', error: 'Error: oops\n    at x', msg: 'a request failed' })).toBe(
      '19:01:40 error a request failed\n  error=Error: oops\n      at x',
    )
  })

  test.each(['', 'Error: plain text', '{broken', '[1]', '"x"'])(
    'stays as it is when it is no JSON object: %j',
    (line) => {
      const renderLine = createLogRenderer({ colors: createColors(false), columns: () => 10, now: at.getTime() })
      expect(renderLine(line)).toBe(line)
    },
  )

  test('cannot send control characters to the terminal', () => {
    const renderLine = createLogRenderer({ colors: createColors(false), columns: () => undefined, now: 0 })
    expect(renderLine('{"msg":"\\u001b[2Jx","host":"\\u0007"}')).toBe('?[2Jx  host=?')
    expect(renderLine('\x1b[2Jplain')).toBe('?[2Jplain')
  })

  test('of another day is shown below its date', () => {
    const renderLine = createLogRenderer({ colors: createColors(false), columns: () => undefined, now: at.getTime() })
    const line = (date: Date) => renderLine(JSON.stringify({ level: 'info', time: date.toISOString(), msg: 'x' }))
    expect(line(new Date(2026, 10, 20, 8, 0, 1))).toBe('2026-11-20\n08:00:01 info  x')
    expect(line(new Date(2026, 10, 20, 8, 0, 2))).toBe('08:00:02 info  x')
    expect(line(at)).toBe('2026-11-21\n19:01:40 info  x')
  })
})
