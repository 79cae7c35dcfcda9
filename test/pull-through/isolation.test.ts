import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import type { CredentialsSource } from '../../src/upstream/credentials.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { late, slow, status } from '../support/faults.ts'
import { get } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { startTestMirror, temporaryHome } from '../support/mirror.ts'
import { noise } from '../support/noise.ts'
import { outsideAddress } from '../support/outside-address.ts'
import { app, startScene } from '../support/scene.ts'
import { anyBlob, startUpstream } from '../support/upstream.ts'

async function startTwo() {
  const images = [makeImage({ layers: [noise(1000, 1)] }), makeImage({ layers: [noise(1000, 2)] })] as const
  const one = await startUpstream({ images: { 'library/app': { v1: images[0] } } })
  const two = await startUpstream({ images: { 'library/app': { v1: images[1] } } })
  const mirror = await startTestMirror({ upstreams: { 'one.example': one.url, 'two.example': two.url } })
  return { images, one, two, mirror }
}

describe('two upstreams with repositories of the same name', () => {
  test('serve their own content', async () => {
    const { images, mirror } = await startTwo()
    for (const _ of ['cold', 'warm']) {
      for (const [at, ns] of ['one.example', 'two.example'].entries()) {
        const image = images[at]!
        expectContent(await mirror.get(`${app}/manifests/v1?ns=${ns}`), image.digest)
        expectContent(await mirror.get(`${app}/blobs/${image.layers[0]}?ns=${ns}`), image.layers[0]!)
      }
    }
  })

  test("do not serve each other's content", async () => {
    const { images, mirror } = await startTwo()
    const [first] = images
    await mirror.get(`${app}/manifests/v1?ns=one.example`)
    await mirror.get(`${app}/blobs/${first.layers[0]}?ns=one.example`)
    expectError(await mirror.get(`${app}/manifests/${first.digest}?ns=two.example`), 404, 'MANIFEST_UNKNOWN')
    expectError(await mirror.get(`${app}/blobs/${first.layers[0]}?ns=two.example`), 404, 'BLOB_UNKNOWN')
  })

  test('are removed independently', async () => {
    const { images, one, two, mirror } = await startTwo()
    for (const ns of ['one.example', 'two.example']) await mirror.get(`${app}/manifests/v1?ns=${ns}`)
    const removal = await mirror.post('/api/cache/rm', { names: ['one.example/library/app'], dryRun: false })
    expect(removal.status).toBe(200)
    await one.stop()
    await two.stop()
    expectContent(await mirror.get(`${app}/manifests/v1?ns=two.example`), images[1].digest)
    expectError(await mirror.get(`${app}/manifests/v1?ns=one.example`), [502, 503, 504])
  })
})

describe('stored bytes are served only with a grant for the repository', () => {
  const shared = noise(200_000, 5)
  const digest = computeDigest(shared)
  const secret = makeImage({ layers: [shared], seed: 1 })

  async function startShared() {
    const scene = await startScene({ image: secret })
    await scene.mirror.get(`${app}/manifests/v1`)
    return scene
  }

  test("a repository without the blob gets its upstream's 404, not the stored bytes", async () => {
    const { upstream, mirror } = await startShared()
    await mirror.get(`${app}/blobs/${digest}`)
    upstream.push('library/other', 'v1', makeImage({ seed: 2 }))
    for (const method of ['GET', 'HEAD']) {
      expect((await mirror.get(`/v2/library/other/blobs/${digest}`, { method })).status).toBe(404)
    }
    expect((await mirror.get(`/v2/library/other/manifests/${secret.digest}`)).status).toBe(404)
  })

  test('a repository whose upstream has the blob gets the stored bytes for one HEAD', async () => {
    const { upstream, mirror } = await startShared()
    await mirror.get(`${app}/blobs/${digest}`)
    upstream.push('library/other', 'v1', makeImage({ layers: [shared], seed: 2 }))
    const { length } = upstream.requests
    expectContent(await mirror.get(`/v2/library/other/blobs/${digest}`), digest)
    expectContent(await mirror.get(`/v2/library/other/blobs/${digest}`), digest)
    expect(upstream.requests.slice(length).map(({ method }) => method)).toEqual(['HEAD'])
  })

  test('a manifest of the repository that names the blob is a grant', async () => {
    const { upstream, mirror } = await startShared()
    await mirror.get(`${app}/blobs/${digest}`)
    upstream.push('library/other', 'v1', makeImage({ layers: [shared], seed: 2 }))
    await mirror.get('/v2/library/other/manifests/v1')
    const { length } = upstream.requests
    expectContent(await mirror.get(`/v2/library/other/blobs/${digest}`), digest)
    expect(upstream.requests.length).toBe(length)
  })

  test('a manifest that names the blob as a foreign layer is no grant', async () => {
    const { upstream, mirror } = await startShared()
    await mirror.get(`${app}/blobs/${digest}`)
    const type = 'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip'
    const layers = [{ mediaType: type, digest, size: shared.length, urls: [`${upstream.url}/foreign`] }]
    upstream.push('library/other', 'v1', makeImage({ mediaTypes: 'docker', seed: 2, manifest: { layers } }))
    expect((await mirror.get('/v2/library/other/manifests/v1')).status).toBe(200)
    expectError(await mirror.get(`/v2/library/other/blobs/${digest}`), 404, 'BLOB_UNKNOWN')
    expect(upstream.count({ path: '/foreign' })).toBe(0)
  })

  test('a grant that comes after the end of its download is valid for the stored blob', async () => {
    const { upstream, mirror } = await startShared()
    upstream.push('library/holder', 'v1', makeImage({ layers: [shared], seed: 3 }))
    upstream.on(anyBlob, slow(1_000_000))
    upstream.on({ method: 'HEAD', path: /library\/holder\/blobs/ }, late(600))
    const running = mirror.get(`${app}/blobs/${digest}`)
    await expect.poll(() => upstream.count(anyBlob)).toBe(1)
    expectContent(await mirror.get(`/v2/library/holder/blobs/${digest}`), digest)
    expectContent(await running, digest)
    expect(upstream.count(anyBlob)).toBe(1)
  })

  test('joining a running download needs a grant for the own repository', async () => {
    const { upstream, mirror } = await startShared()
    upstream.on(anyBlob, slow(200_000))
    upstream.push('library/holder', 'v1', makeImage({ layers: [shared], seed: 3 }))
    upstream.push('library/other', 'v1', makeImage({ seed: 2 }))
    const running = mirror.get(`${app}/blobs/${digest}`)
    await expect.poll(() => upstream.count(anyBlob)).toBe(1)
    expectError(await mirror.get(`/v2/library/other/blobs/${digest}`), 404, 'BLOB_UNKNOWN')
    expectContent(await mirror.get(`/v2/library/holder/blobs/${digest}`), digest)
    expectContent(await running, digest)
    expect(upstream.count({ method: 'GET', path: /library\/holder\/blobs/ })).toBe(0)
  })

  test('a refusal for the repository of a running download does not answer another repository that has joined it', async () => {
    const { upstream, mirror } = await startShared()
    const holder = makeImage({ layers: [shared], seed: 3 })
    upstream.push('library/holder', 'v1', holder)
    upstream.on({ method: 'GET', path: `${app}/blobs/${digest}` }, async (exchange) => {
      await sleep(300)
      return status(403)(exchange)
    })
    expectContent(await mirror.get('/v2/library/holder/manifests/v1'), holder.digest)
    const refused = mirror.get(`${app}/blobs/${digest}`)
    await expect.poll(() => upstream.count(anyBlob)).toBe(1)
    const joined = await Promise.all([1, 2, 3].map(() => mirror.get(`/v2/library/holder/blobs/${digest}`)))
    for (const answer of joined) expectContent(answer, digest)
    expectError(await refused, 403)
    expect(upstream.count({ method: 'GET', path: /library\/holder\/blobs/ })).toBe(1)
  })
})

async function startBoth(shareCredentials: boolean, credentials?: CredentialsSource, tagFreshness = 0) {
  const passwordFile = join(await temporaryHome(), 'password')
  await writeFile(passwordFile, 'open-sesame', { mode: 0o600 })
  const scene = await startScene({
    image: makeImage({ layers: [noise(200_000)] }),
    auth: { scheme: 'bearer', users: { puller: 'open-sesame' }, private: ['library/app'] },
    upstream: { credentials: credentials ?? { from: 'password-file', username: 'puller', passwordFile } },
    cache: {
      shareCredentials,
      tagFreshness,
      listen: [
        { host: '127.0.0.1', port: 0 },
        { host: outsideAddress!, port: 0 },
      ],
    },
  })
  scene.upstream.push('library/open', 'v1', makeImage({ layers: [10], seed: 2 }))
  return { ...scene, outer: scene.mirror.urls[1]! }
}

describe.skipIf(outsideAddress === undefined)('credentials are used on loopback listeners only', () => {
  test('a listener on another address uses anonymous access, and does not serve content of a credential', async () => {
    const { mirror, upstream, outer, image, layer } = await startBoth(false)
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    upstream.on(anyBlob, slow(200_000))
    const running = mirror.get(`${app}/blobs/${layer}`)
    await expect.poll(() => upstream.count(anyBlob)).toBe(1)
    for (const path of ['manifests/v1', `manifests/${image.digest}`, `blobs/${layer}`]) {
      expectError(await get(outer, `${app}/${path}`), 401)
    }
    expectContent(await running, layer)
    expectError(await get(outer, `${app}/blobs/${layer}`), 401)
    expect((await get(outer, '/v2/_catalog')).body.toString()).not.toContain('library/app')

    expect((await get(outer, '/v2/library/open/manifests/v1')).status).toBe(200)
  })

  test('a credential that appears during an anonymous request is not used for it', async () => {
    const folder = await temporaryHome()
    vi.stubEnv('DOCKER_CONFIG', folder)
    onTestFinished(() => void vi.unstubAllEnvs())
    const { mirror, upstream, outer, image, layer } = await startBoth(false, { from: 'docker-config' })
    upstream.on({ method: 'HEAD', path: /manifests/ }, late(700))
    upstream.on({ method: 'GET', path: /manifests|blobs/ }, late(700))
    const running = mirror.get(`${app}/manifests/v1`, { method: 'HEAD' })
    await expect.poll(() => upstream.count({ method: 'HEAD', path: /manifests/ })).toBe(1)
    const auth = Buffer.from('puller:open-sesame').toString('base64')
    await writeFile(join(folder, 'config.json'), JSON.stringify({ auths: { 'https://index.docker.io/v1/': { auth } } }))
    await expect.poll(() => upstream.count({ method: 'GET', path: /manifests/ })).toBe(1)
    expectError(await get(outer, `${app}/manifests/v1`), 401)
    await running
    // Checks that a request with the credential is served.
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expectError(await get(outer, `${app}/blobs/${layer}`), 401)
  })

  test.each([
    ['an account concerns only callers of that account', 'account', true],
    ['an address concerns all callers', 'address', false],
  ])('the warning about a limit of %s, also while the tag is fresh', async (_, limited, isCredentialed) => {
    const { mirror, upstream, outer } = await startBoth(false, undefined, 60_000)
    const path = '/v2/library/open/manifests/v1'
    const withCredential = async (options = {}) => (await mirror.get(path, options)).headers['warning']
    const without = async (options = {}) => (await get(outer, path, options)).headers['warning']
    expect(await without()).toBeUndefined()
    upstream.on({}, status(429, { 'retry-after': '600' }))
    const first = isCredentialed ? withCredential : without
    expect(await first({ headers: { 'cache-control': 'no-cache' } })).toContain(`limiting this ${limited} until`)
    expect(await withCredential()).toContain(`limiting this ${limited} until`)
    if (isCredentialed) expect(await without()).toBeUndefined()
    else expect(await without()).toContain(`limiting this ${limited} until`)
  })

  test('a listener on another address uses credentials that the configuration shares', async () => {
    const { outer, image, layer } = await startBoth(true)
    expectContent(await get(outer, `${app}/manifests/v1`), image.digest)
    expectContent(await get(outer, `${app}/blobs/${layer}`), layer)
  })
})
