import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { describe, expect, onTestFinished, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { network, startDockerEngine } from '../support/docker-engine.ts'
import { getErrno } from '../../src/lib/errors.ts'
import { findRunning } from '../../src/admin/state.ts'
import { freePort } from '../support/free-port.ts'
import { get } from '../support/get.ts'
import { temporaryHome } from '../support/mirror.ts'
import { pushBlob } from '../support/push.ts'
import { startMirrorProcess, type MirrorProcess } from '../support/mirror-process.ts'

const run = promisify(execFile)
const prlimit = '/usr/bin/prlimit'

/** gateway is another address of this machine, like that of a network; only Linux has all of 127.0.0.0/8. */
const gateway = '127.0.0.92'

test.skipIf(process.platform !== 'linux')(
  'cache and registry listen at the gateway of a network, on their own ports, for as long as it is there',
  async () => {
    const { engine, env } = await startDockerEngine()
    const mirror = await startMirrorProcess({ upstreams: {}, registry: true, networks: ['kind'], env })
    const networks = async () => (await mirror.status()).endpoints.networks
    const [cache, registry] = [mirror.url, mirror.registryUrl!].map((url) => url.replace('127.0.0.1', gateway))
    expect(await networks()).toEqual({})
    const report = async () => (await mirror.status()).networks
    await expect.poll(report).toEqual({ kind: { state: 'waiting', reason: 'the network does not exist yet' } })

    for (const _round of [1, 2]) {
      engine.changeNetworks([network('kind', gateway)])
      await expect.poll(networks).toEqual({ kind: cache })
      expect(await report()).toEqual({ kind: { state: 'listening', url: cache } })
      expect((await get(cache!, '/v2/')).status).toBe(200)
      expect((await get(cache!, '/v2/app/blobs/uploads/', { method: 'POST' })).status).toBe(405)
      expect((await get(registry!, '/v2/')).status).toBe(200)

      engine.changeNetworks([])
      await expect.poll(networks).toEqual({})
      for (const url of [cache, registry]) {
        const refused = await get(url!, '/v2/').catch(getErrno)
        expect(refused).toBe('ECONNREFUSED')
      }
    }
    expect((await get(mirror.registryUrl!, '/v2/')).status).toBe(200)
  },
)

describe.skipIf(process.platform !== 'linux')('the registry at the gateway of a network', () => {
  const body = 'pushed'
  const digest = computeDigest(Buffer.from(body))
  const whole = `/v2/app/blobs/uploads/?digest=${digest}`
  const mediaType = 'application/vnd.oci.image.manifest.v1+json'

  async function startWithGateway(env: Record<string, string> = {}, address = gateway) {
    const engine = await startDockerEngine(network('kind', address))
    const mirror = await startMirrorProcess({
      upstreams: {},
      registry: true,
      networks: ['kind'],
      env: { ...engine.env, ...env },
    })
    await expect.poll(async () => (await mirror.status()).networks).toMatchObject({ kind: { state: 'listening' } })
    return { mirror, local: mirror.registryUrl!, inside: mirror.registryUrl!.replace('127.0.0.1', address) }
  }

  test('serves pulls and refuses every request that changes something, and names the setting that allows it', async () => {
    const { mirror, local, inside } = await startWithGateway()
    const begun = await get(local, '/v2/app/blobs/uploads/', { method: 'POST' })
    expect(begun.status).toBe(202)
    const upload = new URL(begun.headers.location!, local)
    await pushBlob(local, 'app', Buffer.from(body))
    expect((await get(inside, `/v2/app/blobs/${digest}`)).body.toString()).toBe(body)
    expect((await get(inside, '/v2/_catalog')).status).toBe(200)

    const writes: [string, string, string?][] = [
      ['POST', '/v2/app/blobs/uploads/'],
      ['POST', whole, body],
      ['POST', `/v2/other/blobs/uploads/?mount=${digest}&from=app`],
      ['GET', upload.pathname + upload.search],
      ['HEAD', upload.pathname + upload.search],
      ['PATCH', upload.pathname + upload.search, body],
      ['PUT', `${upload.pathname}?digest=${digest}`, body],
      ['DELETE', upload.pathname + upload.search],
      ['PUT', '/v2/app/manifests/one', '{}'],
      ['DELETE', '/v2/app/manifests/one'],
      ['DELETE', `/v2/app/manifests/${digest}`],
      ['DELETE', `/v2/app/blobs/${digest}`],
      ['PATCH', '/v2/app/manifests/one', '{}'],
      ['POST', '/v2/'],
    ]
    for (const [method, path, sent] of writes) {
      const options = { method, ...(sent !== undefined && { body: sent }) }
      const answer = await get(inside, path, { ...options, headers: { 'content-type': mediaType } })
      expect(answer.status, `${method} ${path}`).toBe(403)
      if (method !== 'HEAD')
        expect(JSON.parse(answer.body.toString())).toMatchObject({
          errors: [{ code: 'DENIED', message: expect.stringContaining('registry.networks: write') }],
        })
    }
    expect((await get(local, upload.pathname + upload.search)).status).toBe(204)
    expect((await get(local, `/v2/app/blobs/${digest}`)).status).toBe(200)
    expect((await mirror.status()).registry.networks).toBe('read')
  })

  test('accepts pushes and deletes with registry.networks: write', async () => {
    const { mirror, local, inside } = await startWithGateway({ MIRROR_REGISTRY_NETWORKS: 'write' })
    await pushBlob(inside, 'app', Buffer.from(body))
    expect((await get(local, `/v2/app/blobs/${digest}`)).body.toString()).toBe(body)
    expect((await get(inside, `/v2/app/blobs/${digest}`, { method: 'DELETE' })).status).toBe(202)
    expect((await mirror.status()).registry.networks).toBe('write')
  })

  test('accepts pushes when registry.listen names the address, where the cache then listens too', async () => {
    const port = await freePort()
    const { mirror, local } = await startWithGateway({ MIRROR_REGISTRY_LISTEN: `127.0.0.1:${port},${gateway}:${port}` })
    const inside = local.replace('127.0.0.1', gateway)
    await pushBlob(inside, 'app', Buffer.from(body))
    expect((await get(mirror.url.replace('127.0.0.1', gateway), '/v2/')).status).toBe(200)
    expect((await mirror.status()).registry.networks).toBe('write')
  })
})

test.skipIf(!existsSync(prlimit))(
  'a network is not given up because the mirror itself has no descriptor left to ask the engine',
  async () => {
    const networks = [network('kind', gateway)]
    const { engine, env } = await startDockerEngine(...networks)
    const mirror = await startMirrorProcess({ upstreams: {}, networks: ['kind'], env })
    const served = { kind: { state: 'listening', url: mirror.url.replace('127.0.0.1', gateway) } }
    await expect.poll(async () => (await mirror.status()).networks).toEqual(served)

    const limit = (files: string) => run(prlimit, ['--pid', String(mirror.pid), `--nofile=${files}`])
    await limit('3:')
    engine.endIdle()
    const failed = /"error":"[^"]*EMFILE[^"]*","msg":"looking at the networks failed"/
    await expect
      .poll(() => {
        engine.changeNetworks(networks)
        return mirror.log()
      })
      .toMatch(failed)
    const { listings } = engine
    await limit('1024:')
    expect((await get(served.kind.url, '/v2/')).status).toBe(200)
    expect((await mirror.status()).networks).toEqual(served)
    expect(mirror.log()).not.toContain('the network is gone')
    // Checks that the mirror asks again without an event.
    await expect.poll(() => engine.listings, { timeout: 10_000 }).toBeGreaterThan(listings)
  },
)

test.skipIf(process.platform !== 'linux').each([
  [['dev'], { dev: { state: 'waiting', reason: 'the Docker engine does not answer' } }],
  [['kind'], {}],
])('without an engine, the networks %j are shown only where the user added them', async (networks, expected) => {
  const env = { DOCKER_HOST: `unix://${join(await temporaryHome(), 'docker.sock')}` }
  const mirror = await startMirrorProcess({ upstreams: {}, networks, env })
  await expect.poll(async () => (await mirror.status()).networks).toEqual(expected)
})

test.skipIf(process.platform !== 'linux')('a network whose address is in use is shown with the reason', async () => {
  const { engine, env } = await startDockerEngine()
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

describe.skipIf(process.platform !== 'linux')('the networks in the state of a mirror', () => {
  const noteOf = ({ home }: MirrorProcess) => join(home, 'state', 'mirror.json')
  const noted = async (mirror: MirrorProcess) => (await findRunning(noteOf(mirror)))?.endpoints.networks

  test('are those that it serves, when a network is found while the first state is being written', async () => {
    // Repeats the start, because the engine's answer may come before, during or after the write.
    for (let start = 0; start < 6; start += 1) {
      const { env } = await startDockerEngine(network('kind', gateway))
      const mirror = await startMirrorProcess({ upstreams: {}, networks: ['kind'], env })
      const served = { kind: mirror.url.replace('127.0.0.1', gateway) }
      await expect.poll(async () => (await mirror.status()).endpoints.networks).toEqual(served)
      await expect.poll(() => noted(mirror)).toEqual(served)
      mirror.kill('SIGTERM')
      await mirror.ended
    }
  })

  test('are those that it serves after networks appear and disappear in quick succession', async () => {
    const { engine, env } = await startDockerEngine()
    const mirror = await startMirrorProcess({ upstreams: {}, networks: ['kind', 'dev'], env })
    const at = (address: string) => mirror.url.replace('127.0.0.1', address)
    for (let round = 0; round < 25; round += 1) {
      engine.changeNetworks(round % 2 === 0 ? [network('kind', gateway)] : [])
      engine.changeNetworks([network('kind', gateway), network('dev', '127.0.0.93')])
      if (round % 5 === 0) await mirror.status()
      engine.changeNetworks([network('dev', '127.0.0.93')])
    }
    await expect.poll(() => noted(mirror)).toEqual({ dev: at('127.0.0.93') })
    expect((await mirror.status()).endpoints.networks).toEqual({ dev: at('127.0.0.93') })
    // Checks that a damaged note is corrected without an event.
    const text = await readFile(noteOf(mirror), 'utf8')
    await writeFile(noteOf(mirror), text.replace('127.0.0.93', '127.0.0.94'))
    await expect.poll(() => noted(mirror)).toEqual({ dev: at('127.0.0.93') })
  })

  test('are those that it serves, although the engine fails to answer just when a network appeared', async () => {
    const { engine, env } = await startDockerEngine()
    const mirror = await startMirrorProcess({ upstreams: {}, networks: ['kind'], env })
    await expect.poll(() => engine.listings).toBeGreaterThan(0)
    engine.failures = 1
    engine.changeNetworks([network('kind', gateway)])
    await expect.poll(() => noted(mirror)).toEqual({ kind: mirror.url.replace('127.0.0.1', gateway) })
  })
})
