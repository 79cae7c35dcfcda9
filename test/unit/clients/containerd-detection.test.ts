import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import type { Machine } from '../../../src/clients/types.ts'
import { containerdAdapter } from '../../../src/clients/containerd/containerd.ts'
import { fails, machineWith, nothingSaid } from '../../support/clients/machine-with.ts'

const version = 'containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7\n'
const dumped = (path: string) => `version = 3
[grpc]
address = '/run/mine.sock'
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = '${path}'
`
const findTargets = (machine: Machine, scope?: 'user' | 'system') =>
  containerdAdapter.findTargets(machine, { ...nothingSaid, scope })

describe('containerd on this machine', () => {
  test.each([
    [{ 'containerd --version': version }, 'containerd 2.1.4'],
    [
      { 'containerd --version': 'containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3' },
      'containerd 1.6.20',
    ],
    [{ 'containerd --version': fails('') }, undefined],
    [{}, undefined],
  ])('is found by its program: %o', async (answers, found) => {
    expect(await containerdAdapter.find((await machineWith(answers)).machine)).toBe(found)
  })

  test('is configured in the first folder of its config_path', async () => {
    const answers = { 'containerd --version': version, 'containerd config dump': dumped('/opt/one:/opt/two') }
    const { machine } = await machineWith(answers)
    const [target, ...others] = await findTargets(machine)
    expect(others).toEqual([])
    expect(target!.id).toBe('system')
    expect(target!.inputs.trees).toEqual(['/opt/one', '/opt/two', '/etc/docker/certs.d'])
    expect(target!.details).toMatchObject({ version: '2.1.4', socket: '/run/mine.sock' })
    expect(containerdAdapter.restoreTarget(machine, target!.details).inputs).toEqual(target!.inputs)
  })

  test('is configured in the default folder if it reports no config_path', async () => {
    for (const result of [dumped(''), fails('broken')]) {
      const { machine } = await machineWith({ 'containerd --version': version, 'containerd config dump': result })
      const [target] = await findTargets(machine, 'system')
      expect(target!.inputs.trees).toEqual(['/etc/containerd/certs.d', '/etc/docker/certs.d'])
    }
  })

  test("has a user target if it runs rootless, which cannot reach this machine's loopback", async () => {
    const { machine, home } = await machineWith(
      { 'containerd --version': version },
      { 'run/containerd-rootless/child_pid': '1', '.config/containerd/config.toml': 'version = 2\n' },
    )
    const rootless = { ...machine, env: { XDG_RUNTIME_DIR: join(home, 'run') } }
    const targets = await findTargets(rootless)
    expect(targets.map(({ id }) => id).toSorted()).toEqual(['system', 'user'])
    const user = targets.find(({ id }) => id === 'user')!
    expect(user.location.in).toBe('isolated')
    expect(user.inputs.trees[0]).toBe(join(home, '.config/containerd/certs.d'))
  })

  test('is supported on Linux only, except below --root', async () => {
    const { machine, asked } = await machineWith({}, {}, { platform: 'darwin' })
    await expect(findTargets(machine)).rejects.toMatchObject({ exit: 4 })
    const below = { ...machine, detached: true, root: '/tree', home: '/tree' }
    const [target] = await findTargets(below)
    expect(target!.inputs.trees).toEqual(['/tree/etc/containerd/certs.d', '/tree/etc/docker/certs.d'])
    expect(target!.pull).toBeUndefined()
    expect(asked).toEqual([])
  })

  test('cannot pull if it does not run', async () => {
    const { machine } = await machineWith({ 'containerd config dump': dumped('').replace('/run/mine', '/nowhere/x') })
    const [target] = await findTargets(machine)
    await expect(target!.pull!('a')).rejects.toMatchObject({ exit: 4, hints: ['sudo systemctl start containerd'] })
  })
})
