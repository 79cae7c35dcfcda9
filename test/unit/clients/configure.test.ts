import { mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, expect, onTestFinished, test } from 'vitest'
import { configureClient, prepareClient } from '../../../src/clients/configure.ts'
import { emptyDaemonJsonLists } from '../../../src/clients/docker/daemon-json.ts'
import { dockerAdapter } from '../../../src/clients/docker/docker.ts'
import { ownFileHeader } from '../../../src/clients/files/kinds.ts'
import type { MirrorAddress } from '../../../src/clients/find-mirror.ts'
import { k3sAdapter } from '../../../src/clients/k3s/k3s.ts'
import { openClientRecords } from '../../../src/clients/records.ts'
import type { ClientAdapter, FilesSnapshot, Machine } from '../../../src/clients/types.ts'
import { prepareUndo, findRecords, undoClient } from '../../../src/clients/undo.ts'

let root: string
let machine: Machine
let daemonJson: string
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'mirror-configure-'))
  daemonJson = join(root, 'etc/docker/daemon.json')
  await mkdir(dirname(daemonJson), { recursive: true })
  machine = {
    platform: 'linux',
    env: {},
    home: root,
    root,
    detached: true,
    cwd: root,
    stateDir: join(root, 'state'),
    runCommand: () => Promise.resolve(undefined),
  }
})
afterEach(() => rm(root, { recursive: true }))

interface ConfigureOptions {
  readonly adapter?: ClientAdapter
  readonly version?: string
  readonly registry?: string
  readonly since?: number
}

async function configureFor(
  cache: string,
  file?: string,
  pem?: string,
  { adapter = dockerAdapter, version = '27', registry, since = 0 }: ConfigureOptions = {},
): Promise<void> {
  const options = { scope: undefined, clientVersion: version, imageStore: undefined, file, cluster: undefined }
  const [target] = await adapter.findTargets(machine, options)
  const mirror: MirrorAddress = {
    getAddress: () => ({
      cache,
      registry,
      why: '',
      warning: undefined,
      ca: pem === undefined ? undefined : { pem, file: '/ca.pem' },
    }),
    registries: ['docker.io'],
    defaultUpstream: 'docker.io',
    isNamed: false,
    isRemote: false,
    willServe: () => false,
  }
  const prepared = await prepareClient({ machine, adapter, target: target!, mirror, fallback: true })
  await configureClient(prepared, new Date(since))
}

test('a new address of the mirror replaces the old one, and undo restores the content before both', async () => {
  const before = '{\n  "registry-mirrors": ["https://a.example"]\n}\n'
  await writeFile(daemonJson, before)
  await configureFor('http://127.0.0.1:5055')
  await configureFor('http://127.0.0.1:6055')
  expect(JSON.parse(await readFile(daemonJson, 'utf8'))).toEqual({
    'registry-mirrors': ['http://127.0.0.1:6055', 'https://a.example'],
  })
  const [record] = await openClientRecords(machine.stateDir).list()
  await undoClient(machine, await prepareUndo(machine, record!), false)
  expect(await readFile(daemonJson, 'utf8')).toBe(before)
})

test('a mirror that enables TLS, changes its CA and disables TLS leaves nothing in the files', async () => {
  const before = '{\n  "registry-mirrors": ["https://a.example"]\n}\n'
  await writeFile(daemonJson, before)
  const ca = join(root, 'etc/docker/certs.d/127.0.0.1:5055/mirror-ca.crt')
  await configureFor('http://127.0.0.1:5055')
  for (const pem of ['one\n', 'another\n']) {
    await configureFor('https://127.0.0.1:5055', undefined, pem)
    expect(await readFile(ca, 'utf8')).toBe(`${ownFileHeader}${pem}`)
  }
  expect(JSON.parse(await readFile(daemonJson, 'utf8'))).toEqual({
    'registry-mirrors': ['https://127.0.0.1:5055', 'https://a.example'],
  })
  await configureFor('http://127.0.0.1:5055')
  await expect(readFile(ca)).rejects.toThrow('ENOENT')
  await configureFor('https://127.0.0.1:5055', undefined, 'one\n')
  expect(await undoAll()).toEqual([])
  expect(await readFile(daemonJson, 'utf8')).toBe(before)
  await expect(readdir(join(root, 'etc/docker'))).resolves.toEqual(['daemon.json'])
})

test('a CA that is no longer needed is removed from the files', async () => {
  const registries = join(root, 'etc/rancher/k3s/registries.yaml')
  const own = 'mirrors:\n  corp.example:\n    endpoint:\n      - https://corp.example\n'
  await mkdir(dirname(registries), { recursive: true })
  await writeFile(registries, own)
  for (const pem of ['one\n', undefined]) {
    await configureFor('https://mirror.example:5055', undefined, pem, { version: '28.1' })
    await configureFor('https://mirror.example:5055', undefined, pem, { adapter: k3sAdapter })
  }
  expect(await readFile(registries, 'utf8')).not.toContain('mirror-ca.crt')
  expect(await readFile(registries, 'utf8')).toContain('mirror.example:5055')
  for (const name of await readdir(join(root, 'etc'), { recursive: true }))
    if (name.endsWith('hosts.toml')) expect(await readFile(join(root, 'etc', name), 'utf8')).not.toContain('mirror-ca')
  expect(await undoAll()).toEqual([])
  expect(await readFile(registries, 'utf8')).toBe(own)
})

test.runIf(process.platform !== 'win32')('an absolute link below --root does not lead outside of it', async () => {
  const outside = await mkdtemp(join(tmpdir(), 'mirror-outside-'))
  onTestFinished(() => rm(outside, { recursive: true }))
  await writeFile(join(outside, 'daemon.json'), '{}')
  await symlink(join(outside, 'daemon.json'), daemonJson)
  await symlink(join(outside, 'certs.d'), join(dirname(daemonJson), 'certs.d'))
  await configureFor('https://127.0.0.1:5055', undefined, 'one\n', { version: '28.1' })
  expect(await readdir(outside)).toEqual(['daemon.json'])
  expect(await readFile(join(outside, 'daemon.json'), 'utf8')).toBe('{}')
  const inside = join(root, outside)
  expect(await readFile(join(inside, 'daemon.json'), 'utf8')).toContain('https://127.0.0.1:5055')
  expect(await readdir(join(inside, 'certs.d'))).toContain('docker.io')
  expect(await undoAll()).toEqual([])
  await expect(readdir(inside)).rejects.toThrow('ENOENT')
  expect(await readdir(outside)).toEqual(['daemon.json'])
  expect((await readdir(dirname(daemonJson))).toSorted()).toEqual(['certs.d', 'daemon.json'])
})

test('a new address of the registry leaves nothing of the old one in the files', async () => {
  const registries = join(root, 'etc/rancher/k3s/registries.yaml')
  await mkdir(dirname(registries), { recursive: true })
  await writeFile(registries, 'mirrors:\n  corp.example:\n    endpoint:\n      - https://corp.example\n')
  for (const port of [5001, 6001])
    await configureFor('https://mirror.example:5055', undefined, 'one\n', {
      adapter: k3sAdapter,
      registry: `https://mirror.example:${port}`,
    })
  expect(await readFile(registries, 'utf8')).toContain('mirror.example:6001')
  expect(await readFile(registries, 'utf8')).not.toContain('5001')
})

test('two records of one file are undone in reverse order, so that each finds the content that its run left', async () => {
  // Uses a layout that mirror would not write.
  const before = '{ "registry-mirrors" : [ ],\n\n"debug":true }'
  await writeFile(daemonJson, before)
  await configureFor('http://127.0.0.1:5055', undefined, undefined, { since: 1 })
  await configureFor('http://127.0.0.1:6055', daemonJson, undefined, { since: 2 })
  const records = await findRecords(machine, {
    client: 'docker',
    scope: undefined,
    cluster: undefined,
    file: undefined,
  })
  expect(records).toHaveLength(2)
  for (const record of records) await undoClient(machine, await prepareUndo(machine, record), false)
  expect(await readFile(daemonJson, 'utf8')).toBe(before)
})

async function undoAll(): Promise<string[]> {
  const notes: string[] = []
  for (const record of await openClientRecords(machine.stateDir).list()) {
    const prepared = await prepareUndo(machine, record)
    notes.push(...prepared.plan.notes)
    await undoClient(machine, prepared, false)
  }
  return notes
}

test('undo is exact after an abort between the record of a new address and its files', async () => {
  const before = '{\n  "debug": true\n}\n'
  await writeFile(daemonJson, before)
  await configureFor('http://127.0.0.1:5055')
  const first = await readFile(daemonJson, 'utf8')
  await configureFor('http://127.0.0.1:6055')
  await writeFile(daemonJson, first)
  expect(await undoAll()).toEqual([])
  expect(await readFile(daemonJson, 'utf8')).toBe(before)
})

test('an undo whose reload fails leaves a record whose undo is exact', async () => {
  const before = '{\n  "debug": true\n}\n'
  await writeFile(daemonJson, before)
  await configureFor('http://127.0.0.1:5055')
  const [record] = await openClientRecords(machine.stateDir).list()
  const prepared = await prepareUndo(machine, record!)
  const reload = {
    question: '',
    done: '',
    run: () => Promise.reject(new Error('nobody there')),
    planInterim: (mirror: { cache: string }, files: FilesSnapshot) =>
      emptyDaemonJsonLists(mirror, daemonJson, files, undefined),
  }
  const target = { ...prepared.target, reload }
  await expect(undoClient(machine, { ...prepared, target }, true)).rejects.toThrow('nobody there')
  expect(JSON.parse(await readFile(daemonJson, 'utf8'))).toEqual({ debug: true, 'registry-mirrors': [] })
  expect(await undoAll()).toEqual([])
  expect(await readFile(daemonJson, 'utf8')).toBe(before)
})

test('undo does not write a file that was changed while it waited for an answer', async () => {
  await writeFile(daemonJson, '{}')
  await configureFor('http://127.0.0.1:5055')
  const [record] = await openClientRecords(machine.stateDir).list()
  const prepared = await prepareUndo(machine, record!)
  await writeFile(daemonJson, '{"debug": true}')
  await expect(undoClient(machine, prepared, false)).rejects.toThrow('changed by another program')
  expect(await readFile(daemonJson, 'utf8')).toBe('{"debug": true}')
})

test('undo notes that a changed file has no keys of mirror', async () => {
  await writeFile(daemonJson, '{}')
  await configureFor('http://127.0.0.1:5055')
  await writeFile(daemonJson, '{"debug": true}')
  expect((await undoAll()).join()).toContain('no keys of mirror')
  expect(await readFile(daemonJson, 'utf8')).toBe('{"debug": true}')
})

test('undo --file undoes only the named file of several', async () => {
  await configureFor('http://127.0.0.1:5055')
  await configureFor('http://127.0.0.1:5055', 'mine.json')
  const found = await findRecords(machine, {
    client: 'docker',
    scope: undefined,
    cluster: undefined,
    file: 'mine.json',
  })
  expect(found.map(({ files }) => files.map(({ path }) => path))).toEqual([[join(root, 'mine.json')]])
})
