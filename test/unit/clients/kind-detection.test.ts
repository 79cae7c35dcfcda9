import { mkdir, mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { Machine } from '../../../src/clients/types.ts'
import { kindAdapter } from '../../../src/clients/kind/kind.ts'
import { openKindNodes } from '../../../src/clients/kind/nodes.ts'
import { exitCode } from '../../../src/lib/errors.ts'
import type { CommandResult } from '../../../src/lib/process.ts'

const nothing = {
  scope: undefined,
  clientVersion: undefined,
  imageStore: undefined,
  file: undefined,
  cluster: undefined,
}

type Answers = (line: string) => string | undefined

/** Returns a machine whose programs answer by command line; a command without an answer fails. */
async function machineWith(answers: Answers, more: Partial<Machine> = {}): Promise<Machine & { asked: string[] }> {
  const stateDir = await mkdtemp(join(tmpdir(), 'mirror-kind-'))
  onTestFinished(() => rm(stateDir, { recursive: true, force: true }))
  const queries: string[] = []
  return {
    platform: 'linux',
    env: { DOCKER_HOST: 'unix:///var/run/docker.sock' },
    home: stateDir,
    root: '/',
    detached: false,
    cwd: stateDir,
    stateDir,
    asked: queries,
    async runCommand(file, args) {
      const line = [file, ...args].join(' ')
      queries.push(line)
      const stdout = answers(line)
      const failure: CommandResult = { exitCode: 1, stdout: '', stderr: 'Error: No such container: x\n' }
      return stdout === undefined ? failure : { exitCode: 0, stdout, stderr: '' }
    },
    ...more,
  }
}

function container(name: string, role: string, mounts: readonly string[] = [], running = true): object {
  return {
    Name: `/${name}`,
    Config: { Labels: { 'io.x-k8s.kind.cluster': 'dev', 'io.x-k8s.kind.role': role } },
    State: { Running: running },
    Mounts: mounts.map((source) => ({ Source: source, Destination: '/etc/containerd/certs.d/_default' })),
  }
}

describe('the target of kind', () => {
  test.each(['tcp://10.0.0.9:2375', 'ssh://me@elsewhere'])(
    'is refused without a cluster name when the engine is at %s',
    async (host) => {
      const machine = await machineWith(() => undefined, { env: { DOCKER_HOST: host } })
      await expect(kindAdapter.findTargets(machine, nothing)).rejects.toMatchObject({
        exit: exitCode.usage,
        hints: expect.arrayContaining([expect.stringContaining('--cluster NAME')]) as string[],
      })
    },
  )

  test("follows kind's own environment variables", async () => {
    const env = { DOCKER_HOST: 'tcp://127.0.0.1:2375', KIND_EXPERIMENTAL_DOCKER_NETWORK: 'mine' }
    const [target] = await kindAdapter.findTargets(await machineWith(() => undefined, { env }), nothing)
    expect(target?.isOwn).toBe(true)
    expect(target?.location).toMatchObject({ in: 'network', network: 'mine' })
    const podman = await machineWith(() => undefined, { env: { KIND_EXPERIMENTAL_PROVIDER: 'podman' } })
    expect((await kindAdapter.findTargets(podman, nothing))[0]?.location).toMatchObject({ in: 'isolated' })
  })

  test('is below --root', async () => {
    const machine = await machineWith(() => undefined, {
      detached: true,
      home: '/image',
      env: { DOCKER_HOST: 'ssh://x' },
    })
    const [target] = await kindAdapter.findTargets(machine, { ...nothing, file: 'kind.yaml' })
    expect(target?.inputs).toEqual({
      files: [join(machine.cwd, 'kind.yaml')],
      trees: ['/image/.local/state/mirror/kind/certs.d'],
    })
    expect(machine.asked).toEqual([])
  })

  test('is refused for a folder with a colon, which nodes cannot mount', async () => {
    const machine = await machineWith(() => undefined, { stateDir: '/srv/a:b' })
    const [target] = await kindAdapter.findTargets(machine, nothing)
    const mirror = {
      cache: 'http://m',
      registry: undefined,
      registries: [],
      defaultUpstream: 'docker.io',
      fallback: true,
    }
    expect(() => target!.plan(mirror, undefined as never)).toThrow(expect.objectContaining({ exit: exitCode.usage }))
  })

  test('is the named running cluster, without its load balancer and stopped nodes', async () => {
    const found = [
      container('dev-control-plane', 'control-plane'),
      container('dev-external-load-balancer', 'external-load-balancer'),
      container('dev-worker', 'worker', [], false),
    ]
    const machine = await machineWith((line) => {
      if (line.startsWith('docker ps')) return 'a\nb\nc\n'
      if (line.startsWith('docker inspect')) return JSON.stringify(found)
      return line.endsWith('containerd config dump') ? 'version = 2\n' : undefined
    })
    const [target] = await kindAdapter.findTargets(machine, { ...nothing, cluster: 'dev' })
    expect(target?.details).toEqual({ cluster: 'dev', program: 'docker', nodes: 'dev-control-plane' })
    expect(machine.asked[0]).toContain('label=io.x-k8s.kind.cluster=dev')
  })

  test('is refused for a cluster that does not run', async () => {
    const machine = await machineWith(() => '')
    await expect(kindAdapter.findTargets(machine, { ...nothing, cluster: 'dev' })).rejects.toMatchObject({
      exit: exitCode.missing,
    })
    await expect(openKindNodes({ runCommand: async () => undefined }, 'podman').list()).rejects.toMatchObject({
      exit: exitCode.missing,
    })
  })
})

describe('the undo of kind', () => {
  test('keeps an empty folder that a cluster mounts', async () => {
    let mounted: string[] = []
    const machine = await machineWith((line) => {
      return line.startsWith('docker ps') ? 'a\n' : JSON.stringify([container('n', 'worker', mounted, false)])
    })
    const [target] = await kindAdapter.findTargets(machine, nothing)
    const folder = join(machine.stateDir, 'kind', 'certs.d')
    await mkdir(join(folder, '_default'), { recursive: true })
    await mkdir(join(folder, 'other'))
    mounted = [join(folder, '_default')]
    for (const name of ['_default', 'other']) await target!.files.removeFolder(join(folder, name))
    expect(await readdir(folder)).toEqual(['_default'])
    mounted = []
    await target!.files.removeFolder(join(folder, '_default'))
    expect(await readdir(folder)).toEqual([])
  })

  test('of a deleted cluster has no changes, and does not fail', async () => {
    const machine = await machineWith(() => undefined)
    const target = kindAdapter.restoreTarget(machine, { cluster: 'dev', program: 'docker', nodes: 'n', speaker: 'n' })
    for (const path of target.inputs.files) expect(await target.files.read(path)).toBeUndefined()
    expect(await target.files.list('/n/etc/containerd/certs.d')).toEqual([])
    await target.files.remove(target.inputs.files[0]!)
  })
})

describe('kind on this machine', () => {
  test('is found by its program', async () => {
    expect(await kindAdapter.find(await machineWith(() => '0.33.0\n'))).toBe('kind 0.33.0')
    expect(await kindAdapter.find(await machineWith(() => undefined))).toBeUndefined()
  })
})
