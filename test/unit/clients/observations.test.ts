import { mkdir, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { buildkitAdapter } from '../../../src/clients/buildkit/buildkit.ts'
import type { ConfigTarget, Machine } from '../../../src/clients/types.ts'
import { containerdAdapter } from '../../../src/clients/containerd/containerd.ts'
import { k3sAdapter } from '../../../src/clients/k3s/k3s.ts'
import { podmanAdapter } from '../../../src/clients/podman/podman.ts'
import { type Answers, fails, machineWith } from '../../support/clients/machine-with.ts'

const cache = 'http://127.0.0.1:5055'
const look = (target: ConfigTarget | undefined) => target!.observe!({ cache })

describe('the observation of podman', () => {
  const info = (...mirrors: string[]) =>
    JSON.stringify({
      registries: { 'docker.io': { Mirrors: mirrors.map((Location) => ({ Location })) }, search: ['docker.io'] },
    })
  const observe = async (answers: Answers) => {
    const { machine } = await machineWith(answers)
    return look(podmanAdapter.restoreTarget(machine, { scope: 'user', era: 'before 6' }))
  }

  test.each([
    [info('127.0.0.1:5055/docker.io'), true, 'did not reach'],
    [info('127.0.0.1:9/docker.io', 'mirror.example'), false, 'another file replaces'],
    [info(), false, 'another file replaces'],
    ['{"registries": {}}', false, 'another file replaces'],
    ['no JSON', undefined, 'not configured'],
  ])('has the mirrors that podman info lists: %s', async (info, inUse, why) => {
    const observation = await observe({ 'podman info --format json': info })
    expect(observation.inUse).toBe(inUse)
    expect(observation.saw[0]).toContain('podman info')
    expect(observation.reasons[0]!.why).toContain(why)
  })
})

describe('the observation of containerd', () => {
  async function observe(configPath: string, hostsToml?: string) {
    const { machine, home } = await machineWith({
      'containerd config dump': `version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "${configPath}"\n`,
    })
    const rootedMachine = { ...machine, root: home }
    const file = join(home, 'certs.d', '_default', 'hosts.toml')
    if (hostsToml !== undefined) {
      await mkdir(dirname(file), { recursive: true })
      await writeFile(file, hostsToml)
    }
    const details = { scope: 'system', folders: '/certs.d', socket: join(home, 'no.sock') }
    return look(containerdAdapter.restoreTarget(rootedMachine, details))
  }

  test('has its config_path and the hosts.toml for Docker Hub', async () => {
    const hostsToml = `[host."${cache}"]\ncapabilities = ["pull"]\n`
    expect(await observe('/certs.d')).toMatchObject({
      inUse: false,
      saw: [
        expect.stringContaining('is /certs.d'),
        expect.stringContaining('does not report'),
        expect.stringContaining('no hosts.toml for docker.io'),
      ],
      reasons: [{ why: expect.stringContaining('not configured') }],
    })
    expect(await observe('', hostsToml)).toMatchObject({
      inUse: false,
      saw: [
        expect.stringContaining('is not set'),
        expect.stringContaining('does not report'),
        expect.stringContaining(`names ${cache}`),
      ],
      reasons: [{ why: 'config_path is not set to /certs.d' }],
    })
    // Expects no verdict, because containerd does not report a reload of its file.
    const { inUse, reasons } = await observe('/certs.d', hostsToml)
    expect(inUse).toBeUndefined()
    expect(reasons.map(({ why }) => why).join()).toContain('not restarted')
    expect((await observe('/certs.d', hostsToml.replace('5055', '9'))).saw[2]).toContain(`does not name ${cache}`)
  })
})

describe('the observation of k3s', () => {
  test('has the files that k3s made of registries.yaml at its start', async () => {
    const { machine, home } = await machineWith({})
    const target = k3sAdapter.restoreTarget({ ...machine, root: home }, {})
    expect(await look(target)).toMatchObject({ inUse: undefined, todo: [] })
    const file = join(home, 'var/lib/rancher/k3s/agent/etc/containerd/certs.d/docker.io/hosts.toml')
    await mkdir(dirname(file), { recursive: true })
    expect(await look(target)).toMatchObject({
      inUse: false,
      todo: [expect.stringContaining('systemctl restart k3s')],
      reasons: [{ why: expect.stringContaining('not restarted') }],
    })
    await writeFile(file, `[host."${cache}/v2"]\n`)
    expect(await look(target)).toMatchObject({
      inUse: true,
      todo: [],
      reasons: [{ why: expect.stringContaining('reach') }],
    })
  })
})

describe('the observation of BuildKit', () => {
  test.each([
    ['Name: default\nDriver: docker\n', false, "Docker's own"],
    ['Name: mine\nDriver: docker-container\n', undefined, 'created before'],
    [
      'Name: mine\nDriver: docker-container\nFile#buildkitd.toml:\n > [registry."docker.io"]\n',
      false,
      'created before',
    ],
    ['Name: mine\nDriver: docker-container\nFile#buildkitd.toml:\n > mirrors = ["127.0.0.1:5055"]\n', true, 'network'],
  ])('has the builder in use: %s', async (info, inUse, why) => {
    const { machine } = await machineWith({ 'docker buildx inspect': info })
    const target = buildkitAdapter.restoreTarget(machine, { kind: 'buildx', scope: 'user', path: '/b.toml' })
    const observation = await look(target)
    expect(observation.inUse).toBe(inUse)
    expect(observation.saw[0]).toContain('The builder in use is')
    expect(observation.reasons[0]!.why).toContain(why)
  })
})

describe('the observation of a client whose own program fails', () => {
  const observed = {
    podman: ['podman info', (machine: Machine) => podmanAdapter.restoreTarget(machine, { scope: 'user' })],
    containerd: [
      'containerd config dump',
      (machine: Machine) =>
        containerdAdapter.restoreTarget(machine, { scope: 'system', folders: '/certs.d', socket: '/no.sock' }),
    ],
    buildkit: [
      'docker buildx inspect',
      (machine: Machine) => buildkitAdapter.restoreTarget(machine, { kind: 'buildx', scope: 'user', path: '/b.toml' }),
    ],
  } as const

  describe.each(Object.entries(observed))('%s', (_, [command, restore]) => {
    test('has the error, without warnings before it', async () => {
      const stderr = 'level=warning msg="old"\nError: cannot read "/a.conf": line 2\n'
      const { machine } = await machineWith({ [command]: fails(stderr) })
      const failure = `${command} fails: cannot read "/a.conf": line 2.`
      expect(await look(restore(machine))).toMatchObject({ failure, saw: expect.arrayContaining([failure]) })
    })

    test.each([
      'Cannot connect to the Docker daemon at unix:///var/run/docker.sock.',
      'open /a.toml: permission denied',
    ])('has no failure where only a daemon or a permission is missing: %s', async (stderr) => {
      const { machine } = await machineWith({ [command]: fails(stderr) })
      expect((await look(restore(machine))).failure).toBeUndefined()
    })
  })
})
