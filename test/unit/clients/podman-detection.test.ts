import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { podmanAdapter } from '../../../src/clients/podman/podman.ts'
import { FilesSnapshot } from '../../../src/clients/types.ts'
import { type Answers, fails, machineWith, nothingSaid } from '../../support/clients/machine-with.ts'

const mirror = {
  cache: 'http://127.0.0.1:5055',
  registry: undefined,
  registries: ['docker.io'],
  defaultUpstream: 'docker.io',
  fallback: true,
}
const isRoot = process.getuid?.() === 0

describe('podman on this machine', () => {
  test.each([
    [{ 'podman --version': 'podman version 4.3.1\n' }, 'podman 4.3.1'],
    [{ 'buildah --version': 'buildah version 1.28.2 (image-spec 1.0.2)\n' }, 'buildah 1.28.2'],
    [{ 'skopeo --version': 'skopeo version 1.9.3\n' }, 'skopeo 1.9.3'],
    [{ 'podman --version': fails('broken') }, undefined],
    [{}, undefined],
  ])('is found by its programs: %o', async (answers: Answers, found) => {
    expect(await podmanAdapter.find((await machineWith(answers)).machine)).toBe(found)
  })

  test('has a system and a user target, the likelier one first', async () => {
    const { machine, home } = await machineWith({ 'podman --version': 'podman version 5.4.2' })
    const targets = await podmanAdapter.findTargets(machine, nothingSaid)
    expect(targets.map(({ id }) => id)).toEqual(isRoot ? ['system', 'user'] : ['user', 'system'])
    expect(targets.find(({ id }) => id === 'user')!.title).toContain(join(home, '.config/containers/registries.conf.d'))
    const [only] = await podmanAdapter.findTargets(machine, { ...nothingSaid, scope: 'system' })
    expect(only!.inputs.files).toContain('/etc/containers/registries.conf')
    expect(podmanAdapter.restoreTarget(machine, only!.details).inputs).toEqual(only!.inputs)
  })

  test("prefers the user target if a user file hides the system's", async () => {
    const files = { '.config/containers/registries.conf': '' }
    const { machine } = await machineWith({ 'podman --version': 'podman version 5.4.2' }, files)
    expect((await podmanAdapter.findTargets(machine, nothingSaid))[0]!.id).toBe('user')
    const newer = await podmanAdapter.findTargets(machine, { ...nothingSaid, clientVersion: '6.1' })
    expect(newer[0]!.id).toBe(isRoot ? 'system' : 'user')
  })

  test('reads XDG_CONFIG_HOME only since version 6', async () => {
    const { machine } = await machineWith({}, {}, { env: { XDG_CONFIG_HOME: '/xdg' } })
    const user = async (clientVersion: string) =>
      (await podmanAdapter.findTargets(machine, { ...nothingSaid, scope: 'user', clientVersion }))[0]!.inputs.files
    expect(await user('5.8.6')).not.toContain('/xdg/containers/registries.conf')
    expect(await user('6.0.0')).toContain('/xdg/containers/registries.conf')
  })

  test.each([
    [{ podman: 'podman version 5.8.2', skopeo: 'skopeo version 1.22.0' }, {}, 'no'],
    [{ podman: 'podman version 6.0.1', skopeo: 'skopeo version 1.23.0', buildah: 'buildah version 1.44.0' }, {}, 'no'],
    [{ podman: 'podman version 6.0.1', skopeo: 'skopeo version 1.22.0' }, {}, 'skopeo 1.22.0'],
    [{ podman: 'podman version 5.8.2', buildah: 'buildah version 1.44.0' }, {}, 'no'],
    [{ podman: 'podman version 6.0.1', buildah: 'buildah version 1.43.1' }, {}, 'buildah 1.43.1'],
  ])('is planned for %j, which may read the files by different rules', async (programs, env, who) => {
    const answers = Object.fromEntries(Object.entries(programs).map(([name, output]) => [`${name} --version`, output]))
    const files = { '.config/containers/registries.conf': '' }
    const { machine } = await machineWith(answers, files, { env })
    const [target] = await podmanAdapter.findTargets(machine, { ...nothingSaid, scope: 'system' })
    const found = new Map([[join(machine.home, '.config/containers/registries.conf'), Buffer.from('')]])
    const { notes } = target!.plan(mirror, new FilesSnapshot(found))
    expect(notes.some((note) => note.startsWith('skopeo') || note.startsWith('buildah'))).toBe(who !== 'no')
    if (who !== 'no') expect(notes.join('\n')).toContain(`${who}: not mirrored by this file`)
  })

  test('is planned by the version of buildah or skopeo without podman', async () => {
    const modern = async (answers: Answers) => {
      const { machine } = await machineWith(answers, {}, { env: { XDG_CONFIG_HOME: '/xdg' } })
      const [target] = await podmanAdapter.findTargets(machine, { ...nothingSaid, scope: 'user' })
      return target!.inputs.files.includes('/xdg/containers/registries.conf')
    }
    expect(await modern({ 'buildah --version': 'buildah version 1.44.1 (image-spec 1.1.1)' })).toBe(true)
    expect(await modern({ 'skopeo --version': 'skopeo version 1.23.0' })).toBe(true)
    expect(await modern({ 'skopeo --version': 'skopeo version 1.22.0' })).toBe(false)
  })

  test('reads the variables that its version reads', async () => {
    const env = { CONTAINERS_REGISTRIES_CONF: 'my.conf', CONTAINERS_REGISTRIES_CONF_OVERRIDE: '/over.conf' }
    const listInputs = async (answers: Answers) => {
      const { machine, home } = await machineWith(answers, {}, { env })
      const [target] = await podmanAdapter.findTargets(machine, { ...nothingSaid, scope: 'user' })
      const { files } = target!.inputs
      return [files.includes(join(home, 'my.conf')), files.includes('/over.conf')]
    }
    expect(await listInputs({ 'podman --version': 'podman version 6.0.1' })).toEqual([true, true])
    expect(await listInputs({ 'podman --version': 'podman version 5.8.2' })).toEqual([true, false])
    expect(await listInputs({ 'skopeo --version': 'skopeo version 1.22.0' })).toEqual([false, false])
    expect(await listInputs({ 'skopeo --version': 'skopeo version 1.23.0' })).toEqual([true, true])
  })

  test('is not run below --root', async () => {
    const { machine, asked } = await machineWith({}, {}, { detached: true, root: '/tree', home: '/tree' })
    const targets = await podmanAdapter.findTargets(machine, nothingSaid)
    expect(targets.map(({ title }) => title)).toEqual([
      'system (/tree/etc/containers/registries.conf.d)',
      'user (/tree/.config/containers/registries.conf.d)',
    ])
    expect(await podmanAdapter.find(machine)).toBeUndefined()
    expect(targets[0]!.pull).toBeUndefined()
    expect(asked).toEqual([])
  })
})

describe('a pull by podman', () => {
  const pull = async (answers: Answers) => {
    const { machine, asked } = await machineWith(answers)
    const [target] = await podmanAdapter.findTargets(machine, { ...nothingSaid, scope: 'system', clientVersion: '5.0' })
    const before = asked.length
    const result = await target!.pull!('docker.io/a/b:c')
    return { result, asked: asked.slice(before).map(({ line }) => line) }
  }

  test('removes the image', async () => {
    const { result, asked } = await pull({ podman: '' })
    expect(result).toEqual({ failed: undefined })
    expect(asked).toEqual(['podman pull --quiet docker.io/a/b:c', 'podman image rm docker.io/a/b:c'])
  })

  test('says why it failed', async () => {
    expect(await pull({ podman: fails('Error: denied\n') })).toEqual({
      result: { failed: 'Error: denied' },
      asked: ['podman pull --quiet docker.io/a/b:c'],
    })
  })

  test('is made by buildah or skopeo without podman', async () => {
    expect((await pull({ buildah: '' })).asked.slice(1)).toEqual([
      'buildah pull --quiet docker.io/a/b:c',
      'buildah rmi docker.io/a/b:c',
    ])
    expect((await pull({ skopeo: fails('no') })).result).toEqual({ failed: 'no' })
    await expect(pull({})).rejects.toThrow('Neither podman nor buildah nor skopeo')
  })
})

describe('podman in a virtual machine', () => {
  const list = JSON.stringify([
    { Name: 'off', Running: false, Default: false },
    { Name: 'other', Running: true, Default: false },
    { Name: 'podman-machine-default', Running: true, Default: true },
  ])
  const answers = { 'podman --version': 'podman version 5.8.6', 'podman machine list': list }

  test('is configured inside it and reaches this machine by name', async () => {
    const { machine, asked } = await machineWith({ ...answers, podman: '' }, {}, { platform: 'darwin' })
    const targets = await podmanAdapter.findTargets(machine, nothingSaid)
    expect(targets.map(({ id }) => id)).toEqual(['machine podman-machine-default', 'machine other'])
    const [target] = targets
    expect(target!.location).toMatchObject({ in: 'vm', hostName: 'host.containers.internal' })
    await target!.files.write('/etc/containers/registries.conf.d/50-mirror.conf', Buffer.from('x'), undefined)
    expect(asked.at(-1)).toMatchObject({
      line: 'podman machine ssh podman-machine-default sudo sh -s',
      input: expect.stringContaining('/etc/containers/registries.conf.d/50-mirror.conf') as string,
    })
    await target!.pull!('a')
    expect(asked.at(-2)!.line).toBe('podman --connection podman-machine-default pull --quiet a')
    expect(podmanAdapter.restoreTarget(machine, target!.details)).toMatchObject({
      id: target!.id,
      location: target!.location,
    })
  })

  test('is refused if no machine runs', async () => {
    for (const output of ['[]', fails('no such command'), JSON.stringify([{ Name: 'off', Running: false }])]) {
      const { machine } = await machineWith({ 'podman machine list': output }, {}, { platform: 'win32' })
      await expect(podmanAdapter.findTargets(machine, nothingSaid)).rejects.toMatchObject({
        exit: 4,
        hints: ['podman machine start'],
      })
    }
  })
})
