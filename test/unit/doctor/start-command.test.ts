import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { dirname, join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { FoundMirror } from '../../../src/admin/find-mirror.ts'
import { type Config, defaultConfig, hashConfig } from '../../../src/config/config.ts'
import { mirrorPaths } from '../../../src/config/paths.ts'
import type { DoctorContext, Outcome } from '../../../src/doctor/context.ts'
import { listMirrorTasks } from '../../../src/doctor/mirror.ts'
import { planStart } from '../../../src/doctor/start-command.ts'
import { MirrorError } from '../../../src/lib/errors.ts'
import { machineWith } from '../../support/clients/machine-with.ts'
import { temporaryHome } from '../../support/mirror.ts'

const local = (port: number) => [{ host: '127.0.0.1', port }]
const withPort = (port: number, more: Partial<Config> = {}): Config => ({
  ...defaultConfig(),
  cache: { ...defaultConfig().cache, listen: local(port) },
  ...more,
})
const toUrl = ({ host, port }: { host: string; port: number }) => `http://${host}:${port}`

interface Scene {
  /** Holds the configuration of mirror.yaml; by default the usual one. */
  readonly wanted?: Config | MirrorError
  /** Holds the configuration of the running mirror; undefined when none runs. */
  readonly served?: Config
  /** Replaces the port 0 of the running cache. */
  readonly cachePort?: number
  readonly user?: FoundMirror['user']
  readonly dataDir?: string
  readonly version?: string
  /** Holds the variables of the user who has become root. */
  readonly env?: Readonly<Record<string, string>>
}

async function contextOf(scene: Scene) {
  const { wanted = defaultConfig(), served, cachePort, user, dataDir, version = '0.1.0', env } = scene
  const { machine, home } = await machineWith({})
  const own = { platform: 'linux', env: { MIRROR_HOME: home }, homedir: home, cwd: home }
  const surroundings = { ...own, ...(env && { callers: { ...own, env } }) }
  const paths = mirrorPaths(surroundings)
  const config = wanted instanceof MirrorError ? Promise.reject(wanted) : Promise.resolve(wanted)
  config.catch(() => {})
  const folder = dataDir ?? paths.dataDir
  const running = served && {
    runtime: 'process',
    version: '0.1.0',
    pid: process.pid,
    startedAt: new Date().toISOString(),
    configHashes: hashConfig(served, folder),
    served: { config: { networks: served.networks }, dataDir: folder },
    endpoints: {
      cache: served.cache.listen.map(({ host, port }) => toUrl({ host, port: cachePort ?? port })),
      registry: served.registry.enabled ? served.registry.listen.map(toUrl) : [],
      admin: served.admin.listen.map(toUrl),
      networks: {},
    },
  }
  return {
    surroundings,
    machine,
    paths,
    version,
    found: Promise.resolve(running && ({ running, paths, user } as unknown as FoundMirror)),
    status: Promise.resolve(running && { version: '0.1.0', runtime: 'process', pid: process.pid, registry: {} }),
    config,
    probeUpstreams: async () => [],
    clients: [],
    pull: false,
    signal: new AbortController().signal,
    probeSignal: new AbortController().signal,
  } as unknown as DoctorContext
}

async function check(scene: Scene, ...ids: string[]): Promise<Outcome[]> {
  const outcomes: Outcome[] = []
  for (const task of listMirrorTasks(await contextOf(scene)))
    if (task.ids.some((id) => ids.includes(id))) await task.run((one) => outcomes.push(one))
  return outcomes
}

const flags = '--cache-port 25055 --registry-port 25001 --admin-port 25056'
const moved: Config = {
  ...withPort(25_055),
  registry: { ...defaultConfig().registry, listen: local(25_001) },
  admin: { listen: local(25_056) },
}
const onAll = { host: '0.0.0.0', port: 5055 }

const cases: readonly [name: string, scene: Scene, command: string, isOwn: boolean, changed: string[]][] = [
  ['no flags without a mirror', {}, 'mirror up', true, []],
  ['no flags for a mirror that uses mirror.yaml', { served: defaultConfig() }, 'mirror up', true, []],
  ['the ports of a mirror with other ones', { served: moved }, `mirror up ${flags}`, true, []],
  ['the port of one listener', { served: withPort(25_055) }, 'mirror up --cache-port 25055', true, []],
  [
    'the port of a mirror that was started with any port',
    { served: withPort(0), cachePort: 41_234 },
    'mirror up --cache-port 41234',
    true,
    [],
  ],
  [
    'no port where mirror.yaml allows any',
    { wanted: withPort(0), served: withPort(0), cachePort: 41_234 },
    'mirror up',
    true,
    [],
  ],
  [
    'the ports beside another difference',
    { served: withPort(25_055, { allowedHosts: ['build.corp'] }) },
    'mirror up --cache-port 25055',
    true,
    ['allowedHosts'],
  ],
  [
    'nothing that --fix may run for another host',
    { served: { ...defaultConfig(), cache: { ...defaultConfig().cache, listen: [onAll] } } },
    'mirror up',
    false,
    ['cache'],
  ],
  [
    'the owner, and nothing that --fix may run, for the mirror of another user',
    { served: withPort(25_055), user: { uid: 1000, name: 'me', home: '/home/me' }, env: {} },
    "su - me -c 'mirror up --cache-port 25055'",
    false,
    [],
  ],
  [
    'the absence of the registry and a further network',
    {
      served: {
        ...defaultConfig(),
        registry: { ...defaultConfig().registry, enabled: false },
        networks: ['kind', 'dev'],
      },
    },
    'mirror up --no-registry --network dev',
    true,
    [],
  ],
  [
    'the folder of the data',
    { served: defaultConfig(), dataDir: '/srv/my data' },
    "mirror up --data '/srv/my data'",
    true,
    [],
  ],
  [
    'the MIRROR_HOME of the mirror of another user',
    {
      served: defaultConfig(),
      user: { uid: 1000, name: 'me', home: '/home/me' },
      env: { MIRROR_HOME: '/srv/my mirror' },
    },
    String.raw`su - me -c 'export MIRROR_HOME='\''/srv/my mirror'\''; mirror up'`,
    false,
    [],
  ],
  ['nothing for a mirror.yaml that is not valid', { wanted: new MirrorError('no') }, 'mirror up', false, []],
]

describe('the command that starts the mirror again has', () => {
  test.for(cases)('%s', async ([, scene, command, isOwn, changed]) => {
    const plan = await planStart(await contextOf(scene))
    expect({ ...plan.fix, changed: plan.changed }).toEqual({ command, isOwn, changed })
  })

  test('the ports of a mirror that has ended without being stopped', async () => {
    const [context, before] = [await contextOf({}), await contextOf({ served: moved })]
    const { running } = (await before.found)!
    const state = {
      ...running,
      configHashes: hashConfig(moved, context.paths.dataDir),
      pid: 2 ** 30,
      served: undefined,
    }
    await mkdir(dirname(context.paths.stateFile), { recursive: true })
    await writeFile(context.paths.stateFile, JSON.stringify(state))
    expect((await planStart(context)).fix).toEqual({ command: `mirror up ${flags}`, isOwn: true })
  })

  test('the same flags for a mirror of another version', async () => {
    const found = await check({ served: moved, version: '99.0.0' }, 'mirror.version')
    expect(found).toMatchObject([{ state: 'warn', fix: { command: `mirror up ${flags}`, isOwn: true } }])
  })
})

describe('the check of mirror.yaml', () => {
  test('finds nothing wrong where only ports differ, and names the flags', async () => {
    expect(await check({ served: moved }, 'mirror.config')).toEqual([
      { id: 'mirror.config', state: 'ok', saw: expect.stringContaining(flags) },
    ])
  })

  test('does not say that a mirror uses it when none runs', async () => {
    expect(await check({}, 'mirror.config')).toEqual([
      { id: 'mirror.config', state: 'ok', saw: 'mirror.yaml is valid.' },
    ])
  })

  test('leaves out of its text that nothing was done', async () => {
    const wanted = new MirrorError('The configuration has a problem, so nothing was done:\n  cache.maxSize: much')
    const [found] = await check({ wanted }, 'mirror.config')
    expect(found?.saw).toBe('The configuration has a problem:\n  cache.maxSize: much')
  })
})

test('one command names free ports for all that other programs have, and the check of the start points to it', async () => {
  const listen = async () => {
    const server = createServer().listen(0, '127.0.0.1')
    onTestFinished(() => void server.close())
    await new Promise((resolve) => server.once('listening', resolve))
    return (server.address() as { port: number }).port
  }
  const [cache, registry] = [await listen(), await listen()]
  // Take the port that the command would name otherwise.
  const next = createServer().listen({ host: '127.0.0.1', port: cache + 1000 <= 65_535 ? cache + 1000 : 1024 })
  next.once('error', () => {})
  onTestFinished(() => void next.close())
  const wanted = withPort(cache, { registry: { ...defaultConfig().registry, listen: local(registry) } })
  wanted.admin.listen = local(0)
  const found = await check({ wanted }, 'mirror.runs', 'mirror.ports')
  const commands = found.flatMap(({ fix }) => fix ?? [])
  expect(commands).toEqual([
    { command: expect.stringMatching(/^mirror up --cache-port \d+ --registry-port \d+$/), isOwn: false },
  ])
  const ports = commands[0]!.command.match(/\d+/g)!.map(Number)
  expect(ports[0]).not.toBe(cache + 1000)
  expect(found.map(({ id, advice }) => [id, advice])).toEqual([
    ['mirror.runs', expect.stringContaining('mirror.ports')],
    ['mirror.ports', undefined],
    ['mirror.ports', undefined],
  ])
  for (const { saw } of found) expect(saw.length).toBeLessThan(100)
})

test('a port of a program that this user cannot see is taken, too', async () => {
  const server = createServer().listen(0, '127.0.0.1')
  onTestFinished(() => void server.close())
  await once(server, 'listening')
  const { port } = server.address() as { port: number }
  const wanted = { ...withPort(port), registry: { ...defaultConfig().registry, enabled: false } }
  wanted.admin.listen = local(0)
  const context = await contextOf({ wanted })
  // No program of this machine tells who has a port.
  const hidden = { ...context, machine: { ...context.machine, platform: 'win32' } }
  const outcomes: Outcome[] = []
  for (const task of listMirrorTasks(hidden))
    if (task.ids.some((id) => /runs|ports/.test(id))) await task.run((one) => outcomes.push(one))
  expect(outcomes.map(({ id, saw }) => [id, saw])).toEqual([
    ['mirror.runs', 'mirror is not running.'],
    ['mirror.ports', `Port ${port} (cache) is in use by a program of another user.`],
  ])
})

test('the name of the program that has a port is cut', async () => {
  const folder = await temporaryHome()
  const script = join(folder, `${'long'.repeat(20)}.mjs`)
  await writeFile(
    script,
    "import { createServer } from 'node:net'\nconst server = createServer().listen(0, '127.0.0.1', () => console.log(server.address().port))\n",
  )
  const child = spawn(process.execPath, [script], { stdio: ['ignore', 'pipe', 'inherit'] })
  onTestFinished(() => void child.kill())
  const [port] = (await once(child.stdout, 'data')) as [Buffer]
  const wanted = { ...withPort(Number(port)), registry: { ...defaultConfig().registry, enabled: false } }
  wanted.admin.listen = local(0)
  const [found] = await check({ wanted }, 'mirror.ports')
  const name = `node ${'long'.repeat(20)}`.slice(0, 39)
  expect(found?.saw).toBe(`Port ${Number(port)} (cache) is in use by ${name}… (pid ${child.pid}).`)
})
