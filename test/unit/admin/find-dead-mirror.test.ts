import { mkdtemp, rm, utimes, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from 'vitest'
import { type DeadMirror, findDeadMirror, recordLastSeen } from '../../../src/admin/find-mirror.ts'
import { type ContainerMirrorState, type ProcessMirrorState, writeState } from '../../../src/admin/state.ts'
import { renderDown } from '../../../src/cli/render/up.ts'
import { mirrorPaths } from '../../../src/config/paths.ts'
import type { CommandEnvironment } from '../../../src/lib/process.ts'

let home: string
let surroundings: CommandEnvironment
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-dead-'))
  surroundings = {
    platform: process.platform,
    env: { MIRROR_HOME: home, DOCKER_HOST: `unix://${home}/none.sock` },
    homedir: home,
    cwd: home,
  }
})
afterEach(() => rm(home, { recursive: true }))

const state: ProcessMirrorState = {
  pid: 4_000_000,
  processIdentity: undefined,
  version: '1.2.3',
  runtime: 'process',
  startedAt: new Date(Date.now() - 60_000).toISOString(),
  configHashes: {},
  endpoints: { cache: [], registry: [], admin: [], networks: {} },
  logFile: '/log',
}

async function find(
  changed: Partial<ProcessMirrorState> | Pick<ContainerMirrorState, 'container'>,
): Promise<DeadMirror | undefined> {
  const paths = mirrorPaths(surroundings)
  const { version, startedAt, configHashes, endpoints } = state
  const common = { version, startedAt, configHashes, endpoints }
  const written = changed.container
    ? { ...common, runtime: 'container' as const, container: changed.container }
    : { ...state, ...changed }
  await writeState(paths.stateFile, written)
  return findDeadMirror(paths, surroundings)
}

describe('a recorded mirror that does not run', () => {
  test('was stopped when there is no record', async () => {
    expect(await findDeadMirror(mirrorPaths(surroundings), surroundings)).toBeUndefined()
  })

  test('was last seen before a later start that failed and wrote to its files', async () => {
    const paths = mirrorPaths(surroundings)
    const logFile = join(home, 'mirror.log')
    await writeFile(logFile, 'a line')
    const before = await find({ logFile })
    await recordLastSeen(paths)
    const later = new Date(Date.now() + 60_000)
    for (const file of [logFile, paths.stateFile]) await utimes(file, later, later)
    await recordLastSeen(paths)
    expect(await findDeadMirror(paths, surroundings)).toEqual(before)
  })

  test('died when no command stopped it', async () => {
    expect(await find({})).toEqual({
      runtime: 'process',
      version: '1.2.3',
      pid: 4_000_000,
      startedAt: state.startedAt,
      lastSeen: expect.any(String),
      reason: 'died',
      hasLog: true,
    })
  })

  test('has no log to show when it wrote to a terminal', async () => {
    expect(await find({ logFile: undefined })).toMatchObject({ hasLog: false })
  })

  test.skipIf(process.platform !== 'linux')('ended with the machine when the boot id differs', async () => {
    expect(await find({ processIdentity: 'another-boot:123' })).toMatchObject({ reason: 'reboot' })
  })

  test('ended with the machine when the machine started later, on systems without a boot id', async () => {
    const startedAt = '2001-02-03T04:05:06.000Z'
    expect(await find({ startedAt })).toMatchObject({ reason: 'reboot', startedAt })
  })

  test('ran in a container whose engine does not answer', async () => {
    const container = { id: '1', name: 'mirror', instance: '2', volume: 'v', credentials: [], handedOverAt: 'now' }
    const died = await find({ container })
    expect(died).toMatchObject({ reason: 'no-engine', container: 'mirror' })
    expect(died).not.toHaveProperty('pid')
  })
})

describe.skipIf(process.platform === 'win32')('a recorded container that does not run', () => {
  const container = { id: 'c1', name: 'mirror', instance: '2', volume: 'v', credentials: [], handedOverAt: 'now' }

  /** Serves an engine that describes the container so, or that has no container if nothing is given. */
  async function serveEngine(said: object | undefined): Promise<void> {
    const server = createServer((request, response) => {
      response.setHeader('content-type', 'application/json')
      if (request.url?.endsWith('/_ping')) return response.end('"OK"')
      if (request.url?.endsWith('/info')) return response.end('{"OSType":"linux","ServerVersion":"28"}')
      if (said === undefined) return response.writeHead(404).end('{"message":"no such container"}')
      response.end(
        JSON.stringify({
          Id: 'c1',
          Name: '/mirror',
          Image: 'sha256:1',
          Config: { Labels: {}, User: '' },
          NetworkSettings: { Ports: {}, Networks: {} },
          State: { Running: false, Restarting: false, StartedAt: state.startedAt, ...said },
        }),
      )
    })
    await new Promise<void>((resolve) => server.listen(join(home, 'none.sock'), resolve))
    onTestFinished(() => void server.close())
  }

  const FinishedAt = '2026-11-21T18:01:40.5Z'
  test.each([
    [
      { ExitCode: 1, FinishedAt, OOMKilled: false },
      { reason: 'exited', exitCode: 1, lastSeen: FinishedAt, hasLog: true },
    ],
    [
      { ExitCode: 137, FinishedAt, OOMKilled: true },
      { reason: 'out-of-memory', exitCode: 137 },
    ],
    [
      { ExitCode: 0, FinishedAt: '0001-01-01T00:00:00Z' },
      { reason: 'exited', exitCode: 0 },
    ],
    [undefined, { reason: 'removed', hasLog: false }],
  ])('has the end that the engine reports: %j', async (said, expected) => {
    await serveEngine(said)
    expect(await find({ container })).toMatchObject({ container: 'mirror', ...expected })
  })
})

describe('the text about a mirror that does not run', () => {
  const at = new Date(2026, 10, 21, 19, 1, 40)
  const died: DeadMirror = {
    runtime: 'process',
    version: '1.2.3',
    pid: 42,
    startedAt: at.toISOString(),
    lastSeen: new Date(at.getTime() + 60_000).toISOString(),
    reason: 'died',
    hasLog: true,
  }
  const now = at.getTime() + 180_000

  test('tells how to start a mirror when none died', () => {
    expect(renderDown(undefined, now)).toBe('mirror is not running. Start it with: mirror up')
  })

  test('tells what happened, how to find the reason, and how to start the mirror', () => {
    expect(renderDown(died, now)).toBe(
      [
        'mirror is not running: it died and was not stopped (pid 42, started at 2026-11-21 19:01:40; last seen at 2026-11-21 19:02:40, 2 min ago).',
        '  See why:   mirror logs',
        '  Start it:  mirror up',
      ].join('\n'),
    )
  })

  test.each<[Partial<DeadMirror>, RegExp]>([
    [{ reason: 'reboot' }, /the machine was restarted \(pid 42.*mirror up --autostart/s],
    [
      { reason: 'exited', container: 'mirror', exitCode: 137 },
      /its container mirror has ended at .* \(exit code 137\)/,
    ],
    [{ reason: 'out-of-memory', container: 'mirror', exitCode: 137 }, /ran out of memory.*--memory 1GiB /s],
    [{ reason: 'removed', container: 'mirror', hasLog: false }, /its container mirror was removed\.\n {2}Start it/],
    [{ reason: 'no-engine', container: 'mirror', hasLog: false }, /Docker engine .* does not answer.*docker info/s],
  ])('names the reason: %j', (changed, expected) => {
    expect(renderDown({ ...died, ...changed }, now)).toMatch(expected)
  })
})
