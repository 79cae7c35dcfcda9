import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { mediaType } from '../../src/oci/content.ts'
import { blobFile } from '../support/blob-file.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { hang, reset, status } from '../support/faults.ts'
import { send, type Fault } from '../support/faulty-server.ts'
import { get, type Answer } from '../support/get.ts'
import { makeImage, manifestOf } from '../support/images.ts'
import { startTestMirror, temporaryHome } from '../support/mirror.ts'
import { outsideAddress } from '../support/outside-address.ts'
import { app, startScene, type Scene, type SceneOptions } from '../support/scene.ts'
import type { TestUpstream } from '../support/upstream.ts'

const image = makeImage()
const signature = makeImage({ seed: 7, layers: [10] })
const path = `${app}/referrers/${image.digest}`
const anyReferrers = { path: /\/referrers\// }

const descriptor = (artifactType: string, annotations = {}) => ({
  mediaType: mediaType.ociManifest,
  digest: signature.digest,
  size: signature.bytes.length,
  artifactType,
  annotations,
})
const entries = [descriptor('application/signature', { by: 'me' }), descriptor('application/sbom')]
const indexOf = (manifests: unknown[]) => ({ schemaVersion: 2, mediaType: mediaType.ociIndex, manifests })
const manifestsOf = ({ body }: Answer) => (JSON.parse(body.toString()) as { manifests: unknown[] }).manifests

/** Answers as the referrers API, which filters by default. */
function api(manifests: { artifactType: string }[], filters = true): Fault {
  return ({ request, response }) => {
    const type = new URL(request.url!, 'http://upstream.invalid').searchParams.get('artifactType')
    const isFiltered = filters && type !== null
    const kept = isFiltered ? manifests.filter(({ artifactType }) => artifactType === type) : manifests
    const headers = isFiltered ? { 'oci-filters-applied': 'artifactType' } : {}
    send(response, { status: 200, headers, body: Buffer.from(JSON.stringify(indexOf(kept))) })
  }
}

async function startWithApi(options: SceneOptions = {}): Promise<Scene> {
  const scene = await startScene({ image, ...options })
  scene.upstream.on(anyReferrers, api(entries))
  expectContent(await scene.mirror.get(`${app}/manifests/v1`), image.digest)
  return scene
}

/** Starts a scene without the API: the list is under a tag. */
async function startWithTag(options: SceneOptions = {}): Promise<Scene> {
  const scene = await startScene({ image, ...options })
  const list = manifestOf(Buffer.from(JSON.stringify(indexOf(entries))), mediaType.ociIndex)
  scene.upstream.push('library/app', image.digest.replace(':', '-'), list)
  expectContent(await scene.mirror.get(`${app}/manifests/v1`), image.digest)
  return scene
}

function expectStale(answer: Answer, manifests: readonly unknown[]): void {
  expect([answer.status, answer.headers['content-type']]).toEqual([200, mediaType.ociIndex])
  expect(manifestsOf(answer)).toEqual(manifests)
  expect(answer.headers['cache-status']).toBe('mirror; hit; detail=stale-on-error')
  expect(answer.headers['warning']).toMatch(/^299 /)
}

const sources: [string, (options?: SceneOptions) => Promise<Scene>][] = [
  ['the referrers API', startWithApi],
  ['the tag', startWithTag],
]
const outages: [string, (upstream: TestUpstream) => unknown][] = [
  ['refuses', (upstream) => upstream.stop()],
  ['resets', (upstream) => upstream.on({}, reset)],
  ['hangs', (upstream) => upstream.on({}, hang)],
  ['answers 503', (upstream) => upstream.on({}, status(503))],
  ['answers 429', (upstream) => upstream.on({}, status(429, { 'retry-after': '60' }))],
  ['answers with a page', (upstream) => upstream.on({}, status(200, { 'content-type': 'text/html' }, '<html>'))],
]

describe.each(sources)('a list of referrers that came from %s', (_, start) => {
  test.each(outages)('is served while the upstream %s, and marked as stale', async (_, breakIt) => {
    const { upstream, mirror } = await start()
    expect(manifestsOf(await mirror.get(path))).toEqual(entries)
    await breakIt(upstream)
    expectStale(await mirror.get(path), entries)
    expect((await mirror.get(path, { method: 'HEAD' })).status).toBe(200)
    const filtered = await mirror.get(`${path}?artifactType=application%2Fsbom`)
    expectStale(filtered, [entries[1]])
    expect(filtered.headers['oci-filters-applied']).toBe('artifactType')
    expectStale(await mirror.get(`${path}?artifactType=application%2Fother`), [])
  })

  test.each([false, true])('is served after a restart (offline: %s)', async (offline) => {
    const home = await temporaryHome()
    const { upstream, mirror } = await start({ home })
    await mirror.get(path)
    await mirror.close()
    await upstream.stop()
    const second = await startTestMirror({ home, cache: { offline }, upstreams: { 'docker.io': upstream.url } })
    expectStale(await second.get(path), entries)
  })

  test('is requested again as soon as the upstream responds', async () => {
    const { upstream, mirror } = await start({ cache: { timeouts: { revalidate: 30_000 } } })
    await mirror.get(path)
    const heal = upstream.on({}, status(503))
    expectStale(await mirror.get(path), entries)
    heal()
    upstream.on(anyReferrers, api([entries[1]!]))
    const answer = await mirror.get(path)
    expect(manifestsOf(answer)).toEqual([entries[1]])
    expect(answer.headers['cache-status']).not.toContain('stale')
    upstream.on({}, status(503))
    expectStale(await mirror.get(path), [entries[1]])
  })

  test.each([401, 403])('is not served once the upstream has answered %i', async (code) => {
    const { upstream, mirror } = await start()
    await mirror.get(path)
    const heal = upstream.on({}, status(code))
    expectError(await mirror.get(path), code)
    heal()
    upstream.on(anyReferrers, status(503))
    if (start === startWithApi) expectError(await mirror.get(path), [502, 503])
  })

  test('is served with stale: always despite a 403, and not with stale: never in an outage', async () => {
    const always = await start({ cache: { stale: 'always' } })
    await always.mirror.get(path)
    always.upstream.on({}, status(403))
    expectStale(await always.mirror.get(path), entries)
    const never = await start({ cache: { stale: 'never' } })
    await never.mirror.get(path)
    never.upstream.on({}, status(503))
    expectError(await never.mirror.get(path), [502, 503])
  })

  test('is removed with its image', async () => {
    const { upstream, mirror } = await start()
    await mirror.get(path)
    expect((await mirror.status()).storage.blobs).toBe(2)
    await mirror.post('/api/cache/rm', { names: ['docker.io/library/app'], dryRun: false })
    expect((await mirror.status()).storage.blobs).toBe(0)
    await upstream.stop()
    expectError(await mirror.get(path), [502, 503])
  })
})

describe('a list of referrers', () => {
  test('that was never requested is an outage, never an empty list', async () => {
    const { upstream, mirror } = await startWithApi()
    upstream.on(anyReferrers, status(500))
    expectError(await mirror.get(path), 502)
    await upstream.stop()
    expectError(await mirror.get(path), [502, 503])
  })

  test('that was empty is empty while the upstream is down, with the API and without', async () => {
    for (const withApi of [true, false]) {
      const { upstream, mirror } = await startScene({ image })
      if (withApi) upstream.on(anyReferrers, api([]))
      expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
      expect(manifestsOf(await mirror.get(path))).toEqual([])
      await upstream.stop()
      expectStale(await mirror.get(path), [])
    }
  })

  test('of a referrer is stored before the referrer is pulled, because clients request the whole tree', async () => {
    const { upstream, mirror } = await startWithApi()
    const ofSignature = `${app}/referrers/${signature.digest}`
    upstream.on({ path: ofSignature }, api([]))
    await mirror.get(path)
    await mirror.get(ofSignature)
    await upstream.stop()
    expectStale(await mirror.get(path), entries)
    expectStale(await mirror.get(ofSignature), [])
  })

  test('of one artifact type replaces only requests for that type', async () => {
    const { upstream, mirror } = await startWithApi()
    await mirror.get(`${path}?artifactType=application%2Fsbom`)
    await upstream.stop()
    expectStale(await mirror.get(`${path}?artifactType=application/sbom&n=50`), [entries[1]])
    expectError(await mirror.get(`${path}?artifactType=application%2Fsignature`), [502, 503])
    expectError(await mirror.get(path), [502, 503])
  })

  test('that the upstream does not filter has no OCI-Filters-Applied, unless the mirror has filtered it', async () => {
    const { upstream, mirror } = await startWithApi()
    upstream.on(anyReferrers, api(entries, false))
    const query = '?artifactType=application%2Fsbom'
    const answer = await mirror.get(path + query)
    expect([manifestsOf(answer), answer.headers['oci-filters-applied']]).toEqual([entries, undefined])
    await mirror.get(path)
    await upstream.stop()
    expectStale(await mirror.get(path + query), entries)
  })

  test('in pages is stored page by page, and filtered over all of them', async () => {
    const { upstream, mirror } = await startWithApi()
    upstream.on(anyReferrers, ({ request, response }) => {
      const isFirst = !request.url!.includes('token=')
      const link = `<${path}?token=k%2F1>; rel="next"`
      const body = Buffer.from(JSON.stringify(indexOf([entries[isFirst ? 0 : 1]])))
      send(response, { status: 200, headers: isFirst ? { link } : {}, body })
    })
    const next = /<([^>]+)>/.exec(String((await mirror.get(`${path}?ns=docker.io`)).headers['link']))?.[1]
    expect(next).toBe(`${path}?token=k%2F1&ns=docker.io`)
    const half = upstream.on({}, status(503))
    expectError(await mirror.get(`${path}?artifactType=application%2Fsbom`), [502, 503])
    half()
    await mirror.get(next!)
    upstream.on({}, status(503))
    const first = await mirror.get(`${path}?ns=docker.io`)
    expectStale(first, [entries[0]])
    expect(first.headers['link']).toBe(`<${next}>; rel="next"`)
    expectStale(await mirror.get(next!), [entries[1]])
    expectStale(await mirror.get(`${path}?artifactType=application%2Fsbom`), [entries[1]])
  })

  test('is stored before its image, and removed by its own age or name', async () => {
    // Sets a timeout that exceeds the request to the upstream with all its retries.
    const { upstream, mirror } = await startScene({ image, cache: { timeouts: { revalidate: 30_000 } } })
    upstream.on(anyReferrers, api(entries))
    await mirror.get(path)
    const heal = upstream.on({}, status(503))
    expectStale(await mirror.get(path), entries)
    heal()
    await mirror.post('/api/cache/rm', { names: [image.digest], dryRun: false })
    upstream.on({}, status(503))
    expectError(await mirror.get(path), [502, 503])
    expect((await mirror.status()).storage.blobs).toBe(0)
  })

  test('is not stored for queries that only the client knows, nor for missing repositories', async () => {
    const { upstream, mirror } = await startWithApi()
    for (let at = 0; at < 5; at++) await mirror.get(`${path}?x=${at}`)
    upstream.on(anyReferrers, api([]))
    for (let at = 0; at < 5; at++)
      await mirror.get(`/v2/library/none-${at}/referrers/${computeDigest(Buffer.from(String(at)))}`)
    expect((await mirror.status()).storage.blobs).toBe(1)
  })

  test('that is damaged on disk is not served', async () => {
    const { upstream, mirror } = await startWithApi()
    const { body } = await mirror.get(path)
    await writeFile(await blobFile(mirror, computeDigest(body)), Buffer.alloc(body.length, ' '))
    await upstream.stop()
    expectError(await mirror.get(path), [502, 503])
  })

  test('that is more than 4 MiB is refused', async () => {
    const { upstream, mirror } = await startWithApi()
    upstream.on(anyReferrers, api([descriptor('a/b', { long: 'x'.repeat(5_000_000) })]))
    expectError(await mirror.get(path), 502)
  })
})

test.skipIf(outsideAddress === undefined)(
  'a list of referrers that was fetched with a credential is served on loopback only',
  async () => {
    const passwordFile = join(await temporaryHome(), 'password')
    await writeFile(passwordFile, 'open-sesame', { mode: 0o600 })
    const { upstream, mirror } = await startWithApi({
      auth: { scheme: 'bearer', users: { puller: 'open-sesame' }, private: ['library/app'] },
      upstream: { credentials: { from: 'password-file', username: 'puller', passwordFile } },
      cache: {
        listen: [
          { host: '127.0.0.1', port: 0 },
          { host: outsideAddress!, port: 0 },
        ],
      },
    })
    expect(manifestsOf(await mirror.get(path))).toEqual(entries)
    await upstream.stop()
    expectStale(await mirror.get(path), entries)
    expectError(await get(mirror.urls[1]!, path), [502, 503])
  },
)
