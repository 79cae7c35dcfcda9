import { describe, expect, test } from 'vitest'
import type { RequestReport, TracedContent, TraceReport } from '../../../src/admin/activity.ts'
import { isComplete, isFinished, listChanges, renderFollow, renderTrace } from '../../../src/cli/render/trace.ts'
import { createColors } from '../../../src/cli/terminal.ts'
import type { ClientRequest } from '../../../src/clients/requests.ts'

const now = new Date(2026, 10, 21, 19, 5).getTime()
const ago = (ms: number) => new Date(now - ms).toISOString()
const digest = (letter: string) => `sha256:${letter.repeat(64)}`

const part = (kind: TracedContent['kind'], letter: string, changed: Partial<TracedContent> = {}): TracedContent => ({
  kind,
  digest: digest(letter),
  size: 1000,
  state: 'held',
  isNeeded: true,
  grants: [{ repository: 'docker.io/library/alpine', identity: 'anonymous', isValid: true }],
  ...changed,
})

const request: RequestReport = {
  id: 'mx3tiow4ud0',
  at: ago(60_000),
  listener: 'cache',
  method: 'GET',
  kind: 'manifest',
  repository: 'docker.io/library/alpine',
  reference: '3.20',
  status: 200,
  cache: 'miss',
  outcome: 'miss',
  reason: 'first',
  bytes: 693,
  ms: 124,
  client: '127.0.0.1',
  agent: 'containerd/2.1.4',
}

const clients: ClientRequest[] = [
  {
    client: 'docker',
    target: 'system (/etc/docker)',
    via: 'mirror',
    url: 'http://127.0.0.1:5055/v2/library/alpine/manifests/3.20?ns=docker.io',
    fallback: 'https://registry-1.docker.io/v2/library/alpine/manifests/3.20',
    notes: [],
  },
  {
    client: 'podman',
    via: 'origin',
    url: 'https://registry-1.docker.io/v2/library/alpine/manifests/3.20',
    notes: ['It is not configured by mirror.'],
    fix: 'mirror configure podman',
  },
]

const layer = part('layer', 'd', {
  state: 'arriving',
  parent: digest('b'),
  size: 4_000_000,
  download: {
    digest: digest('d'),
    repository: 'docker.io/library/alpine',
    arrived: 1_000_000,
    size: 4_000_000,
    followers: 2,
    bytesPerSecond: 500_000,
    startedAt: ago(2000),
  },
})

const trace = {
  at: ago(0),
  listener: 'cache',
  image: 'docker.io/library/alpine:3.20',
  registry: 'docker.io',
  repository: 'library/alpine',
  platform: 'linux/amd64',
  upstream: { url: 'https://registry-1.docker.io', credential: 'anonymous', state: 'ok' },
  tag: {
    name: '3.20',
    digest: digest('a'),
    cachedAt: ago(7_200_000),
    checkedAt: ago(180_000),
    movedFrom: { digest: digest('0'), at: ago(7_200_000) },
  },
  digest: digest('a'),
  content: [
    part('index', 'a'),
    part('manifest', 'b', { platform: 'linux/amd64', parent: digest('a') }),
    part('config', 'c', { state: 'missing', reason: 'evicted', evictedAt: ago(7_200_000), parent: digest('b') }),
    layer,
    part('manifest', 'e', {
      platform: 'linux/arm64',
      state: 'missing',
      reason: 'first',
      isNeeded: false,
      parent: digest('a'),
    }),
  ],
  requests: [request],
  next: {
    result: 'partly',
    why: [
      '1 part of 4 must be fetched from docker.io: 1000 B.',
      '1 part (config) was evicted 2 h ago to keep a limit of the cache.',
    ],
    upstreamRequests: 2,
    hubPulls: 0,
    countsPulls: true,
    bytes: 1000,
  },
  clients,
} as const satisfies TraceReport & { clients: ClientRequest[] }

const options = (columns: number | undefined, inColor = false) => ({ colors: createColors(inColor), columns, now })

describe('the trace of an image on a screen', () => {
  test('begins with what a pull does now and why, and has each fact in a section', () => {
    expect(renderTrace(trace, options(200)).split('\n')).toEqual([
      "A pull of docker.io/library/alpine:3.20 now is served in part: 2 requests to docker.io, 0 pulls of Docker Hub's quota, 1000 B to fetch.",
      '  1 part of 4 must be fetched from docker.io: 1000 B.',
      '  1 part (config) was evicted 2 h ago to keep a limit of the cache.',
      '',
      'Clients',
      '  docker    asks http://127.0.0.1:5055/v2/library/alpine/manifests/3.20?ns=docker.io',
      '            configured for system (/etc/docker)',
      '            when the mirror fails: registry-1.docker.io',
      '  podman    asks registry-1.docker.io itself: https://registry-1.docker.io/v2/library/alpine/manifests/3.20',
      '            It is not configured by mirror.',
      '            fix: mirror configure podman',
      '',
      'Upstream',
      '  address   https://registry-1.docker.io for docker.io',
      '  asked     without a credential',
      '  state     ok',
      '  platform  linux/amd64',
      '',
      'Tag',
      `  digest    ${digest('a')}`,
      '  since     2 h ago',
      '  confirmed 3 min ago',
      `  moved     2 h ago from ${digest('0')}`,
      '',
      'Content',
      '  held index sha256:aaaaaaaaaaaa… 1000 B',
      '    held manifest linux/amd64 sha256:bbbbbbbbbbbb… 1000 B',
      '      missing config sha256:cccccccccccc… 1000 B (evicted 2 h ago)',
      '      arriving layer sha256:dddddddddddd… 3.8 MiB 25 %, 488 KiB/s, 2 clients',
      '  not held, and not needed for linux/amd64: linux/arm64',
      '',
      'Vouched for by',
      '  4 of 4    parts by docker.io/library/alpine, anonymously',
      '',
      'Last requests, oldest first',
      '  19:04:00 MISS GET docker.io/library/alpine:3.20 manifest (never in the cache) 693 B 124 ms containerd/2.1.4 mx3tiow4ud0',
    ])
  })

  test('names repositories whose parts do not count for this image', () => {
    const grant = { identity: 'anonymous', isValid: false } as const
    const own = { repository: 'docker.io/library/alpine', isValid: false, identity: 'credential' } as const
    const grants = [{ ...grant, repository: 'docker.io/library/nginx' }, own]
    const text = renderTrace({ ...trace, content: [part('index', 'a', { grants })] }, options(200))
    expect(text).toContain('docker.io/library/nginx also holds 1 of these parts; it does not count for this image')
    expect(text).toContain('docker.io/library/alpine holds 1 of these parts with another credential')
  })

  test('has no section about the tag where the registry is not mirrored', () => {
    const { upstream: _, ...rest } = trace
    const text = renderTrace({ ...rest, tag: { name: 'latest' }, content: [] }, options(200))
    expect(text).not.toMatch(/^Tag$|not pushed/m)
    const pushed = { ...rest, listener: 'registry' as const, tag: { name: 'latest' }, content: [] }
    expect(renderTrace(pushed, options(200))).toContain('not pushed')
  })

  test('says why the clients are not known', () => {
    const text = renderTrace({ ...trace, clients: [], clientsError: '/a.json is damaged.' }, options(200))
    expect(text).toMatch(/^Clients\n {2}not known +\/a\.json is damaged\.$/m)
  })

  test('has the last requests with the newest at the bottom, as the log has them', () => {
    const requests = Array.from({ length: 12 }, (_, age) => ({ ...request, id: `mx3tiow4u${age + 10}`, at: ago(age) }))
    const lines = renderTrace({ ...trace, requests }, options(200)).split('\n')
    const ids = lines.slice(lines.indexOf('Last requests, oldest first') + 1).map((line) => line.split(' ').at(-1))
    expect(ids).toEqual([9, 8, 7, 6, 5, 4, 3, 2, 1, 0].map((age) => `mx3tiow4u${age + 10}`))
  })

  test.each([40, 60, 80, 200])('has the whole of a request, with its client and id, on %i columns', (columns) => {
    const text = renderTrace(
      { ...trace, request: { ...request, kind: 'blob', reference: digest('d') } },
      options(columns),
    )
    for (const section of ['Request', 'Last requests, oldest first']) {
      const [shown] = text.slice(text.indexOf(`${section}\n`)).split('\n\n')
      expect(shown!.replaceAll(/\s+/g, ' ')).toMatch(/docker\.io\/library\/alpine.* containerd\/2\.1\.4 mx3tiow4ud0$/)
    }
  })

  test.each([60, 80, 200])('fits %i columns', (columns) => {
    for (const line of renderTrace(trace, options(columns)).split('\n'))
      expect(line.length, line).toBeLessThanOrEqual(columns)
  })

  test('replaces control characters of upstreams and clients', () => {
    const evil = '\u001b[2Jx'
    const text = renderTrace(
      {
        ...trace,
        image: `docker.io/${evil}`,
        content: [part('index', 'a', { platform: evil })],
        requests: [{ ...request, agent: evil, repository: evil }],
        next: { ...trace.next, why: [evil] },
        clients: [{ ...clients[0]!, url: 'http://127.0.0.1/', target: evil, notes: [evil] }],
      },
      options(undefined),
    )
    expect(text).not.toContain('\u001b')
    expect(text).toContain('?[2Jx')
  })

  test('of a pushed image names no upstream', () => {
    const { upstream: _, ...rest } = trace
    const pushed = {
      ...rest,
      listener: 'registry' as const,
      registry: 'localhost:5001',
      image: 'localhost:5001/app:1',
      next: { result: 'hit' as const, why: [], upstreamRequests: 0, hubPulls: 0, bytes: 0 },
    }
    const text = renderTrace(pushed, options(undefined))
    expect(text.split('\n')[0]).toBe(
      'A pull of localhost:5001/app:1 now is served from the registry: no upstream is asked.',
    )
    expect(text).not.toContain('Upstream')
  })
})

describe('the trace of an image that is followed', () => {
  test('has a bar for each part that a pull needs', () => {
    const lines = renderFollow(trace, options(100)).split('\n')
    expect(lines).toContain('████████████████████ index    sha256:aaaaaaaa 1000 B held')
    expect(lines).toContain('█████░░░░░░░░░░░░░░░ layer    sha256:dddddddd 3.8 MiB 25 %, 488 KiB/s, 2 clients')
    expect(lines.at(-1)).toBe('The pull is under way. Ctrl-C ends this.')
    const idle = { ...trace, content: trace.content.filter(({ state }) => state !== 'arriving') }
    expect(renderFollow(idle, options(100)).split('\n').at(-1)).toBe('Waiting for requests. Ctrl-C ends this.')
    for (const columns of [60, 200])
      for (const line of renderFollow(trace, options(columns)).split('\n'))
        expect(line.length).toBeLessThanOrEqual(columns)
  })

  test.each([
    [60, '███░░░░░░░ layer    sha256:dddddddd 3.8 MiB 25 %, 488 KiB/s'],
    [45, '███░░░░░░░ layer    3.8 MiB 25 %'],
  ])('keeps one row for each part on %i columns', (columns, row) => {
    const lines = renderFollow(trace, options(columns)).split('\n')
    const rows = lines.filter((line) => /^[█░]/.test(line))
    expect(rows).toHaveLength(4)
    expect(rows.at(-1)).toBe(row)
    expect(lines[lines.indexOf(row) + 1]).toBe('')
  })

  test('says when the pull is complete, once', () => {
    const content = trace.content.filter(({ isNeeded }) => isNeeded).map((one) => part(one.kind, one.digest.at(-1)!))
    const complete = { ...trace, content, next: { ...trace.next, result: 'hit' as const } }
    expect(isComplete(trace)).toBe(false)
    expect(renderFollow(complete, options(100)).split('\n').at(-1)).toBe('The pull is complete: everything is held.')
    const other = part('layer', 'f', { ...layer, digest: digest('f'), isNeeded: false })
    expect(isComplete({ ...complete, content: [...content, other] })).toBe(true)
    expect(isFinished({ ...complete, content: [...content, other] })).toBe(false)
    expect(isFinished(complete)).toBe(true)
    expect(listChanges(trace, complete)).toEqual([
      `held config ${digest('c')} 1000`,
      `held layer ${digest('d')} 1000`,
      'complete docker.io/library/alpine:3.20',
    ])
    expect(listChanges(complete, complete)).toEqual([])
  })

  test('has one line for each change in a pipe, and progress in steps of ten percent', () => {
    expect(listChanges(undefined, trace)).toHaveLength(4)
    const move = (arrived: number): TraceReport => ({
      ...trace,
      content: [{ ...layer, download: { ...layer.download!, arrived } }],
    })
    expect(listChanges(trace, move(1_100_000))).toEqual([])
    expect(listChanges(trace, move(1_300_000))).toEqual([`arriving 30 % layer ${digest('d')} 4000000`])
  })
})
