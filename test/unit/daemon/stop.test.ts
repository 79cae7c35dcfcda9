import { mkdtemp, rm } from 'node:fs/promises'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeEach, expect, onTestFinished, test } from 'vitest'
import { stopAnyMirror } from '../../../src/daemon/stop.ts'
import { mirrorPaths } from '../../../src/config/paths.ts'
import { systemClock } from '../../../src/lib/time.ts'
import { readState, writeState } from '../../../src/admin/state.ts'

let home: string
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-stop-'))
  onTestFinished(() => rm(home, { recursive: true }))
})

function machine() {
  const env = { MIRROR_HOME: home, DOCKER_HOST: `unix://${home}/docker.sock` }
  const surroundings = { platform: 'linux' as const, env, homedir: home, cwd: home }
  return { surroundings, paths: mirrorPaths(surroundings), clock: systemClock }
}

async function noteContainer(): Promise<void> {
  await writeState(machine().paths.stateFile, {
    version: '1.0.0',
    runtime: 'container',
    startedAt: new Date(0).toISOString(),
    configHashes: {},
    endpoints: { cache: [], registry: [], admin: [], networks: {} },
    container: {
      id: 'abc',
      name: 'mirror',
      instance: 'one',
      volume: 'mirror-data',
      credentials: [],
      handedOverAt: new Date(0).toISOString(),
    },
  })
}

/** Starts an engine with a stopped container of the mirror. `refusal`: the error of its removal. */
async function startEngine(refusal?: string): Promise<string[]> {
  const removed: string[] = []
  const container = {
    Id: 'abc',
    Name: '/mirror',
    Image: 'image',
    State: { Running: false, Restarting: false, ExitCode: 0, StartedAt: '' },
    Config: { Labels: { 'dev-mirror.owner': machine().paths.stateDir }, User: '' },
    NetworkSettings: { Ports: {}, Networks: {} },
  }
  const server = createServer((request, response) => {
    const path = request.url!.split('?')[0]!
    const isOurs = ['/containers/mirror', '/containers/abc'].some((start) => path.startsWith(start))
    if (path === '/_ping') return response.end('OK')
    if (!isOurs || removed.length > 0) return response.writeHead(404).end('{"message":"no such container"}')
    if (path.endsWith('/json'))
      return response.setHeader('content-type', 'application/json').end(JSON.stringify(container))
    if (path.endsWith('/stop')) return response.writeHead(304).end()
    if (refusal !== undefined) return response.writeHead(500).end(JSON.stringify({ message: refusal }))
    removed.push(path)
    return response.writeHead(204).end()
  })
  await new Promise<void>((resolve) => server.listen(join(home, 'docker.sock'), resolve))
  onTestFinished(() => {
    server.closeAllConnections()
    return new Promise<void>((resolve) => void server.close(() => resolve()))
  })
  return removed
}

test('a container that was stopped by hand is removed, together with its record', async () => {
  const removed = await startEngine()
  await noteContainer()
  const stopped = await stopAnyMirror(machine())
  expect(stopped).toEqual({ container: 'mirror', volume: 'mirror-data', killed: false })
  expect(removed).toEqual(['/containers/abc'])
  expect(await readState(machine().paths.stateFile)).toBeUndefined()
})

test('a container that the engine fails to remove is not reported as absent', async () => {
  await startEngine('not today')
  await expect(stopAnyMirror(machine())).rejects.toThrow('The container cannot be removed: not today.')
})

test('a container whose engine is down is not reported as stopped, because it starts again with its engine', async () => {
  await noteContainer()
  await expect(stopAnyMirror(machine())).rejects.toMatchObject({
    exit: 4,
    message: expect.stringMatching(/^The mirror ran in a container the last time\. No Docker engine answers/),
  })
  expect(await readState(machine().paths.stateFile)).toMatchObject({ runtime: 'container' })
})

test('without an engine and without a record there is nothing to stop', async () => {
  expect(await stopAnyMirror(machine())).toBeUndefined()
})
