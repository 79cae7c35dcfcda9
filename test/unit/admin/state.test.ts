import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import {
  findReachableMirror,
  findRunning,
  isContainerUp,
  keepState,
  type ContainerMirrorState,
  type ContainerRecord,
  type ProcessMirrorState,
  readState,
  removeState,
  writeState,
} from '../../../src/admin/state.ts'
import type { DockerEndpoint } from '../../../src/docker/endpoint.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { isSameProcess, getProcessIdentity } from '../../../src/lib/process.ts'

let folder: string
let file: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-state-'))
  file = join(folder, 'state', 'mirror.json')
})
afterEach(() => rm(folder, { recursive: true }))

const stateOf = async (pid: number): Promise<ProcessMirrorState> => ({
  pid,
  processIdentity: await getProcessIdentity(pid),
  version: '1.2.3',
  runtime: 'process',
  startedAt: '2026-01-02T03:04:05.000Z',
  configHashes: { cache: 'abc' },
  endpoints: {
    cache: ['http://127.0.0.1:1'],
    registry: [],
    admin: ['http://127.0.0.1:2'],
    networks: { kind: 'http://172.18.0.1:1' },
  },
  logFile: '/log',
})

function containerState(container: ContainerRecord): ContainerMirrorState {
  return {
    version: '1.2.3',
    runtime: 'container',
    startedAt: '2026-01-02T03:04:05.000Z',
    configHashes: { cache: 'abc' },
    endpoints: { cache: ['http://127.0.0.1:1'], registry: [], admin: ['http://127.0.0.1:2'], networks: {} },
    container,
  }
}

describe('the state file', () => {
  test('is read as it was written, and is private', async () => {
    const state = await stateOf(process.pid)
    await writeState(file, state)
    expect(await readState(file)).toEqual(state)
    expect((await stat(file)).mode & 0o777).toBe(0o600)
    expect((await stat(join(folder, 'state'))).mode & 0o777).toBe(0o700)
  })

  test('has one format on the disk for processes and containers, in which a container has the number 0', async () => {
    const { version, startedAt, configHashes, endpoints, ...own } = await stateOf(7)
    const common = { version, runtime: 'process', startedAt, configHashes, endpoints }
    const served = { config: { cache: {} }, dataDir: '/data' }
    const onDisk = async () => (await readFile(file, 'utf8')).trimEnd()
    await writeState(file, { ...(await stateOf(7)), processIdentity: 'boot:1', served })
    const process = { pid: 7, processIdentity: 'boot:1', ...common, logFile: own.logFile, served }
    expect(await onDisk()).toBe(JSON.stringify(process, null, 2))
    const container = containerState({
      id: '1',
      name: 'mirror',
      instance: '2',
      volume: 'v',
      credentials: [],
      handedOverAt: 'now',
    })
    await writeState(file, container)
    const { runtime, endpoints: published } = container
    const expected = { pid: 0, ...common, runtime, endpoints: published, container: container.container }
    expect(await onDisk()).toBe(JSON.stringify(expected, null, 2))
  })

  test.each<DockerEndpoint>([
    { kind: 'socket', path: '/var/run/docker.sock' },
    { kind: 'tcp', host: '10.1.2.3', port: 2376, tlsFolder: '/certs' },
    { kind: 'ssh', host: 'there', user: 'me', port: 22 },
  ])('keeps the engine of a container: %j', async (engine) => {
    const elsewhere = engine.kind === 'socket' ? undefined : { adminPort: 5056 }
    const container = { id: '1', name: 'mirror', instance: '2', volume: 'v', credentials: [], handedOverAt: 'now' }
    const state = containerState({ ...container, engine, elsewhere })
    await writeState(file, state)
    expect(JSON.parse(await readFile(file, 'utf8'))).toMatchObject({ pid: 0, runtime: 'container', version: '1.2.3' })
    expect(await readState(file)).toEqual(state)
  })

  test('of a container on an unreachable engine of another machine does not count as stopped', async () => {
    const engine = { kind: 'tcp', host: '127.0.0.1', port: 1, tlsFolder: undefined } as const
    const container = {
      id: '1',
      name: 'mirror',
      instance: '2',
      volume: 'v',
      credentials: [],
      handedOverAt: 'now',
      engine,
    }
    const state = containerState({ ...container, elsewhere: { adminPort: 1 } })
    expect(await isContainerUp(container, state.endpoints)).toBe(false)
    await expect(isContainerUp(state.container, state.endpoints)).rejects.toMatchObject({
      name: 'MirrorError',
      exit: 4,
      message: expect.stringMatching(/^The mirror is in a container on tcp:\/\/127\.0\.0\.1:1\. No Docker engine/),
    })
    await writeState(file, state)
    await expect(findRunning(file)).rejects.toMatchObject({ exit: 4 })
    expect(await findReachableMirror(file)).toBeUndefined()
  })

  test.each(['', '{', 'null', '[]', '{"pid":"7"}', '{"pid":7,"endpoints":{},"configHashes":{}}', '\0\0\0'])(
    'counts as absent when it is damaged: %j',
    async (text) => {
      await writeState(file, await stateOf(process.pid))
      await writeFile(file, text)
      expect(await readState(file)).toBeUndefined()
    },
  )

  test('is absent when there is no file', async () => {
    expect(await readState(file)).toBeUndefined()
  })

  test('identifies the process that wrote it, and not another one with its number', async () => {
    const state = await stateOf(process.pid)
    await writeState(file, state)
    expect(await findRunning(file)).toEqual(state)
    await writeState(file, { ...state, processIdentity: 'an-earlier-boot:12' })
    expect(await findRunning(file)).toBeUndefined()
  })

  test('is removed by its own process only', async () => {
    await writeState(file, await stateOf(process.pid))
    await removeState(file, process.pid + 1)
    expect(await readState(file)).toBeDefined()
    await removeState(file, process.pid)
    expect(await readState(file)).toBeUndefined()
  })
})

const keep = async (state: ProcessMirrorState) => {
  const kept = keepState({ stateFile: file, getState: () => state, logger: silentLogger, everyMs: 20 })
  await kept.written
  return kept
}

describe('the state file of a running mirror', () => {
  test('is written again when it was damaged or lost', async () => {
    const state = await stateOf(process.pid)
    const kept = await keep(state)
    try {
      await writeFile(file, 'garbage')
      await expect.poll(() => readState(file)).toEqual(state)
      await rm(file)
      await expect.poll(() => readState(file)).toEqual(state)
    } finally {
      await kept.remove()
    }
    expect(await readState(file)).toBeUndefined()
  })

  test('has a change that came during the first write', async () => {
    const state = await stateOf(process.pid)
    const kept = keepState({ stateFile: file, getState: () => state, logger: silentLogger, everyMs: 1_000_000 })
    state.endpoints.networks = { dev: 'http://172.19.0.1:1' }
    await kept.written
    try {
      await expect.poll(() => readState(file)).toEqual(state)
    } finally {
      await kept.remove()
    }
  })

  test('stays when it belongs to a successor', async () => {
    const state = await stateOf(process.pid)
    const kept = await keep(state)
    const child = spawn(process.execPath, ['-e', 'setTimeout(() => {}, 60_000)'])
    try {
      const successor = await stateOf(child.pid!)
      await writeState(file, successor)
      kept.update()
      await kept.remove()
      expect(await readState(file)).toEqual(successor)
    } finally {
      child.kill('SIGKILL')
      await once(child, 'exit')
    }
  })

  test('is written again after a change', async () => {
    const state = await stateOf(process.pid)
    const kept = await keep(state)
    try {
      state.endpoints.networks = { dev: 'http://172.19.0.1:1' }
      kept.update()
      await expect
        .poll(async () => JSON.parse(await readFile(file, 'utf8')).endpoints.networks)
        .toEqual(state.endpoints.networks)
    } finally {
      await kept.remove()
    }
  })
})

describe('a process', () => {
  test('is identified until it ends', async () => {
    const child = spawn(process.execPath, ['-e', 'setTimeout(() => {}, 60_000)'])
    const pid = child.pid!
    const identity = await getProcessIdentity(pid)
    expect(await isSameProcess(pid, identity)).toBe(true)
    child.kill('SIGKILL')
    await once(child, 'exit')
    expect(await isSameProcess(pid, identity)).toBe(false)
    expect(await isSameProcess(pid, undefined)).toBe(false)
  })

  test.each([0, -1, 1.5, Number.NaN, 2 ** 40])('never has the number %d', async (pid) => {
    expect(await isSameProcess(pid, undefined)).toBe(false)
  })
})
