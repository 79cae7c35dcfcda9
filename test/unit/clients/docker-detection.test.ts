import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { dockerAdapter } from '../../../src/clients/docker/docker.ts'
import { type ClientOptions, FilesSnapshot, type Machine } from '../../../src/clients/types.ts'
import type { CommandResult } from '../../../src/lib/process.ts'
import { type ConfigurableEngineOptions, startConfigurableEngine } from '../../support/configurable-engine.ts'

let home: string
let socket: string
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-docker-'))
  socket = join(home, 'engine.sock')
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

/** Returns a machine with the engine at the socket, and with programs that print the given texts. */
const machine = (more: Partial<Machine> = {}, says: Record<string, string> = {}): Machine => ({
  platform: 'linux',
  env: { DOCKER_HOST: `unix://${socket}` },
  home,
  root: '/',
  detached: false,
  cwd: home,
  stateDir: join(home, 'state'),
  runCommand: (file) => {
    const stdout = says[file]
    const result: CommandResult | undefined = stdout === undefined ? undefined : { exitCode: 0, stdout, stderr: '' }
    return Promise.resolve(result)
  },
  ...more,
})

async function targetWith(
  engine: ConfigurableEngineOptions,
  more: Partial<Machine> = {},
  options: Partial<ClientOptions> = {},
) {
  await startConfigurableEngine(socket, engine)
  const [target] = await dockerAdapter.findTargets(machine(more), { ...anything, ...options })
  return target!
}

describe('the Docker engine', () => {
  const containerd = [['driver-type', 'io.containerd.snapshotter.v1']]

  test('is found by its answer to docker info', async () => {
    expect(await dockerAdapter.find(machine())).toBeUndefined()
    expect(await dockerAdapter.find(machine({}, { dockerd: 'Docker version 20.10.24+dfsg1, build 5d6db84\n' }))).toBe(
      'docker 20.10.24+dfsg1 (no engine answers)',
    )
    await startConfigurableEngine(socket, { info: { ServerVersion: '28.5.2', DriverStatus: containerd } })
    expect(await dockerAdapter.find(machine())).toBe('docker 28.5.2 (containerd image store)')
  })

  test('of the system gets the form that it reads', async () => {
    const target = await targetWith({ info: { ServerVersion: '28.5.2', DriverStatus: containerd } })
    expect(target).toMatchObject({ id: 'system', location: { in: 'host' } })
    expect(target.inputs).toEqual({ files: ['/etc/docker/daemon.json'], trees: ['/etc/docker/certs.d'] })
    const plan = target.plan(mirror, new FilesSnapshot(new Map()))
    expect(plan.changes.map(({ path }) => path)).toEqual(['/etc/docker/certs.d/docker.io/hosts.toml'])
    expect(plan.notes.join()).toContain('No dockerd was found')
    expect(target.reload).toBeUndefined()
  })

  test('with the classic image store needs a reload, and a restart for builds', async () => {
    const target = await targetWith({})
    const plan = target.plan(mirror, new FilesSnapshot(new Map()))
    expect(plan.changes.map(({ path }) => path)).toEqual(['/etc/docker/daemon.json'])
    expect(plan.todo).toHaveLength(1)
    // Expects no step, because the engine reports its mirrors, and a restart would stop containers.
    expect(target.listUndoSteps?.(['/etc/docker/daemon.json'])).toEqual([])
    expect(target.listUndoSteps?.(['/etc/docker/certs.d/docker.io/hosts.toml'])).toEqual([])
    const old = dockerAdapter.restoreTarget(machine(), { ...target.details, version: '20.10.24' })
    expect(old.plan(mirror, new FilesSnapshot(new Map())).todo.join()).toContain('after a restart')
  })

  test("is overridden by the user's version and image store", async () => {
    const target = await targetWith({}, {}, { clientVersion: '28.5.2', imageStore: 'containerd' })
    const plan = target.plan(mirror, new FilesSnapshot(new Map()))
    expect(plan.changes.map(({ path }) => path)).toEqual(['/etc/docker/certs.d/docker.io/hosts.toml'])
  })

  test.each([
    [
      'Docker Desktop',
      { OperatingSystem: 'Docker Desktop', Name: 'docker-desktop' },
      '.docker/daemon.json',
      'desktop restart',
    ],
    [
      'OrbStack',
      { OperatingSystem: 'OrbStack', Name: 'orbstack' },
      '.orbstack/config/docker.json',
      'orb restart docker',
    ],
  ])('of %s has its file in the home folder, and reaches the host by name', async (what, info, file, then) => {
    const target = await targetWith(
      { info: { ...info, ServerVersion: '28.5.2', DriverStatus: containerd } },
      { platform: 'darwin' },
    )
    expect(target.location).toEqual({ in: 'vm', what, hostName: 'host.docker.internal' })
    expect(target.inputs).toEqual({ files: [join(home, file)], trees: [] })
    const plan = target.plan({ ...mirror, cache: 'http://host.docker.internal:5055' }, new FilesSnapshot(new Map()))
    expect(plan.todo.join()).toContain(then)
    const recalled = dockerAdapter.restoreTarget(machine({ platform: 'darwin' }), target.details)
    expect(recalled.listUndoSteps?.([join(home, file)]).join()).toContain(then)
    expect(target.reload).toBeUndefined()
    expect(target.validate).toBeUndefined()
  })

  test.each([
    ['colima', { Name: 'colima-dev' }, {}, 'docker: {"registry-mirrors"'],
    ['another virtual machine', { Name: 'lima-rancher-desktop' }, {}, '"insecure-registries": ['],
    [
      'Docker Desktop, from within WSL,',
      { OperatingSystem: 'Docker Desktop' },
      { WSL_DISTRO_NAME: 'Debian' },
      '"registry-mirrors": [',
    ],
  ])('of %s gets its settings on stdout', async (_, info, env, output) => {
    const platform = 'WSL_DISTRO_NAME' in env ? 'linux' : 'darwin'
    const target = await targetWith({ info }, { platform, env: { DOCKER_HOST: `unix://${socket}`, ...env } })
    const plan = target.plan({ ...mirror, cache: 'http://host.docker.internal:5055' }, new FilesSnapshot(new Map()))
    expect(plan).toMatchObject({ changes: [], output: expect.stringContaining(output) })
    expect(plan.todo).not.toEqual([])
  })

  test('that is rootless has its files in the home folder, and does not reach the loopback of the host', async () => {
    const target = await targetWith({ info: { SecurityOptions: ['name=rootless'] } })
    expect(target).toMatchObject({ id: 'rootless', details: { scope: 'user' }, location: { in: 'isolated' } })
    expect(target.inputs.files).toEqual([join(home, '.config/docker/daemon.json')])
  })

  test('on another machine is refused because its files are not on this one', async () => {
    for (const host of ['tcp://10.0.0.7:2375', 'ssh://me@there'])
      await expect(dockerAdapter.findTargets(machine({ env: { DOCKER_HOST: host } }), anything)).rejects.toThrow(
        expect.objectContaining({ exit: 4, message: expect.stringContaining('another machine') }),
      )
    expect(await dockerAdapter.find(machine({ env: { DOCKER_HOST: 'tcp://10.0.0.7:2375' } }))).toBeUndefined()
  })

  test('is not found at a socket of podman', async () => {
    const target = await targetWith({ components: [{ Name: 'Podman Engine' }] })
    expect(target.pull).toBeUndefined()
  })

  test('that does not answer is guessed, with the flags of its systemd unit', async () => {
    const unit =
      'ExecStart={ path=/usr/sbin/dockerd ; argv[]=/usr/sbin/dockerd -H fd:// --registry-mirror=https://a.example ; ignore_errors=no }\n'
    const says = { dockerd: 'Docker version 27.5.1, build 4c9b3b0\n', systemctl: unit }
    const [target] = await dockerAdapter.findTargets(machine({}, says), anything)
    expect(target!.id).toBe('system')
    expect(() => target!.plan(mirror, new FilesSnapshot(new Map()))).toThrow(/--registry-mirror=https:\/\/a\.example/)
    const [user] = await dockerAdapter.findTargets(machine({}, says), { ...anything, scope: 'user' })
    const plan = user!.plan(mirror, new FilesSnapshot(new Map()))
    expect(plan.changes.map(({ path }) => path)).toEqual([join(home, '.config/docker/daemon.json')])
    expect(plan.notes[0]).toContain('a guess')
  })

  test('is offered together with the other engines of this machine unless the user has chosen one', async () => {
    const runtime = join(home, 'run')
    await mkdir(runtime)
    await startConfigurableEngine(join(runtime, 'docker.sock'), { info: { SecurityOptions: ['name=rootless'] } })
    const targets = await dockerAdapter.findTargets(machine({ env: { XDG_RUNTIME_DIR: runtime } }), {
      ...anything,
      scope: 'user',
    })
    expect(targets.map(({ id }) => id)).toEqual(['rootless'])
  })

  test('is restored from its record without contacting it', async () => {
    const target = await targetWith({ info: { ServerVersion: '28.5.2', DriverStatus: containerd } })
    const again = dockerAdapter.restoreTarget(
      machine(),
      JSON.parse(JSON.stringify(target.details)) as Record<string, string>,
    )
    expect(again).toMatchObject({ id: target.id, title: target.title, details: target.details })
    expect(again.inputs).toEqual(target.inputs)
  })

  test('validates its file by dockerd', async () => {
    const target = await targetWith(
      {},
      {
        runCommand: (_, args) =>
          Promise.resolve({
            exitCode: 1,
            stdout: '',
            stderr: `unable to configure the Docker daemon with file ${args.at(-1)}: no`,
          }),
      },
    )
    const change = { path: '/etc/docker/daemon.json', before: undefined, after: '{}' }
    await expect(target.validate!([change])).rejects.toThrow(
      expect.objectContaining({ exit: 2, message: expect.stringContaining('with file /etc/docker/daemon.json: no') }),
    )
    for (const stderr of ['unknown flag: --validate', '']) {
      const runCommand = () => Promise.resolve({ exitCode: 125, stdout: '', stderr })
      await dockerAdapter.restoreTarget(machine({ runCommand }), target.details).validate!([change])
    }
  })
})

describe('docker with --root', () => {
  test('contacts no engine, and has its files below the root', async () => {
    await writeFile(socket, '')
    const runCommand = () => Promise.reject(new Error('a program was started'))
    const detached = machine({ detached: true, root: home, runCommand })
    const [target] = await dockerAdapter.findTargets(detached, anything)
    expect(target!.inputs).toEqual({
      files: [join(home, 'etc/docker/daemon.json')],
      trees: [join(home, 'etc/docker/certs.d')],
    })
    expect(target!.pull ?? target!.reload ?? target!.validate).toBeUndefined()
  })
})
