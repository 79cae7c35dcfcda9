import { execFile } from 'node:child_process'
import { createServer } from 'node:http'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, onTestFinished, test } from 'vitest'
import { readState, writeState } from '../../src/admin/state.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'

const program = fileURLToPath(new URL('../../bin/run.js', import.meta.url))
const aDay = 24 * 3_600_000

/** The engine's description of the container. */
const container = {
  Id: 'c1',
  Name: '/mirror',
  Image: 'sha256:1',
  Config: { Labels: {}, User: '1000:1000' },
  State: { Running: true, Status: 'running', ExitCode: 0, StartedAt: new Date(0).toISOString() },
  NetworkSettings: { Ports: {}, Networks: {} },
  Mounts: [],
}

/** Starts a mirror whose state names a container with a credential of this age, ms; its engine refuses all but the description. */
async function startContainerMirror(age: number) {
  const { home } = await startMirrorProcess({ upstreams: {} })
  const engine = createServer((request, response) => {
    if (request.url?.endsWith('/_ping') === true) return response.end('OK')
    const isRunning = request.url?.endsWith('/containers/c1/json') === true
    response.writeHead(isRunning ? 200 : 500, { 'content-type': 'application/json' })
    return response.end(JSON.stringify(isRunning ? container : { message: 'shutting down' }))
  })
  const socket = join(home, 'docker.sock')
  await new Promise<void>((resolve) => engine.listen(socket, resolve))
  onTestFinished(() => void engine.close())
  const stateFile = join(home, 'state', 'mirror.json')
  const { version, startedAt, configHashes, endpoints } = (await readState(stateFile))!
  await writeState(stateFile, {
    version,
    startedAt,
    configHashes,
    endpoints,
    runtime: 'container',
    container: {
      id: 'c1',
      name: 'mirror',
      instance: 'i1',
      volume: 'v',
      credentials: ['ghcr.io'],
      handedOverAt: new Date(Date.now() - age).toISOString(),
    },
  })
  const env = { PATH: process.env['PATH'], HOME: home, MIRROR_HOME: home, DOCKER_HOST: `unix://${socket}` }
  return (...args: string[]) =>
    new Promise<{ exit: number; stderr: string }>((resolve) =>
      execFile(process.execPath, [program, ...args], { env, cwd: home }, (error, _, stderr) =>
        resolve({ exit: error === null ? 0 : Number(error.code), stderr }),
      ),
    )
}

const message = "Could not re-send the container's credentials"
const configure = ['configure', 'docker', '--root', 'root', '--mirror', 'http://127.0.0.1:5055']

describe('credentials that a container got a day ago', () => {
  test('are re-sent by `mirror status` and `mirror configure`, which succeed even if that fails', async () => {
    const mirror = await startContainerMirror(aDay)
    for (const args of [['status'], ['status', '--json'], [...configure, '--yes']]) {
      const { exit, stderr } = await mirror(...args)
      expect(exit, args.join(' ')).toBe(0)
      expect(stderr, args.join(' ')).toContain(message)
    }
  })

  test('are not re-sent by a dry run or by a command that needs no credentials', async () => {
    const mirror = await startContainerMirror(aDay)
    for (const args of [
      ['cache', 'ls'],
      ['configure', '--list'],
      [...configure, '--dry-run'],
      ['down', '--dry-run'],
    ]) {
      const { exit, stderr } = await mirror(...args)
      expect(exit, args.join(' ')).toBe(0)
      expect(stderr, args.join(' ')).not.toContain(message)
    }
  })
})

test('credentials that a container got a minute ago are not re-sent', async () => {
  const mirror = await startContainerMirror(60_000)
  const { exit, stderr } = await mirror('status')
  expect({ exit, stderr }).toEqual({ exit: 0, stderr: '' })
})
