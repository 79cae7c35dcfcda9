import { readFile, rename, rm, writeFile } from 'node:fs/promises'
import { request } from 'node:http'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { startCdn } from '../support/cdn.ts'
import { helperName, makeCredentialHelper } from '../support/credential-helper.ts'
import { DockerApiServer, network } from '../support/docker-engine.ts'
import { expectContent } from '../support/expect-content.ts'
import { redirect } from '../support/faults.ts'
import { get } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { installPackage } from '../support/installed-package.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'
import { temporaryHome } from '../support/mirror.ts'
import { serveSocksProxy } from '../support/proxies.ts'
import { pushImage } from '../support/push.ts'
import { anyBlob, startUpstream } from '../support/upstream.ts'
import { testCertificate } from '../support/upstream/certificate.ts'
import { serve } from '../support/upstream/serve.ts'

const image = makeImage({ layers: [300_000] })
const images = { 'library/app': { v1: image } }
const user = { username: 'ann', password: 'open-sesame' }
const gateway = '127.0.0.94'

/** Serves the upstream over TLS until the test ends. */
async function serveTls(upstream: string): Promise<string> {
  const { hostname, port } = new URL(upstream)
  const { url } = await serve((asked, response) => {
    request({ hostname, port, path: asked.url, method: asked.method, headers: asked.headers }, (answer) => {
      response.writeHead(answer.statusCode!, answer.headers)
      answer.pipe(response)
    }).end()
  }, testCertificate)
  return url
}

/** Writes a Docker configuration with a credential helper for the registry; returns the variables that point to it. */
async function setUpHelper(registry: string): Promise<Readonly<Record<string, string>>> {
  const answer = JSON.stringify({ Username: user.username, Secret: user.password })
  const helper = await makeCredentialHelper(`echo '${answer}'`)
  await helper.configure({ credHelpers: { [registry]: helperName } })
  return helper.env
}

test.skipIf(process.platform !== 'linux')(
  'a mirror whose package is removed while it runs answers everything as before',
  async () => {
    const installed = await installPackage()
    onTestFinished(() => rm(`${installed.prefix}-gone`, { recursive: true, force: true }))
    const plain = await startUpstream({ images, auth: { scheme: 'bearer' } })
    const owned = await startUpstream({ images, auth: { scheme: 'basic', users: { ann: user.password } } })
    const moved = await startUpstream({ images })
    const cdn = await startCdn()
    moved.on(
      anyBlob,
      redirect((path) => cdn.sign(image.blobs.get(path.split('/').at(-1) as never)!)),
    )
    const socks = await serveSocksProxy({ to: moved.host })
    const folder = await temporaryHome()
    const socket = join(folder, 'docker.sock')
    const ca = join(folder, 'ca.pem')
    await writeFile(ca, testCertificate.cert)
    const mirror = await startMirrorProcess({
      program: installed.program,
      upstreams: {
        'plain.test': plain.url,
        'owned.test': { url: owned.url },
        'moved.test': moved.url,
        'tls.test': { url: await serveTls(moved.url), ca, credentials: 'anonymous' },
        'socks.test': 'http://registry.test',
      },
      registry: true,
      networks: ['kind'],
      env: {
        ...(await setUpHelper('owned.test')),
        DOCKER_HOST: `unix://${socket}`,
        ALL_PROXY: `socks5h://${socks.host}`,
        NO_PROXY: '127.0.0.0/8',
      },
    })
    await rename(installed.prefix, `${installed.prefix}-gone`)

    for (const host of ['plain.test', 'owned.test', 'moved.test', 'tls.test', 'socks.test']) {
      const repository = `/v2/${host}/library/app`
      expectContent(await mirror.get(`${repository}/manifests/v1`), image.digest)
      for (const digest of image.blobs.keys()) expectContent(await mirror.get(`${repository}/blobs/${digest}`), digest)
      const tags = await mirror.get(`${repository}/tags/list`)
      expect(JSON.parse(tags.body.toString()), host).toMatchObject({ tags: ['v1'] })
      expect((await mirror.get(`${repository}/referrers/${image.digest}`)).status, host).toBe(200)
      const headers = { range: 'bytes=10-19' }
      expect((await mirror.get(`${repository}/blobs/${image.layers[0]}`, { headers })).status).toBe(206)
    }
    expect(socks.log).not.toEqual([])

    const registry = mirror.registryUrl!
    for (const tag of ['v1', 'v2']) await pushImage(registry, 'app', tag, image)
    expectContent(await get(registry, '/v2/app/manifests/v1'), image.digest)
    expect((await get(registry, '/v2/app/manifests/v2', { method: 'DELETE' })).status).toBe(202)

    const token = (await readFile(join(mirror.home, 'state', 'token'), 'utf8')).trim()
    const post = (path: string, body: object = {}) =>
      get(mirror.adminUrl, path, {
        method: 'POST',
        headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
        body: JSON.stringify(body),
      })
    for (const path of ['registry/gc', 'registry/prune', 'registry/rm', 'cache/prune', 'cache/verify', 'canary']) {
      const names = path === 'registry/rm' ? { names: ['app:v1'] } : {}
      expect((await post(`/api/${path}`, names)).status, path).toBeLessThan(500)
    }
    const probe = JSON.parse((await post('/api/canary')).body.toString()) as { repository: string; tag: string }
    expect((await mirror.get(`/v2/plain.test/${probe.repository}/manifests/${probe.tag}`)).status).toBe(200)
    for (const path of ['/api/status', '/metrics', '/healthz', '/api/registry'])
      expect((await get(mirror.adminUrl, path)).status, path).toBe(200)

    // Start the engine with its network only now.
    const engine = new DockerApiServer()
    engine.networks = [network('kind', gateway)]
    await engine.start(socket)
    onTestFinished(() => engine.stop())
    const near = mirror.url.replace('127.0.0.1', gateway)
    await expect
      .poll(async () => (await mirror.status()).endpoints.networks, { timeout: 30_000 })
      .toEqual({ kind: near })
    expectContent(await get(near, `/v2/plain.test/library/app/manifests/v1`), image.digest)

    mirror.kill('SIGTERM')
    expect(await mirror.ended).toBe(0)
    expect(mirror.log()).not.toMatch(/MODULE_NOT_FOUND|Cannot find|"level":"error"/)
  },
)

test('a mirror without the native package sends blobs in the portable way, and reports it in its status', async () => {
  const installed = await installPackage({ native: false })
  onTestFinished(() => installed.remove())
  const upstream = await startUpstream({ images })
  const mirror = await startMirrorProcess({ program: installed.program, upstreams: { 'docker.io': upstream.url } })
  for (let time = 0; time < 2; time++)
    for (const digest of image.blobs.keys()) expectContent(await mirror.get(`/v2/library/app/blobs/${digest}`), digest)
  expect((await mirror.status()).sendBlob).toBe('portable')
  expect(mirror.log()).toContain('"sendBlob":"portable"')
})
