import { createHash } from 'node:crypto'
import type {
  ClientReport,
  ConfiguredClientReport,
  DoctorReport,
  DownloadReport,
  HistoryBucket,
  HistoryReport,
  LiveSummary,
  RequestReport,
} from '../../../src/admin/activity.ts'
import type { ImageReport, PushedImageReport, StatusReport, UpstreamReport } from '../../../src/admin/api.ts'

/** Holds what a seeded server answers. */
export interface Seed {
  secret?: string
  status: StatusReport
  images: ImageReport[]
  pushed: PushedImageReport[]
  clients: ClientReport[]
  configured: ConfiguredClientReport[]
  requests: RequestReport[]
  downloads: DownloadReport[]
  doctor: { report?: DoctorReport; canRun: boolean }
  summary: () => LiveSummary
  history: (range: HistoryReport['range']) => HistoryReport
  /** Answers a change; default: a removal of one image. */
  answer?: (path: string) => unknown
}

const minute = 60_000
const hour = 60 * minute
const day = 24 * hour
const MiB = 1024 ** 2

const toDigest = (text: string) => `sha256:${createHash('sha256').update(text).digest('hex')}`
const iso = (ago: number) => new Date(Date.now() - ago).toISOString()

const names = [
  'docker.io/library/redis:7.4',
  'docker.io/library/postgres:17',
  'docker.io/library/nginx:1.27-alpine',
  'docker.io/library/node:24-slim',
  'docker.io/library/python:3.13',
  'docker.io/library/alpine:3.20',
  'docker.io/grafana/grafana:12.1.0',
  'ghcr.io/cloudnative-pg/postgresql:17.5',
  'ghcr.io/astral-sh/uv:0.8-python3.13-bookworm-slim',
  'quay.io/prometheus/prometheus:v3.5.0',
  'quay.io/jetstack/cert-manager-controller:v1.18.2',
  'registry.k8s.io/pause:3.10',
  'registry.k8s.io/coredns/coredns:v1.12.1',
  'mcr.microsoft.com/playwright:v1.55.0-noble',
  'nvcr.io/nvidia/cuda@sha256:9f2c04a8b2c0b8f7c1d8d64b9a1e8a2f4f8d9a0b7c6d5e4f3a2b1c0d9e8f7a6b',
]

/** Creates the data of a mirror that several clients have used for a month. */
export function createSeed(): Seed {
  const images = names.map((name, index): ImageReport => {
    return {
      name,
      digest: toDigest(name),
      bytes: Math.round((((index * 97) % 23) + 1.3) * 19 * MiB),
      pulls: 3 + ((index * 31) % 58),
      bytesSaved: (2 + ((index * 31) % 58)) * (40 + index) * MiB,
      lastPulled: iso(((index * index * 7) % 90) * 40 * minute + 40_000),
      checkedAt: iso(((index * 13) % 50) * minute),
      evictionRank: names.length - index,
      movedAt: iso(index * 3 * day + hour),
      ...(index === 3 ? { outdated: { digest: toDigest('newer'), at: iso(hour) } } : {}),
    }
  })
  const hub: UpstreamReport = {
    hits: 1893,
    misses: 214,
    bytesFromUpstream: 3.2 * 1024 * MiB,
    state: 'ok',
    rateLimit: { limit: 100, remaining: 76, windowSeconds: 21_600, source: '203.0.113.7', at: iso(20 * minute) },
    pullsAvoided: 418,
  }
  const upstreams: StatusReport['upstreams'] = {
    'docker.io': hub,
    'ghcr.io': { hits: 412, misses: 77, bytesFromUpstream: 900 * MiB, state: 'ok' },
    'quay.io': {
      hits: 188,
      misses: 64,
      bytesFromUpstream: 410 * MiB,
      state: 'failing',
      lastError: {
        message: 'quay.io answered 502 Bad Gateway to GET /v2/prometheus/prometheus/manifests/v3.5.0',
        at: iso(3 * minute),
      },
    },
    'registry.k8s.io': { hits: 240, misses: 31, bytesFromUpstream: 220 * MiB, state: 'ok' },
    'mcr.microsoft.com': { hits: 12, misses: 19, bytesFromUpstream: 1200 * MiB, state: 'ok' },
  }
  const sum = (key: 'hits' | 'misses' | 'bytesFromUpstream') =>
    Object.values(upstreams).reduce((all, upstream) => all + upstream[key], 0)
  const [hits, misses] = [sum('hits'), sum('misses')]
  const status: StatusReport = {
    version: '0.2.0',
    running: true,
    runtime: 'process',
    pid: 4242,
    startedAt: iso(3 * day + 4 * hour),
    uptimeSeconds: 3 * 86_400,
    since: iso(31 * day),
    endpoints: {
      cache: ['http://127.0.0.1:5055'],
      registry: ['http://127.0.0.1:5001'],
      admin: ['http://127.0.0.1:5056'],
      networks: {},
    },
    networks: { kind: { state: 'listening', url: 'http://172.18.0.1:5055' } },
    sendBlob: 'sendfile',
    cache: {
      pulls: 812,
      requests: hits + misses,
      hits,
      misses,
      collapsed: 12,
      revalidated: 500,
      staleServed: 14,
      errors: 3,
      digestMismatches: 0,
      hitRatio: hits / (hits + misses),
      bytesServed: 61 * 1024 * MiB,
      bytesFromUpstream: sum('bytesFromUpstream'),
      bytesSaved: 55 * 1024 * MiB,
    },
    upstreams,
    storage: {
      path: '/home/me/.local/share/mirror/cache/v2',
      bytes: 17.4 * 1024 * MiB,
      maxBytes: 20 * 1024 * MiB,
      blobs: 214,
      manifests: 61,
      pushedBytes: 310 * MiB,
      freeBytes: 118 * 1024 * MiB,
      minFree: 1024 * MiB,
    },
    registry: { repositories: 2, tags: 4, manifests: 4, bytes: 310 * MiB, uploads: 0 },
    refusedHosts: {},
    refusedRegistries: { 'registry.corp.example': 3 },
    images,
  }
  const summary = (): LiveSummary => ({
    at: new Date().toISOString(),
    cache: status.cache,
    today: { pulls: 47, bytesSaved: 3.4 * 1024 * MiB, hits: 212, misses: 24 },
    upstreams,
    storage: status.storage,
    offline: false,
  })
  return {
    status,
    images,
    pushed: ['app:1.2', 'app:1.3', 'team/worker:latest', 'team/worker:dev'].map((name, index) => ({
      name,
      digest: toDigest(name),
      bytes: (40 + index * 21) * MiB,
      pushedAt: iso(index * 7 * hour + 5 * minute),
    })),
    clients: createClients(),
    configured: [
      { client: 'docker', title: 'Docker, /etc/docker/daemon.json', since: iso(30 * day), lastSeen: iso(9000) },
      { client: 'kind', title: 'the kind cluster dev', since: iso(2 * day), lastSeen: iso(2 * minute) },
      { client: 'minikube', title: 'the minikube profile test', since: iso(3 * hour) },
    ],
    requests: createRequests(120),
    downloads: [
      {
        digest: toDigest('one'),
        repository: 'mcr.microsoft.com/playwright',
        arrived: 210 * MiB,
        size: 640 * MiB,
        followers: 2,
        bytesPerSecond: 11 * MiB,
        startedAt: iso(20_000),
      },
      {
        digest: toDigest('two'),
        repository: 'docker.io/library/python',
        arrived: 30 * MiB,
        size: 61 * MiB,
        followers: 1,
        bytesPerSecond: 6.2 * MiB,
        startedAt: iso(5000),
      },
    ],
    doctor: { report: createFindings(), canRun: true },
    summary,
    history: createHistory,
  }
}

/** Creates the data of a mirror that nobody has used yet. */
export function createEmptySeed(): Seed {
  const seed = createSeed()
  const zero = Object.fromEntries(
    Object.keys(seed.status.cache).map((key) => [key, 0]),
  ) as unknown as StatusReport['cache']
  const status = {
    ...seed.status,
    cache: zero,
    images: [],
    upstreams: {},
    refusedRegistries: {},
    storage: { ...seed.status.storage, bytes: 0, blobs: 0, pushedBytes: 0 },
  }
  return {
    ...seed,
    status,
    images: [],
    pushed: [],
    clients: [],
    configured: [],
    requests: [],
    downloads: [],
    doctor: { canRun: false },
    summary: () => ({
      ...seed.summary(),
      cache: zero,
      upstreams: {},
      storage: status.storage,
      today: { pulls: 0, bytesSaved: 0, hits: 0, misses: 0 },
    }),
    history: (range) => ({ ...createHistory(range), buckets: [] }),
  }
}

function createClients(): ClientReport[] {
  const base = { listener: 'cache', firstSeen: iso(30 * day), headOnly: [] } as const
  return [
    {
      ...base,
      address: '127.0.0.1',
      product: 'docker',
      version: '28.3.2',
      requests: 900,
      hits: 812,
      misses: 88,
      bytes: 21e9,
      lastSeen: iso(9000),
      configured: ['docker'],
    },
    {
      ...base,
      address: '172.18.0.3',
      product: 'containerd',
      version: '2.1.4',
      requests: 700,
      hits: 640,
      misses: 60,
      bytes: 18e9,
      lastSeen: iso(2 * minute),
      configured: ['docker', 'kind'],
    },
    {
      ...base,
      address: '172.18.0.4',
      product: 'containerd',
      version: '2.1.4',
      requests: 610,
      hits: 571,
      misses: 39,
      bytes: 14e9,
      lastSeen: iso(2 * minute),
      configured: ['docker', 'kind'],
    },
    {
      ...base,
      address: '192.168.1.20',
      product: 'skopeo',
      version: '1.18.0',
      requests: 21,
      hits: 21,
      misses: 0,
      bytes: 9e8,
      lastSeen: iso(40 * minute),
    },
    {
      ...base,
      address: '127.0.0.1',
      product: 'podman',
      version: '5.5.2',
      requests: 44,
      hits: 0,
      misses: 0,
      bytes: 2e5,
      lastSeen: iso(hour),
      configured: [],
      headOnly: ['docker.io'],
    },
    {
      ...base,
      address: '127.0.0.1',
      product: 'buildkit',
      version: '0.23',
      requests: 120,
      hits: 102,
      misses: 18,
      bytes: 4e9,
      lastSeen: iso(5 * hour),
      configured: ['docker'],
    },
    {
      ...base,
      listener: 'registry',
      address: '127.0.0.1',
      product: 'docker',
      version: '28.3.2',
      requests: 60,
      hits: 0,
      misses: 0,
      bytes: 3e8,
      lastSeen: iso(7 * hour),
      configured: ['docker'],
    },
  ]
}

/** Creates the last requests, the newest first. */
export function createRequests(count: number): RequestReport[] {
  const outcomes = ['hit', 'hit', 'hit', 'revalidated', 'hit', 'miss', 'hit', 'stale'] as const
  return Array.from({ length: count }, (_, index): RequestReport => {
    const [, repository, reference] = /^(.*?)[:@](.*)$/.exec(names[(index * 5) % names.length]!)!
    const cache = outcomes[(index * 3) % outcomes.length]!
    const isBlob = index % 3 > 0
    return {
      id: `seed${index}`,
      at: iso(index * 7000 + 4000),
      listener: 'cache',
      method: 'GET',
      kind: isBlob ? 'blob' : 'manifest',
      repository: repository!,
      reference: isBlob ? toDigest(String(index)) : reference!,
      status: 200,
      cache,
      outcome: cache === 'revalidated' ? 'hit' : cache,
      ...(cache === 'miss' ? { reason: 'first' as const } : {}),
      bytes: isBlob ? ((index * 37) % 60) * MiB : 1600,
      ms: cache === 'miss' ? 312 : 4,
      client: '127.0.0.1',
      agent: 'docker/28.3.2 go/go1.24.5 kernel/6.12 os/linux arch/amd64',
      ...(index === 5 ? { status: 404, outcome: 'failed' as const, error: 'docker.io does not have it.' } : {}),
    }
  })
}

function createFindings(): DoctorReport {
  const results: DoctorReport['results'] = [
    {
      id: 'mirror.version',
      group: 'mirror',
      state: 'ok',
      saw: 'The command and the running mirror have the version 0.2.0.',
    },
    {
      id: 'clients.podman.not-configured',
      group: 'clients',
      subject: 'podman',
      state: 'fail',
      saw: 'podman pulls docker.io from the origin.',
      fix: { command: 'mirror configure podman', isOwn: false },
    },
    {
      id: 'upstreams.quay.failing',
      group: 'upstreams',
      subject: 'quay.io',
      state: 'warn',
      saw: 'The last request failed with 502.',
      advice: 'Cached images are served meanwhile.',
    },
    {
      id: 'clients.kind.network',
      group: 'clients',
      subject: 'kind cluster dev',
      state: 'ok',
      saw: 'Its nodes reach the mirror at 172.18.0.1:5055.',
    },
    { id: 'clients.k3s', group: 'clients', subject: 'k3s', state: 'skipped', saw: 'k3s is not installed.' },
  ]
  return { at: iso(11 * minute), durationMs: 1840, counts: { ok: 2, warn: 1, fail: 1, skipped: 1 }, results }
}

const lengths = { hour: hour, day, week: 7 * day, month: 31 * day }
const steps = { hour: minute, day: minute, week: hour, month: day }

/** Creates a history with busy days and quiet nights. */
function createHistory(range: HistoryReport['range']): HistoryReport {
  const [length, step] = [lengths[range], steps[range]]
  const to = Math.floor(Date.now() / step) * step + step
  const buckets: HistoryBucket[] = []
  for (let at = to - length; at < to; at += step) {
    const index = Math.round(at / step)
    const noise = Math.abs(Math.sin(index * 12.9898) * 43_758.5453) % 1
    const time = new Date(at).getHours()
    const isBusy = step === day ? 1 : time >= 8 && time <= 19 ? Math.sin(((time - 7) / 13) * Math.PI) : 0.06
    if (noise > isBusy * (step === minute ? 0.35 : 0.95)) continue
    const hits = Math.round((3 + noise * 40) * (step / minute) ** 0.5)
    const misses = Math.round(hits * (noise > 0.15 ? 0.06 : 0.5))
    buckets.push({
      at,
      pulls: Math.round(hits / 5),
      hits,
      stale: index % 17 === 0 ? Math.round(hits / 3) : 0,
      misses,
      errors: 0,
      bytesServed: hits * 9e6,
      bytesFromUpstream: misses * 8e6,
      bytesSaved: hits * 9e6,
      upstreams: Object.fromEntries(
        ['docker.io', 'ghcr.io', 'quay.io'].map((name, place) => {
          const requests = misses + 1
          const mean = 90 + place * 70 + noise * 60 + (place === 2 && at > to - length / 6 ? 500 : 0)
          return [name, { requests, totalMs: requests * mean, maxMs: mean * 2 }]
        }),
      ),
    })
  }
  return { range, step, from: to - length, to, buckets }
}
