import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Machine } from '../../../../src/app/configure/client-adapter.ts'
import { configureClient, prepareClient } from '../../../../src/app/configure/configure-client.ts'
import { dockerAdapter } from '../../../../src/app/configure/docker.ts'
import type { FoundMirror } from '../../../../src/app/configure/find-mirror.ts'
import { prepareUndo, undoClient } from '../../../../src/app/configure/undo-client.ts'
import { openConfiguredClients } from '../../../../src/clients/configured.ts'

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

async function configureFor(cache: string): Promise<void> {
  const options = { scope: undefined, clientVersion: '27', imageStore: undefined, file: undefined, cluster: undefined }
  const [place] = await dockerAdapter.places(machine, options)
  const mirror: FoundMirror = {
    addressFor: () => ({ cache, registry: undefined, why: '', warning: undefined }),
    registries: ['docker.io'],
    defaultUpstream: 'docker.io',
  }
  const prepared = await prepareClient({ machine, adapter: dockerAdapter, place: place!, mirror, fallback: true })
  await configureClient(prepared, new Date(0))
}

test('a mirror that has moved takes the place of its old address, and undo brings back what was there before both', async () => {
  const before = '{\n  "registry-mirrors": ["https://a.example"]\n}\n'
  await writeFile(daemonJson, before)
  await configureFor('http://127.0.0.1:5055')
  await configureFor('http://127.0.0.1:6055')
  expect(JSON.parse(await readFile(daemonJson, 'utf8'))).toEqual({
    'registry-mirrors': ['http://127.0.0.1:6055', 'https://a.example'],
  })
  const [record] = await openConfiguredClients(machine.stateDir).list()
  await undoClient(machine, await prepareUndo(machine, record!), false)
  expect(await readFile(daemonJson, 'utf8')).toBe(before)
})
