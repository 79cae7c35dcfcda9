import { readFile, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { digestOf } from '../../src/oci/digest.ts'
import { DockerEngine, network } from '../support/docker-engine.ts'
import { errnoOf } from '../../src/lib/errors.ts'
import { findRunning } from '../../src/runtime/state-file.ts'
import { get } from '../support/get.ts'
import { temporaryHome } from '../support/mirror.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'

/** Another of this machine's own addresses, as a network's gateway is; only Linux has all of 127.0.0.0/8. */
const gateway = '127.0.0.92'

test.skipIf(process.platform !== 'linux')(
  'cache and registry listen at the gateway of a network, on their own ports, for as long as it is there',
  async () => {
    const home = await temporaryHome()
    const socket = join(home, 'docker.sock')
    const engine = new DockerEngine()
    await engine.start(socket)
    onTestFinished(() => engine.stop())
    const env = { DOCKER_HOST: `unix://${socket}` }
    const mirror = await startMirrorProcess({ upstreams: {}, registry: true, networks: ['kind'], env })
    const networks = async () => (await mirror.status()).endpoints.networks
    const [cache, registry] = [mirror.url, mirror.registryUrl!].map((url) => url.replace('127.0.0.1', gateway))
    expect(await networks()).toEqual({})
    const report = async () => (await mirror.status()).networks
    await expect.poll(report).toEqual({ kind: { state: 'waiting', reason: 'the network does not exist yet' } })

    for (const body of ['once', 'again']) {
      engine.changeNetworks([network('kind', gateway)])
      await expect.poll(networks).toEqual({ kind: cache })
      expect(await report()).toEqual({ kind: { state: 'listening', url: cache } })
      expect((await get(cache!, '/v2/')).status).toBe(200)
      expect((await get(cache!, '/v2/app/blobs/uploads/', { method: 'POST' })).status).toBe(405)
      const path = `/v2/app/blobs/uploads/?digest=${digestOf(Buffer.from(body))}`
      const pushed = await get(registry!, path, { method: 'POST', body })
      expect(pushed.status).toBe(201)
      expect((await get(mirror.registryUrl!, pushed.headers.location!)).body.toString()).toBe(body)

      engine.changeNetworks([])
      await expect.poll(networks).toEqual({})
      for (const url of [cache, registry]) {
        const refused = await get(url!, '/v2/').catch(errnoOf)
        expect(refused).toBe('ECONNREFUSED')
      }
    }
    expect((await get(mirror.registryUrl!, '/v2/')).status).toBe(200)
  },
)

test.skipIf(process.platform !== 'linux').each([
  [['dev'], { dev: { state: 'waiting', reason: 'the Docker engine does not answer' } }],
  [['kind'], {}],
])('without an engine, of the networks %j those are shown that somebody has asked for', async (networks, expected) => {
  const env = { DOCKER_HOST: `unix://${join(await temporaryHome(), 'docker.sock')}` }
  const mirror = await startMirrorProcess({ upstreams: {}, networks, env })
  await expect.poll(async () => (await mirror.status()).networks).toEqual(expected)
})

test.skipIf(process.platform !== 'linux')('a network whose address is taken is shown with the reason', async () => {
  const home = await temporaryHome()
  const socket = join(home, 'docker.sock')
  const engine = new DockerEngine()
  await engine.start(socket)
  onTestFinished(() => engine.stop())
  const env = { DOCKER_HOST: `unix://${socket}` }
  const mirror = await startMirrorProcess({ upstreams: {}, networks: ['dev'], env })
  const taken = createServer()
  const { port } = new URL(mirror.url)
  await new Promise<void>((resolve) => taken.listen(Number(port), gateway, resolve))
  onTestFinished(() => void taken.close())
  engine.changeNetworks([network('dev', gateway)])
  await expect
    .poll(async () => (await mirror.status()).networks)
    .toEqual({ dev: { state: 'failed', reason: expect.stringContaining('another program is listening there') } })
})

describe.skipIf(process.platform !== 'linux')('what a mirror notes down of its networks', () => {
  const noted = async (home: string) => (await findRunning(join(home, 'state', 'mirror.json')))?.endpoints.networks

  test('is what it serves, when a network is found while the first note is being written', async () => {
    // Whether the engine answers before, while or after that is chance: each time the note must become true.
    for (let start = 0; start < 6; start += 1) {
      const home = await temporaryHome()
      const socket = join(home, 'docker.sock')
      const engine = new DockerEngine()
      engine.changeNetworks([network('kind', gateway)])
      await engine.start(socket)
      onTestFinished(() => engine.stop())
      const env = { DOCKER_HOST: `unix://${socket}` }
      const mirror = await startMirrorProcess({ upstreams: {}, networks: ['kind'], env, home })
      const served = { kind: mirror.url.replace('127.0.0.1', gateway) }
      await expect.poll(async () => (await mirror.status()).endpoints.networks).toEqual(served)
      await expect.poll(() => noted(home)).toEqual(served)
      mirror.kill('SIGTERM')
      await mirror.ended
    }
  })

  test('is what it serves after networks that come and go in quick succession', async () => {
    const home = await temporaryHome()
    const socket = join(home, 'docker.sock')
    const engine = new DockerEngine()
    await engine.start(socket)
    onTestFinished(() => engine.stop())
    const env = { DOCKER_HOST: `unix://${socket}` }
    const mirror = await startMirrorProcess({ upstreams: {}, networks: ['kind', 'dev'], env, home })
    const at = (address: string) => mirror.url.replace('127.0.0.1', address)
    for (let round = 0; round < 25; round += 1) {
      engine.changeNetworks(round % 2 === 0 ? [network('kind', gateway)] : [])
      engine.changeNetworks([network('kind', gateway), network('dev', '127.0.0.93')])
      if (round % 5 === 0) await mirror.status()
      engine.changeNetworks([network('dev', '127.0.0.93')])
    }
    await expect.poll(() => noted(home)).toEqual({ dev: at('127.0.0.93') })
    expect((await mirror.status()).endpoints.networks).toEqual({ dev: at('127.0.0.93') })
    // A note that somebody has damaged becomes true again without any event.
    await writeFile(join(home, 'state', 'mirror.json'), (await readState(home)).replace('127.0.0.93', '127.0.0.94'))
    await expect.poll(() => noted(home), { timeout: 20_000 }).toEqual({ dev: at('127.0.0.93') })
  })

  const readState = (home: string) => readFile(join(home, 'state', 'mirror.json'), 'utf8')

  test('is what it serves, although the engine fails to answer just when a network has come', async () => {
    const home = await temporaryHome()
    const socket = join(home, 'docker.sock')
    const engine = new DockerEngine()
    await engine.start(socket)
    onTestFinished(() => engine.stop())
    const env = { DOCKER_HOST: `unix://${socket}` }
    const mirror = await startMirrorProcess({ upstreams: {}, networks: ['kind'], env, home })
    await expect.poll(() => engine.listings).toBeGreaterThan(0)
    engine.failures = 1
    engine.changeNetworks([network('kind', gateway)])
    await expect
      .poll(() => noted(home), { timeout: 20_000 })
      .toEqual({ kind: mirror.url.replace('127.0.0.1', gateway) })
  })
})
