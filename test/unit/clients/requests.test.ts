import { chmod, mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import type { RecordedFile } from '../../../src/clients/records.ts'
import { describeRequests, listClientRequests } from '../../../src/clients/requests.ts'
import type { ClientName } from '../../../src/clients/types.ts'
import { openMachineRecords } from '../../../src/clients/records.ts'
import { machineWith } from '../../support/clients/machine-with.ts'
import { temporaryHome } from '../../support/mirror.ts'

const registries = ['docker.io', 'ghcr.io', 'registry.example:5000']
const cache = 'http://127.0.0.1:5055'
const alpine = { registry: 'docker.io', repository: 'library/alpine', reference: '3.20', isPushed: false }
const tool = { registry: 'ghcr.io', repository: 'a/tool', reference: `sha256:${'0'.repeat(64)}`, isPushed: false }
const other = { registry: 'other.example', repository: 'app', reference: '1', isPushed: false }
const port = { registry: 'registry.example:5000', repository: 'app', reference: '1', isPushed: false }
const hub = 'https://registry-1.docker.io/v2/library/alpine/manifests/3.20'

const file = (path: string): RecordedFile => ({ path, before: undefined, written: '00' })
const folder = (root: string, ...names: string[]) => names.map((name) => file(`${root}/${name}/hosts.toml`))

function makeRecord(client: ClientName, files: RecordedFile[], changed: object = {}) {
  return { client, title: 'system', cache, registry: 'http://127.0.0.1:5001', fallback: true, files, ...changed }
}

const list = (...[record, image]: [ReturnType<typeof makeRecord>, typeof alpine]) =>
  describeRequests(record, image, registries).map(({ via, url, fallback }) => ({ via, url, fallback }))

describe('docker', () => {
  const classic = makeRecord('docker', [file('/etc/docker/daemon.json')])
  const folders = makeRecord('docker', folder('/etc/docker/certs.d', 'docker.io', 'ghcr.io', 'registry.example:5000'))

  test('with the classic image store asks the mirror for Docker Hub without a registry', () => {
    expect(list(classic, alpine)).toEqual([
      { via: 'mirror', url: `${cache}/v2/library/alpine/manifests/3.20`, fallback: hub },
    ])
  })

  test('with the classic image store asks other registries themselves', () => {
    const [request] = describeRequests(classic, tool, registries)
    expect(request).toMatchObject({
      via: 'origin',
      url: `https://ghcr.io/v2/a/tool/manifests/${tool.reference}`,
      notes: ['The list registry-mirrors of Docker is for Docker Hub only, so ghcr.io is not mirrored.'],
    })
  })

  test('with the containerd image store names the registry in a parameter', () => {
    expect(list(folders, alpine)).toEqual([
      { via: 'mirror', url: `${cache}/v2/library/alpine/manifests/3.20?ns=docker.io`, fallback: hub },
    ])
    expect(list(folders, port)).toMatchObject([{ url: `${cache}/v2/app/manifests/1?ns=registry.example:5000` }])
  })

  test('asks a registry without a folder itself', () => {
    expect(list(folders, other)).toEqual([
      { via: 'origin', url: 'https://other.example/v2/app/manifests/1', fallback: undefined },
    ])
  })

  test('of an unknown image store asks in one of two ways', () => {
    const both = makeRecord('docker', [...classic.files, ...folders.files])
    expect(describeRequests(both, alpine, registries).map(({ url, notes }) => [url, ...notes])).toEqual([
      [`${cache}/v2/library/alpine/manifests/3.20`, 'With the classic image store.'],
      [`${cache}/v2/library/alpine/manifests/3.20?ns=docker.io`, 'With the containerd image store.'],
    ])
  })
})

test('podman names the registry in the path', () => {
  const record = makeRecord('podman', [file('/etc/containers/registries.conf.d/50-mirror.conf')])
  expect(list(record, alpine)).toEqual([
    { via: 'mirror', url: `${cache}/v2/docker.io/library/alpine/manifests/3.20`, fallback: hub },
  ])
  expect(list(record, port)).toMatchObject([{ url: `${cache}/v2/registry.example_5000/app/manifests/1` }])
  expect(list(record, other)).toMatchObject([{ via: 'origin' }])
})

test('containerd with a default folder asks the mirror for every registry', () => {
  const record = makeRecord('containerd', folder('/etc/containerd/certs.d', '_default', 'docker.io'))
  expect(list(record, other)).toEqual([
    {
      via: 'mirror',
      url: `${cache}/v2/app/manifests/1?ns=other.example`,
      fallback: 'https://other.example/v2/app/manifests/1',
    },
  ])
})

test.each([
  ['kind', [...folder('/etc/containerd/certs.d', '_default')], { cache: 'http://172.18.0.1:5055' }],
  ['kind', [file('/home/me/kind.yaml')], { cache: 'http://172.18.0.1:5055' }],
  ['k3d', [file('/home/me/k3d.yaml')], { cache: 'http://172.18.0.1:5055' }],
  ['k3s', [file('/etc/rancher/k3s/registries.yaml')], { cache: 'http://172.18.0.1:5055' }],
] as const)('the nodes of %s (%o) ask at the gateway of their network', (client, files, changed) => {
  expect(list(makeRecord(client, [...files], changed), alpine)).toEqual([
    { via: 'mirror', url: 'http://172.18.0.1:5055/v2/library/alpine/manifests/3.20?ns=docker.io', fallback: hub },
  ])
})

test('buildkit names the registry in a parameter', () => {
  const record = makeRecord('buildkit', [file('/etc/buildkit/buildkitd.toml')])
  expect(list(record, alpine)).toMatchObject([{ url: `${cache}/v2/library/alpine/manifests/3.20?ns=docker.io` }])
})

test('kaniko names the registry below /upstream/', () => {
  expect(list(makeRecord('kaniko', []), alpine)).toMatchObject([
    { url: `${cache}/v2/upstream/docker.io/library/alpine/manifests/3.20` },
  ])
})

test('a client without a fallback has none', () => {
  const record = makeRecord('containerd', folder('/etc/containerd/certs.d', 'docker.io'), { fallback: false })
  expect(list(record, alpine)).toMatchObject([{ via: 'mirror', fallback: undefined }])
})

test('a pushed image is asked for at the registry', () => {
  const image = { registry: 'localhost:5001', repository: 'app', reference: '1', isPushed: true }
  expect(list(makeRecord('docker', []), image)).toEqual([
    { via: 'mirror', url: 'http://127.0.0.1:5001/v2/app/manifests/1', fallback: undefined },
  ])
  expect(list(makeRecord('docker', [], { registry: undefined }), image)).toMatchObject([
    { url: 'http://localhost:5001/v2/app/manifests/1' },
  ])
})

test('a client that was configured before a registry was added gets the command that adds it', () => {
  const old = makeRecord('containerd', folder('/etc/containerd/certs.d', 'docker.io'))
  const find = (image: typeof alpine) =>
    describeRequests(old, image, registries, 'mirror configure containerd').map(({ via, fix }) => [via, fix])
  expect(find(tool)).toEqual([['origin', 'mirror configure containerd']])
  expect(find(other)).toEqual([['origin', undefined]])
  expect(find(alpine)).toEqual([['mirror', undefined]])
  const classic = makeRecord('docker', [file('/etc/docker/daemon.json')])
  expect(describeRequests(classic, tool, registries, 'mirror configure docker')[0]!.fix).toBeUndefined()
})

test('a client whose file was changed gets the command that writes it again', async () => {
  const { machine, home } = await machineWith({}, {}, { platform: 'linux' })
  const path = join(home, '.config/containers/registries.conf.d/50-mirror.conf')
  await openMachineRecords(machine).put({
    client: 'podman',
    place: 'user',
    title: 'user',
    details: { scope: 'user', era: 'v2' },
    root: undefined,
    since: new Date(0).toISOString(),
    cache,
    registry: undefined,
    fallback: true,
    files: [{ path, before: undefined, written: '0'.repeat(64) }],
    folders: [],
  })
  const options = { machine, image: alpine, stale: [], registries, client: 'podman' } as const
  expect(await listClientRequests(options)).toMatchObject([
    { client: 'podman', notes: [expect.stringContaining(': gone')], fix: 'mirror configure podman --scope user' },
  ])
})

test('an unconfigured client gets the command for its target, with sudo where only root can write', async () => {
  const programs = await temporaryHome()
  await mkdir(programs, { recursive: true })
  for (const name of ['containerd', 'podman']) {
    await writeFile(join(programs, name), '#!/bin/sh\n')
    await chmod(join(programs, name), 0o755)
  }
  const answers = { 'containerd --version': 'containerd github.com/containerd/containerd 1.6.20\n' }
  const { machine } = await machineWith(answers, {}, { platform: 'linux', env: { PATH: programs } })
  const find = async (client: string) => {
    const found = await listClientRequests({ machine, image: alpine, stale: [], registries, client })
    return found.map(({ via, url, fix }) => ({ via, url, fix }))
  }
  const sudo = process.geteuid?.() === 0 ? 'mirror' : 'sudo .*'
  const fix = expect.stringMatching(new RegExp(`^${sudo} configure containerd --scope system$`)) as string
  expect(await find('containerd')).toEqual([{ via: 'origin', url: hub, fix }])
  const own = expect.stringMatching(/^mirror configure podman --scope (?:user|system)$/) as string
  expect(await find('podman')).toEqual([{ via: 'origin', url: hub, fix: own }])
})
