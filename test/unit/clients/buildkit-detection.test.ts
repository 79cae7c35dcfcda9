import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { buildkitAdapter } from '../../../src/clients/buildkit/buildkit.ts'
import { type ClientOptions, FilesSnapshot, type Machine } from '../../../src/clients/types.ts'
import type { RunCommand } from '../../../src/lib/process.ts'
import { startConfigurableEngine } from '../../support/configurable-engine.ts'

let home: string
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-buildkit-'))
})
afterEach(() => rm(home, { recursive: true }))

const anything: ClientOptions = {
  scope: undefined,
  clientVersion: undefined,
  imageStore: undefined,
  file: undefined,
  cluster: undefined,
}

const mirror = {
  cache: 'http://127.0.0.1:5055',
  registry: undefined,
  registries: ['docker.io'],
  defaultUpstream: 'docker.io',
  fallback: true,
}

const nothing = new FilesSnapshot(new Map())

/** Returns a machine whose programs print this, by `program argument`; those with an exclamation mark in front fail. */
const machine = (says: Record<string, string>, more: Partial<Machine> = {}): Machine => ({
  platform: 'linux',
  env: { DOCKER_HOST: `unix://${join(home, 'engine.sock')}` },
  home,
  root: '/',
  detached: false,
  cwd: home,
  stateDir: join(home, 'state'),
  runCommand: (file, args) => {
    const output = Object.entries(says).find(([start]) => `${file} ${args.join(' ')}`.startsWith(start))?.[1]
    if (output === undefined) return Promise.resolve(undefined)
    const failed = output.startsWith('!')
    return Promise.resolve({
      exitCode: failed ? 1 : 0,
      stdout: failed ? '' : output,
      stderr: failed ? output.slice(1) : '',
    })
  },
  ...more,
})

const buildx = { 'docker buildx version': 'github.com/docker/buildx v0.12.1 30feaa1\n' }
const buildkitd = { 'buildkitd --version': 'buildkitd github.com/moby/buildkit v0.12.5 bac3f2b\n' }

describe('BuildKit', () => {
  test('is found by its programs', async () => {
    expect(await buildkitAdapter.find(machine({}))).toBeUndefined()
    expect(await buildkitAdapter.find(machine({ 'docker buildx version': '!unknown command' }))).toBeUndefined()
    expect(await buildkitAdapter.find(machine({ ...buildx, ...buildkitd }))).toBe('buildx 0.12.1')
    expect(await buildkitAdapter.find(machine(buildkitd))).toBe('buildkitd 0.12.5')
  })

  test('has a hint after an undo: it reads its file only when it starts or is created', async () => {
    const [made, own] = await buildkitAdapter.findTargets(machine({ ...buildx, ...buildkitd }), anything)
    expect(made!.listUndoSteps?.([])).toEqual([expect.stringContaining('docker buildx rm')])
    expect(own!.listUndoSteps?.([])).toEqual([expect.stringContaining('systemctl restart buildkit')])
  })

  test("has a target for builders that buildx creates and one for the machine's buildkitd", async () => {
    const ids = async (says: Record<string, string>, options: Partial<ClientOptions> = {}) =>
      (await buildkitAdapter.findTargets(machine(says), { ...anything, ...options })).map(({ id }) => id)
    expect(await ids({ ...buildx, ...buildkitd })).toEqual(['buildx', 'buildkitd'])
    expect(await ids(buildkitd)).toEqual(['buildkitd'])
    expect(await ids({})).toEqual(['buildx'])
    expect(await ids(buildx, { scope: 'system' })).toEqual(['buildkitd'])
    expect(await ids(buildx, { file: 'b.toml' })).toEqual([join(home, 'b.toml')])
  })

  test('comes with the command for a builder that reads the file and reaches the mirror', async () => {
    const [target] = await buildkitAdapter.findTargets(machine(buildx), { ...anything, file: 'b.toml' })
    const create = 'docker buildx create --use --driver docker-container'
    expect(target!.plan(mirror, nothing).todo.join()).toContain(
      `${create} --driver-opt network=host --config ${join(home, 'b.toml')} `,
    )
    const newer = await buildkitAdapter.findTargets(machine(buildx), {
      ...anything,
      file: 'b.toml',
      clientVersion: '0.29.1',
    })
    const otherMachine = { ...mirror, cache: 'http://10.0.0.7:5055' }
    expect(newer[0]!.plan(otherMachine, nothing).todo.join()).toContain(
      `${create} --buildkitd-config ${join(home, 'b.toml')} `,
    )
  })

  test("has the location of Docker's containers", async () => {
    const socket = join(home, 'engine.sock')
    const homeOf = async (more: Partial<Machine> = {}) =>
      (await buildkitAdapter.findTargets(machine(buildx, more), anything))[0]!.location
    expect(await homeOf()).toEqual({ in: 'host' })
    expect(await homeOf({ platform: 'darwin' })).toMatchObject({ in: 'vm', hostName: 'host.docker.internal' })
    expect(await homeOf({ env: { DOCKER_HOST: 'tcp://10.0.0.7' } })).toMatchObject({ in: 'isolated' })
    await startConfigurableEngine(socket, { info: { SecurityOptions: ['name=rootless'] } })
    expect(await homeOf()).toMatchObject({ in: 'isolated' })
  })

  test.each([
    ['the builder of dockerd', { 'docker buildx inspect': 'Name: default\nDriver: docker\n' }, /dockerd's own/],
    ['no builder', { 'docker buildx inspect': '!no builder "x" found\n' }, /no builder "x" found/],
    ['no docker', {}, /^docker is not installed\.$/],
    [
      'no buildx',
      { 'docker buildx inspect': '!docker: unknown command: docker buildx\n\nRun docker --help\n' },
      /^docker buildx is not installed\.$/,
    ],
  ])('cannot pull with %s', async (_, says, failed) => {
    const target = buildkitAdapter.restoreTarget(machine(says), { kind: 'buildx', scope: 'user', path: '/b.toml' })
    expect(await target.pull!('docker.io/a/b:c')).toEqual({ failed: expect.stringMatching(failed) })
  })

  test('pulls by a build of only the image, without output', async () => {
    let folder = ''
    let dockerfile = ''
    const runCommand: RunCommand = async (_, args) => {
      if (args[1] === 'inspect')
        return { exitCode: 0, stdout: 'Name: mine\nDriver:        docker-container\n', stderr: '' }
      expect(args.slice(0, -1)).toEqual(['buildx', 'build', '--no-cache', '--pull', '--output', 'type=cacheonly'])
      folder = args.at(-1)!
      dockerfile = await readFile(join(folder, 'Dockerfile'), 'utf8')
      return { exitCode: dockerfile.includes('bad') ? 1 : 0, stdout: '', stderr: '#1 x\nERROR: not found\n' }
    }
    const target = buildkitAdapter.restoreTarget(machine({}, { runCommand }), {
      kind: 'buildx',
      scope: 'user',
      path: '/b.toml',
    })
    expect(await target.pull!('docker.io/a/b:c')).toEqual({ failed: undefined })
    expect(dockerfile).toBe('FROM docker.io/a/b:c\n')
    await expect(readdir(folder)).rejects.toThrow('ENOENT')
    expect(await target.pull!('docker.io/a/bad:c')).toEqual({ failed: 'ERROR: not found' })
  })
})
