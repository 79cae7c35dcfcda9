import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import type { Machine } from '../../../src/clients/types.ts'
import { configureClient, prepareClient } from '../../../src/clients/configure.ts'
import { dockerAdapter } from '../../../src/clients/docker/docker.ts'
import type { MirrorAddress } from '../../../src/clients/find-mirror.ts'
import { listConfigured } from '../../../src/clients/configured.ts'
import { prepareUndo, findRecords, undoClient } from '../../../src/clients/undo.ts'

const program = fileURLToPath(new URL('../../support/dockerd.mjs', import.meta.url))
const cache = 'http://127.0.0.1:5055'
const before = '{\n  "debug": true\n}\n'
const all = { client: undefined, scope: undefined, cluster: undefined, file: undefined }
const anything = {
  scope: undefined,
  clientVersion: undefined,
  imageStore: undefined,
  file: undefined,
  cluster: undefined,
}

let folder: string
let daemonJson: string
let machine: Machine
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-observed-'))
  daemonJson = join(folder, 'daemon.json')
  await writeFile(daemonJson, before)
  machine = {
    platform: 'linux',
    env: { DOCKER_HOST: `unix://${join(folder, 'docker.sock')}` },
    home: folder,
    root: '/',
    detached: false,
    cwd: folder,
    stateDir: join(folder, 'state'),
    runCommand: () => Promise.resolve(undefined),
  }
})
afterEach(() => rm(folder, { recursive: true }))

async function startDockerd(): Promise<() => Promise<void>> {
  const args = [program, join(folder, 'docker.sock'), daemonJson, '--config-file', 'daemon.json']
  const child = spawn(process.execPath, args, {
    argv0: 'dockerd',
    cwd: folder,
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
  })
  const stop = async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    const exited = once(child, 'exit')
    child.kill('SIGTERM')
    await exited
    await rm(join(folder, 'docker.sock'), { force: true })
  }
  onTestFinished(stop)
  await once(child, 'message')
  return stop
}

async function createTarget() {
  const [target] = await dockerAdapter.findTargets(machine, anything)
  expect(target!.inputs.files).toEqual([daemonJson])
  return target!
}

async function configure(): Promise<void> {
  const mirror: MirrorAddress = {
    isNamed: false,
    isRemote: false,
    willServe: () => false,
    getAddress: () => ({ cache, registry: undefined, why: '', warning: undefined }),
    registries: ['docker.io'],
    defaultUpstream: 'docker.io',
  }
  const target = await createTarget()
  await configureClient(
    await prepareClient({ machine, adapter: dockerAdapter, target, mirror, fallback: true }),
    new Date(),
  )
}

async function undo(reload: boolean) {
  const [record] = await findRecords(machine, all)
  return undoClient(machine, await prepareUndo(machine, record!), reload)
}

const mirrors = async () => (await createTarget()).observe!({ cache })
const states = async () =>
  (await listConfigured(machine, undefined)).flatMap(({ files }) => files.map(({ state }) => state))

describe.runIf(process.platform === 'linux')('a dockerd that keeps its mirrors until a reload', () => {
  test('is observed not to use the mirror of its daemon.json until it is reloaded', async () => {
    await startDockerd()
    expect(await mirrors()).toMatchObject({
      inUse: false,
      todo: [],
      reasons: [{ why: expect.stringContaining('not configured') }],
    })
    await configure()
    const listedMirrors = await mirrors()
    expect(listedMirrors).toMatchObject({ inUse: false, todo: [expect.stringMatching(/kill -HUP \d+ /)] })
    expect(listedMirrors.saw).toContain('docker info (Docker 20.10.24, classic image store) lists no mirror.')
    expect(listedMirrors.saw).toContain(`${daemonJson} names ${cache}.`)
    expect(listedMirrors.reasons).toEqual([
      { why: expect.stringContaining('has not read'), fix: 'mirror configure docker --reload' },
    ])
    await (await createTarget()).reload!.run()
    expect(await mirrors()).toMatchObject({
      inUse: true,
      todo: [],
      reasons: [{ why: `dockerd did not reach ${cache}` }],
    })
  })

  test('gives BuildKit the mirrors of its start only, before Docker 26', async () => {
    const stop = await startDockerd()
    await configure()
    await (await createTarget()).reload!.run()
    const since = new Date(Date.now() + 1000).toISOString()
    const reloaded = await (await createTarget()).observe!({ cache, since })
    expect(reloaded).toMatchObject({
      inUse: true,
      bypasses: [
        {
          why: expect.stringContaining('docker build (BuildKit) bypasses the mirror'),
          fix: expect.stringMatching(/systemctl restart docker/),
        },
      ],
    })
    await stop()
    await startDockerd()
    const before = new Date(Date.now() - 60_000).toISOString()
    expect(await (await createTarget()).observe!({ cache, since: before })).not.toHaveProperty('bypasses')
  })

  test('stays listed after an undo without a reload, and a later reload restores the file byte for byte', async () => {
    await startDockerd()
    await configure()
    await (await createTarget()).reload!.run()
    expect(await undo(false)).toEqual({ stillInUse: true })
    expect(await readFile(daemonJson, 'utf8')).toBe(before)
    expect(await mirrors()).toMatchObject({ inUse: true })
    expect(await states()).toEqual(['undone, not reloaded'])

    expect(await undo(true)).toEqual({ stillInUse: false })
    expect(await mirrors()).toMatchObject({ inUse: false })
    expect(await readFile(daemonJson, 'utf8')).toBe(before)
    expect(await findRecords(machine, all)).toEqual([])
  })

  test('whose undo starts without a daemon.json has none afterwards', async () => {
    await rm(daemonJson)
    await startDockerd()
    await configure()
    await (await createTarget()).reload!.run()
    await undo(false)
    await expect(readFile(daemonJson)).rejects.toThrow('ENOENT')
    await undo(true)
    expect(await mirrors()).toMatchObject({ inUse: false })
    await expect(readFile(daemonJson)).rejects.toThrow('ENOENT')
  })

  test('that dropped the mirror by a restart is neither listed nor reloaded', async () => {
    const stop = await startDockerd()
    await configure()
    await (await createTarget()).reload!.run()
    await undo(false)
    await stop()
    await startDockerd()
    expect(await states()).toEqual([])
    expect(await undo(false)).toEqual({ stillInUse: false })
    expect(await findRecords(machine, all)).toEqual([])
  })

  test('that is configured again before a reload is undone to the first content', async () => {
    await startDockerd()
    await configure()
    await (await createTarget()).reload!.run()
    await undo(false)
    await configure()
    expect(await states()).toEqual(['as written'])
    await undo(true)
    expect(await readFile(daemonJson, 'utf8')).toBe(before)
    expect(await mirrors()).toMatchObject({ inUse: false })
  })

  test('whose reload aborts after the empty list was written is undone exactly', async () => {
    await startDockerd()
    await configure()
    await (await createTarget()).reload!.run()
    await undo(false)
    const [record] = await findRecords(machine, all)
    const prepared = await prepareUndo(machine, record!)
    const reload = { ...prepared.target.reload!, run: () => Promise.reject(new Error('cut short')) }
    await expect(undoClient(machine, { ...prepared, target: { ...prepared.target, reload } }, true)).rejects.toThrow()
    expect(JSON.parse(await readFile(daemonJson, 'utf8'))).toEqual({ debug: true, 'registry-mirrors': [] })
    await undo(true)
    expect(await readFile(daemonJson, 'utf8')).toBe(before)
    expect(await findRecords(machine, all)).toEqual([])
  })
})
