import { once } from 'node:events'
import { createServer, type RequestListener } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { isHealthy } from '../../../src/admin/client.ts'
import { isContainerUp } from '../../../src/admin/state.ts'
import { defaultConfig } from '../../../src/config/config.ts'
import { mirrorPaths } from '../../../src/config/paths.ts'
import { openHostHandoff } from '../../../src/daemon/container/handoff.ts'
import { startMirror } from '../../../src/daemon/start.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { temporaryHome } from '../../support/mirror.ts'

/** Starts a mirror as in a container, but without one; returns its admin address. */
async function startInstance(instance: string): Promise<string> {
  const home = await temporaryHome()
  const surroundings = { platform: 'linux' as const, env: { MIRROR_HOME: home }, homedir: home, cwd: home }
  const anywhere = [{ host: '127.0.0.1', port: 0 }]
  const config = { ...defaultConfig(), admin: { listen: anywhere }, networks: [] }
  const mirror = await startMirror(
    {
      ...config,
      cache: { ...config.cache, listen: anywhere },
      registry: { ...config.registry, enabled: false },
    },
    {
      home: mirrorPaths(surroundings),
      version: '0.0.0-test',
      runtime: 'container',
      logger: silentLogger,
      handoff: openHostHandoff({ MIRROR_INSTANCE: instance }, (name) => join(home, 'handed', name)),
    },
  )
  onTestFinished(() => mirror.close())
  return mirror.endpoints.admin[0]!
}

async function startServer(handle: RequestListener): Promise<string> {
  const server = createServer(handle).listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => {
    server.closeAllConnections()
    return new Promise<void>((resolve) => void server.close(() => resolve()))
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

describe('the health of a mirror', () => {
  test('is proved by the requested instance only', async () => {
    const url = await startInstance('this one')
    expect(await isHealthy(url)).toBe(true)
    expect(await isHealthy(url, { instance: 'this one' })).toBe(true)
    expect(await isHealthy(url, { instance: 'another one' })).toBe(false)
  })

  test.each<[string, RequestListener]>([
    ['answers otherwise', (_, response) => response.writeHead(404).end('{"proof":"0"}')],
    ['says that all is well', (_, response) => response.end('{"status":"ok"}')],
    ['speaks of something else', (_, response) => response.end('<html>')],
    ['does not stop talking', (_, response) => void response.write('x'.repeat(100_000))],
    ['breaks off', (request) => request.socket.destroy()],
    ['says nothing', () => {}],
  ])('is not that of a program that %s', async (_, handle) => {
    expect(await isHealthy(await startServer(handle), { instance: 'this one', timeoutMs: 200 })).toBe(false)
  })

  test('of a container is not taken from another mirror on its port', async () => {
    const admin = [await startInstance('another one')]
    const container = { id: 'gone', name: 'mirror', volume: undefined, credentials: [], handedOverAt: '' }
    const endpoints = { cache: [], registry: [], admin, networks: {} }
    expect(await isContainerUp({ ...container, instance: 'another one' }, endpoints)).toBe(true)
    expect(await isContainerUp({ ...container, instance: 'this one' }, endpoints)).toBe(false)
    expect(await isContainerUp({ ...container, instance: undefined }, endpoints)).toBe(false)
  })
})
