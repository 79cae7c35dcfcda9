import { spawn } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { StatusReport } from '../../../src/admin/api.ts'
import type { FoundMirror } from '../../../src/admin/find-mirror.ts'
import { defaultConfig } from '../../../src/config/config.ts'
import { mirrorPaths } from '../../../src/config/paths.ts'
import { checks } from '../../../src/doctor/checks.ts'
import type { DoctorContext, Outcome, Task, UpstreamProbe } from '../../../src/doctor/context.ts'
import { listListenerTasks } from '../../../src/doctor/listeners.ts'
import { listMirrorTasks } from '../../../src/doctor/mirror.ts'
import { listUpstreamTasks } from '../../../src/doctor/upstreams.ts'
import { listUseTasks } from '../../../src/doctor/use.ts'
import { type Answers, machineWith } from '../../support/clients/machine-with.ts'
import { reply, serve } from '../../support/upstream/serve.ts'

const quietUpstream = { hits: 1, misses: 1, bytesFromUpstream: 1, state: 'ok' } as const

interface Scene {
  readonly status?: Partial<StatusReport>
  readonly probe?: Partial<UpstreamProbe>
  /** Answers of programs, by the beginning of the command line. */
  readonly answers?: Answers
  /** The addresses of the running mirror. */
  readonly endpoints?: Partial<FoundMirror['running']['endpoints']>
  /** Files below the home. */
  readonly files?: Readonly<Record<string, string>>
  /** The process in the state file. */
  readonly pid?: number
  readonly networks?: string[]
  readonly env?: Readonly<Record<string, string>>
}

/** Creates what the checks see of a running mirror. */
async function contextOf({
  status,
  probe,
  answers = {},
  endpoints,
  files = {},
  pid = process.pid,
  networks = ['kind'],
  env = {},
}: Scene): Promise<DoctorContext> {
  const { machine, home } = await machineWith(answers, files, {
    env: { PATH: '/var/empty', DOCKER_CONFIG: '/var/empty', ...env },
  })
  const surroundings = { platform: 'linux', env: { ...machine.env, MIRROR_HOME: home }, homedir: home, cwd: home }
  const all = { cache: [], registry: [], admin: [], networks: {}, ...endpoints }
  const running = {
    runtime: 'process',
    version: '0.1.0',
    pid,
    processIdentity: undefined,
    startedAt: new Date().toISOString(),
    configHashes: {},
    endpoints: all,
  }
  const report = {
    version: '0.1.0',
    running: true,
    runtime: 'process',
    pid: process.pid,
    endpoints: all,
    networks: {},
    upstreams: { 'docker.io': quietUpstream },
    storage: { path: home, bytes: 0, maxBytes: 0, freeBytes: 10 ** 12, minFree: 10 ** 9 },
    registry: {},
    refusedHosts: {},
    refusedRegistries: {},
    ...status,
  }
  const probes = [{ host: 'docker.io', status: 200, ms: 12, skewMs: 0, ...probe }]
  return {
    surroundings,
    machine,
    paths: mirrorPaths(surroundings),
    version: '0.1.0',
    found: Promise.resolve({ running, paths: mirrorPaths(surroundings), user: undefined } as unknown as FoundMirror),
    status: Promise.resolve(report as unknown as StatusReport),
    config: Promise.resolve({ ...defaultConfig(), networks }),
    probeUpstreams: async () => probes,
    clients: [],
    pull: false,
    signal: new AbortController().signal,
    probeSignal: new AbortController().signal,
  }
}

/** Runs the tasks of the checks, and returns what they found. */
async function findingsOf(scene: Scene, id: string) {
  return (await outcomesOf(scene, id)).filter(({ state }) => state === 'warn' || state === 'fail')
}

async function outcomesOf(scene: Scene, id: string) {
  const context = await contextOf(scene)
  const tasks: Task[] = [
    ...listMirrorTasks(context),
    ...listUpstreamTasks(context),
    ...listListenerTasks(context),
    ...listUseTasks(context),
  ]
  const outcomes: Outcome[] = []
  for (const task of tasks.filter(({ ids }) => ids.includes(id))) await task.run((one) => outcomes.push(one))
  return outcomes
}

const url = 'http://172.18.0.1:5055'
const inspected = JSON.stringify([
  {
    Name: '/dev-control-plane',
    Config: { Labels: { 'io.x-k8s.kind.cluster': 'dev', 'io.x-k8s.kind.role': 'control-plane' } },
    State: { Running: true },
  },
])
const cluster = { 'docker ps': 'abc\n', 'docker inspect': inspected }
const onKind = { networks: { kind: url } }
const exec = 'docker exec dev-control-plane'
const refused = { exitCode: 1, stdout: '', stderr: 'bash: connect: Connection refused\n' }
const silent = { exitCode: 124, stdout: '', stderr: '' }
const absent = { exitCode: 127, stdout: '', stderr: 'bash: not found' }
const late = { exitCode: undefined, stdout: '', stderr: '' }
const limit = { limit: 100, windowSeconds: 21_600, at: new Date().toISOString() }

const faults: readonly [fault: string, id: string, state: string, mend: string, scene: Scene][] = [
  ['two mirrors', 'mirror.lock', 'fail', 'kill 1', { pid: 1 }],
  [
    'a full disk',
    'mirror.disk',
    'fail',
    'mirror cache prune',
    { status: { storage: { freeBytes: 5, minFree: 10 } as never } },
  ],
  [
    'a trouble of its own',
    'mirror.troubles',
    'fail',
    'mirror logs',
    { status: { troubles: ['It has no descriptors.'] } },
  ],
  [
    'a damaged record of the registry',
    'mirror.records',
    'fail',
    'Push the images',
    {
      status: {
        registry: {
          damaged: [{ repository: 'app', path: '/d', original: '/o', reason: 'cut', served: false }],
        } as never,
      },
    },
  ],
  ['a clock that is ahead', 'mirror.clock', 'warn', 'sudo timedatectl set-ntp true', { probe: { skewMs: 120_000 } }],
  ['a slow upstream', 'upstreams.time', 'warn', 'Check the network', { probe: { ms: 2500 } }],
  [
    'an upstream that failed before',
    'upstreams.reachable',
    'warn',
    'mirror logs',
    {
      status: {
        upstreams: {
          'docker.io': { ...quietUpstream, state: 'open', lastError: { message: 'It was silent.', at: '' } },
        },
      },
    },
  ],
  [
    'a token service with a problem',
    'upstreams.token',
    'fail',
    'auth.docker.io',
    { probe: { token: { realm: 'auth.docker.io', status: 502 } } },
  ],
  [
    'a quota that is used up',
    'upstreams.quota',
    'fail',
    'docker login',
    {
      status: { upstreams: { 'docker.io': { ...quietUpstream, rateLimit: { ...limit, remaining: 0 } } } },
    },
  ],
  [
    'a quota that is nearly used up',
    'upstreams.quota',
    'warn',
    'docker login',
    {
      status: { upstreams: { 'docker.io': { ...quietUpstream, rateLimit: { ...limit, remaining: 9 } } } },
    },
  ],
  [
    'a credential that has expired',
    'upstreams.credential',
    'fail',
    'mirror credentials refresh',
    {
      status: { upstreams: { 'docker.io': { ...quietUpstream, credentials: { state: 'expired' } } } },
    },
  ],
  [
    'an address that refuses connections',
    'listeners.loopback',
    'fail',
    'mirror up',
    { endpoints: { cache: ['http://127.0.0.1:1'] } },
  ],
  [
    'a gateway that it cannot listen on',
    'listeners.network',
    'fail',
    'mirror logs',
    {
      status: { networks: { kind: { state: 'failed', reason: 'the port is in use' } } },
    },
  ],
  [
    'a gateway that refuses connections',
    'listeners.network',
    'fail',
    'mirror up',
    { status: { networks: { kind: { state: 'listening', url: 'http://127.0.0.1:1' } as never } } },
  ],
  ['a network of kind that is not served', 'listeners.node', 'fail', 'mirror up --network kind', { answers: cluster }],
  [
    'a node that is refused',
    'listeners.node',
    'fail',
    'mirror up',
    {
      endpoints: onKind,
      answers: { ...cluster, [`${exec} bash`]: refused, [`${exec} env`]: '' },
    },
  ],
  [
    'a firewall before the mirror',
    'listeners.firewall',
    'fail',
    'sudo iptables -I INPUT -p tcp -d 172.18.0.1 --dport 5055 -j ACCEPT',
    {
      endpoints: onKind,
      answers: { ...cluster, [`${exec} bash`]: silent, [`${exec} env`]: '' },
    },
  ],
  [
    'a firewall before an address of IPv6',
    'listeners.firewall',
    'fail',
    'sudo ip6tables -I INPUT -p tcp -d fc00:f853::1 --dport 5055 -j ACCEPT',
    {
      endpoints: { networks: { kind: 'http://[fc00:f853::1]:5055' } },
      answers: { ...cluster, [`${exec} bash`]: silent, [`${exec} env`]: '' },
    },
  ],
  [
    'a proxy in a node',
    'listeners.proxy',
    'fail',
    'Add 172.18.0.1 to NO_PROXY',
    {
      endpoints: onKind,
      answers: {
        ...cluster,
        [`${exec} bash`]: '',
        [`${exec} env`]: 'HTTP_PROXY=http://proxy.corp:3128\nNO_PROXY=10.0.0.0/8\n',
      },
    },
  ],
]

describe('mirror doctor finds, of a running mirror,', () => {
  test.for(faults)('%s', async ([, id, state, mend, scene]) => {
    const findings = await findingsOf(scene, id)
    expect(findings.map((one) => [one.id, one.state, one.fix?.command ?? one.advice])).toEqual([
      [id, state, expect.stringContaining(mend)],
    ])
  })

  const skipped: readonly [name: string, scene: Scene, why: string][] = [
    [
      'a docker exec that takes too long',
      { endpoints: onKind, answers: { ...cluster, [`${exec} bash`]: late, [`${exec} env`]: late } },
      'docker exec took too long',
    ],
    [
      'a node without bash',
      { endpoints: onKind, answers: { ...cluster, [`${exec} bash`]: absent, [`${exec} env`]: late } },
      'the node has no bash',
    ],
    ['a network that mirror.yaml leaves out', { answers: cluster, networks: [] }, 'does not name kind'],
    [
      'nodes of podman',
      {
        answers: { 'podman ps': 'abc\n', 'podman inspect': inspected },
        env: { KIND_EXPERIMENTAL_PROVIDER: 'podman' },
      },
      'kind runs its nodes by podman',
    ],
  ]

  test.for(skipped)('no failure of the nodes, but a skipped check, for %s', async ([, scene, why]) => {
    const outcomes = await outcomesOf(scene, 'listeners.node')
    expect(outcomes[0]).toMatchObject({ id: 'listeners.node', state: 'skipped', saw: expect.stringContaining(why) })
    expect(outcomes.filter(({ state }) => state !== 'skipped')).toEqual([])
  })

  test.each([
    ['its window has ended', { at: new Date(Date.now() - 22_000_000).toISOString() }],
    ['it has been reset', { resetsAt: new Date(Date.now() - 1000).toISOString() }],
  ])('no exhausted quota when %s', async (_, more) => {
    const rateLimit = { ...limit, remaining: 0, ...more }
    const scene = { status: { upstreams: { 'docker.io': { ...quietUpstream, rateLimit } } } }
    expect(await findingsOf(scene, 'upstreams.quota')).toEqual([])
  })

  test('when an exhausted quota is full again', async () => {
    const rateLimit = { ...limit, remaining: 0, resetsAt: new Date(Date.now() + 7_250_000).toISOString() }
    const scene = { status: { upstreams: { 'docker.io': { ...quietUpstream, rateLimit } } } }
    const [found] = await findingsOf(scene, 'upstreams.quota')
    expect(found?.saw).toMatch(/^docker\.io grants 0 more of 100 pulls in 6 h, and resets in 2 h/)
  })

  test('a limit of the registry, and none while the mirror waits after an outage', async () => {
    const at = new Date().toISOString()
    const waiting = (failure: 'limited' | 'unavailable', message: string) => ({
      status: {
        upstreams: {
          'docker.io': {
            ...quietUpstream,
            state: 'open' as const,
            lastError: { failure, message, at, retryAfterSeconds: 23 },
          },
        },
      },
    })
    const limited = waiting('limited', 'docker.io is rate limiting this mirror for 23 s.')
    const found = (await findingsOf(limited, 'upstreams.quota')).find(({ id }) => id === 'upstreams.quota')
    expect(found?.saw).toBe('docker.io limits the rate of pulls for the next 23 s.')
    for (const message of ['docker.io refused the connection.', 'docker.io could not be resolved.']) {
      const down = waiting('unavailable', message)
      const outcomes = await outcomesOf(down, 'upstreams.quota')
      expect(outcomes.filter(({ id }) => id === 'upstreams.quota')).toMatchObject([{ state: 'ok' }])
    }
  })

  test('a quota that no login raises, because there is one', async () => {
    const auths = { 'https://index.docker.io/v1/': { auth: Buffer.from('me:secret').toString('base64') } }
    const rateLimit = { ...limit, remaining: 0 }
    const status = { upstreams: { 'docker.io': { ...quietUpstream, rateLimit } } }
    const env = { DOCKER_AUTH_CONFIG: JSON.stringify({ auths }) }
    const [found] = await findingsOf({ status, env }, 'upstreams.quota')
    expect(found).toMatchObject({ state: 'fail', advice: expect.stringMatching(/^Wait/) })
    expect(found).not.toHaveProperty('fix')
  })

  test('no proxy where NO_PROXY has the network of the mirror', async () => {
    const env = 'HTTP_PROXY=http://proxy.corp:3128\nNO_PROXY=172.18.0.0/16\n'
    const answers = { ...cluster, [`${exec} bash`]: '', [`${exec} env`]: env }
    expect(await findingsOf({ endpoints: onKind, answers }, 'listeners.proxy')).toEqual([])
  })

  test('a low limit on open files, of the process of the mirror', async () => {
    const child = spawn('sh', ['-c', 'ulimit -n 512; exec sleep 60'], { stdio: 'ignore' })
    onTestFinished(() => void child.kill())
    const advice = 'ulimit -n 1024; mirror down && mirror up'
    await expect
      .poll(() => findingsOf({ pid: child.pid! }, 'mirror.files'))
      .toMatchObject([{ id: 'mirror.files', state: 'warn', saw: expect.stringContaining('512'), advice }])
  })

  test('a client that asks for tags and then fetches nothing', async () => {
    const client = {
      address: '172.18.0.2',
      product: 'containerd',
      headOnly: ['docker.io'],
      lastSeen: new Date().toISOString(),
    }
    const admin = await serve((_, response) => reply(response, 200, {}, JSON.stringify([client])))
    const findings = await findingsOf({ endpoints: { admin: [admin.url] } }, 'use.head-only')
    expect(findings).toEqual([
      expect.objectContaining({ id: 'use.head-only', state: 'warn', subject: 'containerd at 172.18.0.2' }),
    ])
    expect(admin.log).toEqual(['GET /api/clients'])
  })

  test('a proxy of dockerd that stands before the mirror', async () => {
    const record = { client: 'docker', place: 'desktop', title: 'Docker Desktop', since: '2026-01-01T00:00:00Z' }
    const more = { details: {}, files: [], folders: [], cache: 'http://host.docker.internal:5055', fallback: true }
    const files = { 'state/configured/docker-0123456789abcdef.json': JSON.stringify({ ...record, ...more }) }
    const answers = { 'docker info': 'http.docker.internal:3128\nhttp.docker.internal:3128\nregistry.corp\n' }
    expect(await findingsOf({ files, answers }, 'listeners.proxy')).toEqual([
      expect.objectContaining({ id: 'listeners.proxy', subject: 'docker', state: 'fail' }),
    ])
    const exempt = { 'docker info': 'http.docker.internal:3128\n\nhost.docker.internal\n' }
    expect(await findingsOf({ files, answers: exempt }, 'listeners.proxy')).toEqual([])
  })

  test('a configured client that has not come for a week', async () => {
    const record = {
      client: 'podman',
      place: 'user',
      title: 'user',
      since: '2026-01-01T00:00:00Z',
      files: [],
      folders: [],
    }
    const text = JSON.stringify({ ...record, details: {}, cache: url, fallback: true })
    const files = { 'state/configured/podman-0123456789abcdef.json': text }
    const admin = await serve((_, response) => reply(response, 200, {}, '[]'))
    const findings = await findingsOf({ endpoints: { admin: [admin.url] }, files }, 'use.seen')
    expect(findings).toEqual([
      expect.objectContaining({
        id: 'use.seen',
        state: 'warn',
        fix: { command: 'mirror configure podman --check', isOwn: false },
      }),
    ])
  })

  test('nothing of clients where the mirror does not record them', async () => {
    const admin = await serve((_, response) => reply(response, 404))
    expect(await findingsOf({ endpoints: { admin: [admin.url] } }, 'use.seen')).toEqual([])
  })
})

test('each check of the mirror, its upstreams, its addresses and its use has a test that seeds its fault', async () => {
  const texts = await Promise.all(
    ['status-faults', 'doctor', 'start-command'].map((name) =>
      readFile(new URL(`${name}.test.ts`, import.meta.url), 'utf8'),
    ),
  )
  const groups = ['mirror', 'upstreams', 'listeners', 'use']
  const ids = checks.filter(({ group }) => groups.includes(group)).map(({ id }) => id)
  expect(ids.filter((id) => !texts.some((text) => text.includes(`'${id}'`)))).toEqual([])
})

describe('of a mirror that somebody switched offline, the doctor', () => {
  test('warns, and names the switch of the dashboard', async () => {
    const found = await findingsOf({ status: { offline: { active: true, source: 'session' } } }, 'upstreams.reachable')
    expect(found).toEqual([
      {
        id: 'upstreams.reachable',
        state: 'warn',
        saw: expect.stringContaining('The mirror is offline until it restarts'),
        advice: 'Choose "Go online" in the dashboard: mirror dashboard',
      },
    ])
  })
})

describe('without a configured client, the doctor', () => {
  test('skips the check whether each has used the mirror', async () => {
    const admin = await serve((_, response) => reply(response, 200, {}, '[]'))
    const outcomes = await outcomesOf({ endpoints: { admin: [admin.url] } }, 'use.seen')
    expect(outcomes.filter(({ id }) => id === 'use.seen')).toEqual([
      expect.objectContaining({ state: 'skipped', saw: expect.stringContaining('no client is configured') }),
    ])
  })
})
