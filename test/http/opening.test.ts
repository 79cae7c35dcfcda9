import { execFileSync } from 'node:child_process'
import { mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { expect, onTestFinished, test } from 'vitest'
import { defaultConfig } from '../../src/config/config.ts'
import { getRegistryRoot } from '../../src/config/paths.ts'
import { startMirror } from '../../src/daemon/start.ts'
import { silentLogger } from '../../src/lib/logger.ts'
import { createStoreLayout } from '../../src/store/layout.ts'
import { freePort } from '../support/free-port.ts'
import { get } from '../support/get.ts'
import { app, startScene } from '../support/scene.ts'
import { serve } from '../support/upstream/serve.ts'

test.skipIf(process.platform === 'win32')(
  'while a store is being read, the listeners answer, and requests for its content wait',
  async () => {
    const { mirror, image } = await startScene({ cache: { tagFreshness: 600_000 } })
    expect((await mirror.get(`${app}/manifests/v1`)).status).toBe(200)
    await mirror.close()

    // The system reads nothing from a pipe without a writer.
    const log = join(createStoreLayout(getRegistryRoot(mirror.paths)).metadata, '0000000000000001.log')
    await mkdir(join(log, '..'), { recursive: true })
    execFileSync('mkfifo', [log])
    const silent = await serve(() => {})
    const noSettings = { tokenHosts: [], ca: undefined, tagFreshness: undefined }
    const [cachePort, registryPort, adminPort] = [await freePort(), await freePort(), await freePort()]
    const at = (port: number) => ({ host: '127.0.0.1', port })
    const defaults = defaultConfig()
    const starting = startMirror(
      {
        ...defaults,
        cache: { ...defaults.cache, listen: [at(cachePort)], minFree: 0, tagFreshness: 600_000 },
        registry: { ...defaults.registry, listen: [at(registryPort)] },
        admin: { listen: [at(adminPort)] },
        networks: [],
        upstreams: { 'docker.io': { url: silent.url, credentials: { from: 'anonymous' }, ...noSettings } },
      },
      { home: mirror.paths, version: '0.0.0-test', runtime: 'process', logger: silentLogger },
    )
    onTestFinished(async () => void (await starting.catch(() => undefined))?.close())
    const failure = starting.then(() => undefined).catch((error: unknown) => error)
    const ask = (port: number, path: string) => get(`http://127.0.0.1:${port}`, path)
    const statusOf = (port: number, path: string) => ask(port, path).then(({ status }) => status)
    for (const [port, path, expected] of [
      [cachePort, '/v2/', 200],
      [registryPort, '/v2/', 200],
      [adminPort, '/healthz', 503],
    ] as const)
      await expect.poll(() => statusOf(port, path).catch(() => 0)).toBe(expected)
    expect((await ask(adminPort, '/healthz')).body.toString()).toContain('starting')
    const { status, headers } = await ask(cachePort, `${app}/manifests/v1`)
    expect([status, headers['docker-content-digest']]).toEqual([200, image.digest])

    const waiting = [
      ask(registryPort, '/v2/app/manifests/v1'),
      ask(registryPort, '/v2/app/tags/list'),
      ask(adminPort, '/api/status'),
    ]
    expect(await Promise.race([...waiting, failure, delay(200, 'still waiting')])).toBe('still waiting')

    // A pull that goes on does not delay the end of a failed start.
    const pulling = ask(cachePort, `${app}/manifests/v2`).catch(() => undefined)
    // A pipe cannot be read at a position.
    const failedAt = performance.now()
    await writeFile(log, '')
    for (const answer of await Promise.all(waiting)) {
      expect([answer.status, answer.body.toString()]).toEqual([503, expect.stringContaining('cannot start')])
    }
    expect(await failure).toMatchObject({ message: expect.stringContaining('ESPIPE') })
    expect(performance.now() - failedAt).toBeLessThan(15_000)
    await pulling
    await expect(ask(cachePort, '/v2/')).rejects.toThrow('ECONNREFUSED')

    // Nothing holds the stores: the next start succeeds.
    await rm(log)
    const again = await startScene({ home: mirror.home, cache: { tagFreshness: 600_000 } })
    expect((await again.mirror.get(`${app}/manifests/v1`)).status).toBe(200)
    expect((await get(again.mirror.adminUrl, '/healthz')).status).toBe(200)
  },
)
