import { describe, expect, test } from 'vitest'
import { defaultConfig } from '../../../src/config/config.ts'
import { mirrorPaths } from '../../../src/config/paths.ts'
import { listClientTasks } from '../../../src/doctor/clients.ts'
import type { DoctorContext, Outcome } from '../../../src/doctor/context.ts'
import type { CommandResult } from '../../../src/lib/process.ts'
import { machineWith } from '../../support/clients/machine-with.ts'

const header = '# Written by mirror. To take it back: mirror configure --undo\n'
const hosts = '/etc/containerd/certs.d/_default/hosts.toml'
const config = '/etc/containerd/config.toml'
const failed = (stderr: string): CommandResult => ({ exitCode: 1, stdout: '', stderr })
const succeeded = (stdout: string): CommandResult => ({ exitCode: 0, stdout, stderr: '' })
const inspected = JSON.stringify([
  {
    Name: '/dev-control-plane',
    Config: { Labels: { 'io.x-k8s.kind.cluster': 'dev', 'io.x-k8s.kind.role': 'control-plane' } },
    State: { Running: true },
  },
])

/** Answers a script that reads or lists files of the node. */
function answerScript(script: string, files: Readonly<Record<string, string>>): CommandResult {
  const path = /\[ -[fd] '?([^' ]+)'? \]/.exec(script)?.[1] ?? ''
  if (script.includes('[ -d')) {
    const below = Object.keys(files).filter((file) => file.startsWith(`${path}/`))
    return succeeded(Buffer.from(below.join('\0')).toString('base64'))
  }
  const text = files[path]
  return succeeded(text === undefined ? '' : `644 0 0\n${Buffer.from(text).toString('base64')}\n`)
}

/** Describes a cluster, and what mirror has recorded. */
interface Cluster {
  /** Answers the list of containers. */
  readonly engine: CommandResult
  readonly isRunning: boolean
  readonly recorded: Readonly<Record<string, string>>
}

/** Runs the checks of kind for a running cluster that mirror has no record of. `files`: those of its node; undefined: unreadable. */
async function check(
  files: Readonly<Record<string, string>> | undefined,
  isStale = false,
  { engine = succeeded('abc\n'), isRunning = true, recorded = {} }: Partial<Cluster> = {},
): Promise<Outcome[]> {
  const { machine, home } = await machineWith({}, recorded)
  const surroundings = { platform: 'linux', env: { MIRROR_HOME: home }, homedir: home, cwd: home }
  const context: DoctorContext = {
    surroundings,
    machine: {
      ...machine,
      async runCommand(file, args, { input }) {
        const line = [file, ...args].join(' ')
        if (line.startsWith('kind version')) return succeeded('0.30.0\n')
        if (line.startsWith('docker ps')) return engine
        if (line.startsWith('docker inspect'))
          return succeeded(inspected.replace('"Running":true', `"Running":${isRunning}`))
        if (line.endsWith('containerd config dump')) return succeeded(files?.[config] ?? '')
        if (line.includes('containerd.sock')) return { exitCode: isStale ? 0 : 1, stdout: '', stderr: '' }
        if (!line.endsWith('dev-control-plane sh') || input === undefined) return failed('unknown')
        return files === undefined ? failed('the node is busy') : answerScript(input, files)
      },
    },
    paths: mirrorPaths(surroundings),
    version: '0.1.0',
    found: Promise.resolve(undefined),
    status: Promise.resolve(undefined),
    config: Promise.resolve(defaultConfig()),
    probeUpstreams: async () => [],
    clients: ['kind'],
    pull: false,
    signal: new AbortController().signal,
    probeSignal: new AbortController().signal,
  }
  const outcomes: Outcome[] = []
  for (const task of await listClientTasks(context)) await task.run((one) => outcomes.push(one))
  return outcomes
}

const section = '[plugins."io.containerd.grpc.v1.cri".registry]\n  config_path = "/etc/containerd/certs.d"\n'
const configured = {
  [config]: `version = 2\n${section}`,
  [hosts]: `${header}[host."http://172.18.0.1:5055"]\n  capabilities = ["pull", "resolve"]\n`,
}
const isFinding = ({ state }: Outcome) => state === 'warn' || state === 'fail'

describe('of a running kind cluster that mirror has no record of, the doctor', () => {
  test('warns once that it is not configured, like of any other client', async () => {
    const outcomes = await check({})
    expect(outcomes.filter(isFinding)).toEqual([
      {
        id: 'clients.configured',
        subject: 'kind cluster dev',
        state: 'warn',
        saw: 'kind cluster dev is not configured for the mirror.',
        fix: { command: 'mirror configure kind --cluster dev', isOwn: false },
      },
    ])
    const ids = outcomes.map(({ id }) => id)
    expect(ids).not.toContain('clients.kind.hosts')
    expect(ids).not.toContain('clients.containerd.config-path')
  })

  test('reports the faults when a hosts.toml is of mirror', async () => {
    const outcomes = await check({ [hosts]: `${header}[host."http://172.18.0.1:5055"]\n  capabilities = ["fetch"]\n` })
    expect(outcomes.filter(isFinding).map(({ id, state }) => [id, state])).toContainEqual([
      'clients.hosts.capability',
      'fail',
    ])
    expect(outcomes.map(({ saw }) => saw)).not.toContain('kind cluster dev is not configured for the mirror.')
  })

  test('says of one that works that it runs with the configuration, and skips nothing', async () => {
    const outcomes = await check(configured)
    expect(outcomes.filter(({ state }) => state !== 'ok')).toEqual([])
    const saw = 'containerd in the nodes of kind cluster dev reads the files of the mirror.'
    expect(outcomes).toContainEqual({ id: 'clients.running', subject: 'kind cluster dev', state: 'ok', saw })
  })

  test('names the node whose containerd is older than its configuration, and the command that restarts it', async () => {
    const command = 'docker exec dev-control-plane systemctl restart containerd'
    expect((await check(configured, true)).filter(isFinding)).toEqual([
      expect.objectContaining({ id: 'clients.running', state: 'warn', fix: { command, isOwn: false } }),
    ])
  })

  test('says once that its files cannot be read, and claims nothing about them', async () => {
    expect(await check(undefined)).toEqual([
      expect.objectContaining({
        state: 'skipped',
        subject: 'kind cluster dev',
        saw: expect.stringContaining('its files cannot be read: '),
      }),
    ])
  })
})

describe('of a kind cluster that mirror has configured, the doctor', () => {
  const record = {
    client: 'kind',
    place: 'cluster dev',
    title: 'the nodes of the running cluster dev',
    details: { cluster: 'dev', program: 'docker', nodes: 'dev-control-plane' },
    since: '2026-11-30T12:00:00.000Z',
    cache: 'http://172.18.0.1:5055',
    fallback: true,
    files: [{ path: `/dev-control-plane${hosts}`, written: '0'.repeat(64) }],
    folders: [],
  }
  const recorded = { 'state/configured/kind-0123456789abcdef.json': JSON.stringify(record) }

  test('warns once that it was deleted, with the undo, which --fix may run', async () => {
    const outcomes = await check({}, false, { engine: succeeded(''), recorded })
    const command = 'mirror configure kind --cluster dev --undo'
    expect(outcomes.filter(isFinding)).toEqual([
      expect.objectContaining({ id: 'clients.exists', state: 'warn', fix: { command, isOwn: true } }),
    ])
  })

  test.each([
    ['it is stopped', { isRunning: false }],
    ['its engine does not answer', { engine: failed('no engine') }],
  ])('does not say that it was deleted when %s', async (_, cluster) => {
    const outcomes = await check(undefined, false, { ...cluster, recorded })
    expect(outcomes.filter(isFinding).map(({ id }) => id)).toEqual([])
  })
})
