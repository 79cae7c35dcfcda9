import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { hang, late, reset, status, times } from '../support/faults.ts'
import { makeImage } from '../support/images.ts'
import { startTestMirror, temporaryHome } from '../support/mirror.ts'
import { noise } from '../support/noise.ts'
import { app, startScene } from '../support/scene.ts'
import { anyBlob, anyManifest, anyManifestHead, startUpstream, type TestUpstream } from '../support/upstream.ts'

const absent = computeDigest(Buffer.from('nobody has this'))

const outages: [string, (upstream: TestUpstream) => unknown][] = [
  ['refuses', (upstream) => upstream.stop()],
  ['resets', (upstream) => upstream.on({}, reset)],
  ['hangs', (upstream) => upstream.on({}, hang)],
  ['answers 503', (upstream) => upstream.on({}, status(503))],
]

describe('an upstream with temporary failures', () => {
  test.each([
    ['a manifest', anyManifest],
    ['a blob', anyBlob],
  ])('gets three requests for %s: 503, 503, 200', async (_, match) => {
    const { upstream, mirror, image, layer } = await startScene()
    upstream.on(match, times(2, status(503)))
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expect(upstream.count(match)).toBe(3)
  })

  test('gets three requests for a manifest: reset, reset, 200', async () => {
    const { upstream, mirror, image } = await startScene()
    upstream.on(anyManifest, times(2, reset))
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expect(upstream.count(anyManifest)).toBe(3)
  })

  test('that is back a moment later causes no error', async () => {
    const { upstream, mirror, image } = await startScene()
    await upstream.stop()
    const [answer] = await Promise.all([mirror.get(`${app}/manifests/v1`), sleep(100).then(upstream.start)])
    expectContent(answer, image.digest)
  })
})

describe.each(outages)('an upstream that %s', (_, breakIt) => {
  test('does not prevent a pull: a cached tag is served stale, its content without a request', async () => {
    const { upstream, mirror, image, layer } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(`${app}/blobs/${layer}`)
    await breakIt(upstream)
    const begun = performance.now()
    const stale = await mirror.get(`${app}/manifests/v1`)
    expect(performance.now() - begun).toBeLessThan(2000)
    expectContent(stale, image.digest)
    expect(stale.headers['cache-status']).toBe('mirror; hit; detail=stale-on-error')
    expect(stale.headers['warning']).toMatch(/^299 - "[^"]+"$/)

    // Counts requests for digests only, because retries of the tag may still run in the background.
    const byDigest = { path: /sha256:/ }
    const asked = upstream.count(byDigest)
    expectContent(await mirror.get(`${app}/manifests/${image.digest}`), image.digest)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expect(upstream.count(byDigest)).toBe(asked)
    expect((await mirror.status()).cache.staleServed).toBe(1)
  })

  test('is an outage, never a 404, for uncached content', async () => {
    const { upstream, mirror, layer } = await startScene({ cache: { timeouts: { headers: 300 } } })
    await breakIt(upstream)
    expectError(await mirror.get(`${app}/manifests/v1`), [502, 503, 504])
    expectError(await mirror.get(`${app}/blobs/${layer}`), [502, 503, 504])
    expect((await mirror.get(`${app}/manifests/v1`, { method: 'HEAD' })).status).toBeGreaterThanOrEqual(502)
  })
})

describe('a stale tag', () => {
  test('costs one timeout per freshness window, not one per pull', async () => {
    const { upstream, mirror, image } = await startScene({
      cache: { tagFreshness: 60_000, timeouts: { headers: 200, revalidate: 5000 } },
    })
    await mirror.get(`${app}/manifests/v1`)
    upstream.on({}, hang)
    expectContent(await mirror.get(`${app}/manifests/v1`, { headers: { 'cache-control': 'no-cache' } }), image.digest)
    const asked = upstream.requests.length
    for (let pull = 0; pull < 5; pull++) expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expect(upstream.requests.length).toBe(asked)
  })

  test('is not served with stale: never, however long the attempts take', async () => {
    const { upstream, mirror } = await startScene({ cache: { stale: 'never', timeouts: { revalidate: 50 } } })
    await mirror.get(`${app}/manifests/v1`)
    upstream.on({}, status(503))
    expectError(await mirror.get(`${app}/manifests/v1`), [502, 503, 504])
  })

  test.each([401, 403, 404])('is served with stale: always after a %i', async (code) => {
    const { upstream, mirror, image } = await startScene({ cache: { stale: 'always' } })
    await mirror.get(`${app}/manifests/v1`)
    upstream.on({}, status(code))
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
  })
})

describe("the upstream's refusal", () => {
  test.each([
    [404, 'MANIFEST_UNKNOWN'],
    [401, 'UNAUTHORIZED'],
    [402, 'DENIED'],
    [403, 'DENIED'],
    [412, 'DENIED'],
    [423, 'DENIED'],
    [451, 'DENIED'],
  ])('%i for a cached tag is forwarded, and public content is still served by digest', async (code, name) => {
    const { upstream, mirror, image, layer } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(`${app}/blobs/${layer}`)
    upstream.on({}, status(code))
    const answer = await mirror.get(`${app}/manifests/v1`)
    // Expects a status that clients know (401, 403 or 404); the upstream's own one is in Cache-Status.
    expectError(answer, name === 'DENIED' ? 403 : code, name)
    expect(answer.headers['cache-status']).toContain(`fwd-status=${code}`)
    expect(answer.headers['www-authenticate']).toBeUndefined()
    expectContent(await mirror.get(`${app}/manifests/${image.digest}`), image.digest)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
  })
})

describe('a status that does not concern the image', () => {
  test.each([400, 405, 406, 409, 428, 431])('%i does not remove a cached tag', async (code) => {
    const { upstream, mirror, image } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    upstream.on({}, status(code))
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expectError(await mirror.get(`${app}/manifests/v2`), 502)
  })
})

describe("the upstream's error message", () => {
  const reason = 'image is blocked by policy 7: 3 critical findings'
  const headers = { 'www-authenticate': 'Basic realm="elsewhere"' }

  test.each([401, 403, 404, 412, 429, 451, 500, 503])('for a %i reaches the client and the log', async (code) => {
    const { upstream, mirror, layer } = await startScene()
    const body = JSON.stringify({ errors: [{ code: 'ANY', message: reason }] })
    upstream.on({ path: /^\/v2\// }, status(code, headers, body))
    const paths = [`${app}/manifests/v1`, `${app}/blobs/${layer}`, `${app}/tags/list`]
    // Requests one path for a 5xx, because each is tried three times, and the circuit opens after five failures.
    for (const path of code < 500 ? paths : paths.slice(0, 1)) {
      const answer = await mirror.get(path)
      expect(answer.body.toString()).toContain(reason)
      expect(JSON.stringify([answer.headers, answer.body.toString()])).not.toContain('elsewhere')
    }
    expect(mirror.log.join('\n')).toContain(reason)
  })
})

describe('content that the upstream does not have', () => {
  test.each([
    ['a tag', '/manifests/absent', 'MANIFEST_UNKNOWN'],
    ['a manifest by digest', `/manifests/${absent}`, 'MANIFEST_UNKNOWN'],
    ['a blob', `/blobs/${absent}`, 'BLOB_UNKNOWN'],
    ['the tags of a repository', '-nope/tags/list', 'NAME_UNKNOWN'],
  ])('%s is a 404, for GET and HEAD', async (_, path, code) => {
    const { mirror } = await startScene()
    const head = await mirror.get(`${app}${path}`, { method: 'HEAD' })
    expect(head.status).toBe(404)
    expectError(await mirror.get(`${app}${path}`), 404, code)
  })

  test('is not requested again for a moment', async () => {
    const { upstream, mirror } = await startScene()
    await mirror.get(`${app}/manifests/absent`)
    const asked = upstream.requests.length
    expectError(await mirror.get(`${app}/manifests/absent`), 404)
    expect(upstream.requests.length).toBe(asked)
  })

  test('is requested again a moment later, even if a client has repeated its request all the time', async () => {
    const { upstream, mirror, image } = await startScene()
    await mirror.get(`${app}/manifests/absent`)
    upstream.push('library/app', 'absent', image)
    const status = async () => (await mirror.get(`${app}/manifests/absent`)).status
    await expect.poll(status, { interval: 500, timeout: 8000 }).toBe(200)
  }, 15_000)

  test('is requested again at once for a client that sends no-cache', async () => {
    const { upstream, mirror, image } = await startScene()
    await mirror.get(`${app}/manifests/absent`)
    upstream.push('library/app', 'absent', image)
    const headers = { 'cache-control': 'no-cache' }
    expectContent(await mirror.get(`${app}/manifests/absent`, { headers }), image.digest)
  })
})

describe('the HEAD of uncached content', () => {
  test('of a blob has the size from the upstream, and starts no download', async () => {
    const { upstream, mirror, layer, layerBytes } = await startScene()
    const answer = await mirror.get(`${app}/blobs/${layer}`, { method: 'HEAD' })
    expect(answer).toMatchObject({ status: 200, headers: { 'content-length': String(layerBytes.length) } })
    expect(upstream.count({ method: 'GET', path: /\/blobs\// })).toBe(0)
    expect((await mirror.status()).storage.blobs).toBe(0)
  })

  test('of a tag has the type, digest and length from the upstream', async () => {
    const { upstream, mirror, image } = await startScene()
    const answer = await mirror.get(`${app}/manifests/v1`, { method: 'HEAD' })
    expect(answer).toMatchObject({
      status: 200,
      headers: {
        'content-length': String(image.bytes.length),
        'content-type': image.mediaType,
        'docker-content-digest': image.digest,
      },
    })
    expect(upstream.count(anyManifest)).toBe(0)
    expect((await mirror.status()).cache).toMatchObject({ requests: 1, hits: 0, misses: 0 })
  })
})

describe('a mirror whose upstream is down at the start', () => {
  test('starts, and serves its cache by tag and by digest', async () => {
    const home = await temporaryHome()
    const { upstream, mirror, image, layer } = await startScene({ home })
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(`${app}/blobs/${layer}`)
    await mirror.close()
    await upstream.stop()

    const second = await startTestMirror({ home, upstreams: { 'docker.io': upstream.url } })
    expectContent(await second.get(`${app}/manifests/v1`), image.digest)
    expectContent(await second.get(`${app}/manifests/${image.digest}`), image.digest)
    expectContent(await second.get(`${app}/blobs/${layer}`), layer)
    expectError(await second.get(`${app}/manifests/v2`), [502, 503, 504])
  })

  test('starts empty, and works when the upstream comes up', async () => {
    const image = makeImage()
    const upstream = await startUpstream({ images: { 'library/app': { v1: image } } })
    await upstream.stop()
    const mirror = await startTestMirror({ upstreams: { 'docker.io': upstream.url } })
    expectError(await mirror.get(`${app}/manifests/v1`), [502, 503, 504])
    await upstream.start()
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
  })

  test('in offline mode opens no connection, and serves its cache', async () => {
    const home = await temporaryHome()
    const { upstream, mirror, image, layer } = await startScene({ home })
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(`${app}/blobs/${layer}`)
    await mirror.close()

    const before = upstream.connections.accepted
    const second = await startTestMirror({ home, cache: { offline: true }, upstreams: { 'docker.io': upstream.url } })
    expectContent(await second.get(`${app}/manifests/v1`), image.digest)
    expectContent(await second.get(`${app}/blobs/${layer}`), layer)
    expectError(await second.get(`${app}/manifests/v2`), [502, 503, 504])
    expectError(await second.get(`${app}/blobs/${absent}`), [502, 503, 504])
    expect(JSON.parse((await second.get(`${app}/tags/list`)).body.toString())).toEqual({
      name: 'library/app',
      tags: ['v1'],
    })
    expect(upstream.connections.accepted).toBe(before)
  })
})

describe('the circuit breaker', () => {
  test('opens after five consecutive failed connections: then no request is sent, and cached tags are served at once', async () => {
    const { upstream, mirror, image } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    await upstream.stop()
    for (const tag of ['a', 'b', 'c']) await mirror.get(`${app}/manifests/${tag}`)
    expect((await mirror.status()).upstreams['docker.io']?.state).toBe('open')

    await upstream.start()
    const asked = upstream.requests.length
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    const refused = await mirror.get(`${app}/manifests/d`)
    expectError(refused, 503, 'UNAVAILABLE')
    expect(Number(refused.headers['retry-after'])).toBeGreaterThan(0)
    expect(upstream.requests.length).toBe(asked)
  })

  test('opens for five repositories that got consecutive 5xx', async () => {
    const { upstream, mirror, image } = await startScene()
    const five = ['a', 'b', 'c', 'd', 'e']
    upstream.on({ path: /\/library\/[a-e]\// }, status(503))
    for (const name of five) expectError(await mirror.get(`/v2/library/${name}/manifests/v1`), [502, 503])
    expect((await mirror.status()).upstreams['docker.io']?.state).toBe('open')
    const asked = upstream.requests.length
    for (const name of five) expectError(await mirror.get(`/v2/library/${name}/manifests/v2`), 503, 'UNAVAILABLE')
    expect(upstream.requests.length).toBe(asked)
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expect((await mirror.status()).upstreams['docker.io']?.state).toBe('ok')
  })

  test('blocks for 30 s a request that failed five times, and serves cached content stale at once', async () => {
    const { upstream, mirror, image } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    upstream.on({}, status(503))
    for (const _ of ['first', 'second']) await mirror.get(`${app}/manifests/a`)
    await expect.poll(async () => (await mirror.get(`${app}/manifests/a`)).status).toBe(503)
    // Waits a second, which exceeds all pauses between the tries of a check that continues after its stale answer.
    const askedByPull = async () => {
      const before = upstream.requests.length
      expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
      await sleep(1000)
      return upstream.requests.length - before
    }
    await expect.poll(askedByPull).toBe(0)
    const tries = (method: string, tag: string) => upstream.count({ method, path: new RegExp(`/manifests/${tag}$`) })
    // Adds one, because the first GET of v1 was answered.
    expect([tries('GET', 'a'), tries('HEAD', 'v1'), tries('GET', 'v1')]).toEqual([5, 5, 1 + 5])
    const asked = upstream.requests.length
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expectError(await mirror.get(`${app}/manifests/a`), 503, 'UNAVAILABLE')
    expect(upstream.requests.length).toBe(asked)
  })

  test.each([401, 403, 404, 429])('stays closed however often the upstream answers %i', async (code) => {
    const { upstream, mirror } = await startScene()
    upstream.on(anyManifest, status(code, { 'retry-after': '0' }))
    for (let ask = 0; ask < 7; ask++) await mirror.get(`${app}/manifests/t${ask}`)
    expect((await mirror.status()).upstreams['docker.io']?.state).not.toBe('open')
  })
})

describe('one broken repository does not affect the rest of its registry', () => {
  const brokenDigest = computeDigest(Buffer.from('broken'))
  const askedFor: [string, string][] = [
    ['tag', 'manifests/v1'],
    ['manifest', `manifests/${brokenDigest}`],
    ['blob', `blobs/${brokenDigest}`],
    ['list of tags', 'tags/list'],
    ['list of referrers', `referrers/${brokenDigest}`],
  ]

  test.each(askedFor)('when a %s answers 500', async (_, what) => {
    const { upstream, mirror, image } = await startScene()
    const broken = '/v2/library/broken'
    upstream.on({ path: /\/library\/broken\// }, status(500))
    for (const method of ['HEAD', 'GET', 'GET', 'HEAD', 'GET', 'GET'])
      expect((await mirror.get(`${broken}/${what}`, { method })).status).toBeGreaterThanOrEqual(502)
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    for (const digest of image.blobs.keys()) expectContent(await mirror.get(`${app}/blobs/${digest}`), digest)
  })

  test.each(askedFor)('when a %s answers 500, nor the other content of the repository', async (_, what) => {
    const { upstream, mirror, image } = await startScene()
    upstream.push('library/app', 'v2', image)
    const path = what.includes('v1') ? `${app}/manifests/v1` : `${app}/${what}`
    upstream.on({ path }, status(500))
    for (let ask = 0; ask < 3; ask++) expect((await mirror.get(path)).status).toBeGreaterThanOrEqual(502)
    expectContent(await mirror.get(`${app}/manifests/v2`), image.digest)
    for (const digest of image.blobs.keys()) expectContent(await mirror.get(`${app}/blobs/${digest}`), digest)
  })

  test('when it does not respond at all', async () => {
    const { upstream, mirror, image } = await startScene({ cache: { timeouts: { headers: 100 } } })
    upstream.on({ path: /\/library\/broken\// }, hang)
    for (let ask = 0; ask < 3; ask++) expectError(await mirror.get('/v2/library/broken/manifests/v1'), [503, 504])
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
  })

  test('when its token requests fail', async () => {
    const { upstream, mirror, image } = await startScene({ auth: { scheme: 'bearer' } })
    upstream.on({ path: /^\/token.*broken/ }, status(500))
    for (let ask = 0; ask < 3; ask++) expectError(await mirror.get('/v2/library/broken/manifests/v1'), [502, 503])
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
  })

  test('when its layers are prefetched', async () => {
    const image = makeImage({ layers: Array.from({ length: 8 }, (_, at) => noise(40_000, at)) })
    const { upstream, mirror } = await startScene({ image })
    upstream.push('library/other', 'v1', makeImage({ seed: 5 }))
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    upstream.on({ path: /\/library\/app\/blobs\// }, status(500))
    const first = image.layers[0]!
    expect((await mirror.get(`${app}/blobs/${first}`)).status).toBeGreaterThanOrEqual(502)
    await mirror.get(`${app}/blobs/${first}`)
    expectContent(await mirror.get('/v2/library/other/manifests/v1'), makeImage({ seed: 5 }).digest)
  })

  test('while a client repeats its requests', async () => {
    const { upstream, mirror, image } = await startScene()
    upstream.on({ path: /\/library\/broken\// }, status(500))
    for (let pull = 0; pull < 6; pull++) {
      await mirror.get('/v2/library/broken/manifests/v1', { method: 'HEAD' })
      upstream.push(`library/good-${pull}`, 'v1', image)
      expectContent(await mirror.get(`/v2/library/good-${pull}/manifests/v1`), image.digest)
    }
  })
})

describe('a slow revalidation of a tag', () => {
  test('is answered from the cache, and continues in the background', async () => {
    const { upstream, mirror, image } = await startScene({
      cache: { tagFreshness: 200, timeouts: { revalidate: 150 } },
    })
    await mirror.get(`${app}/manifests/v1`)
    const changed = makeImage({ seed: 2 })
    upstream.push('library/app', 'v1', changed)
    upstream.on(anyManifestHead, late(500))
    await sleep(250)
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    await expect.poll(() => upstream.count(anyManifest)).toBe(2)
    await upstream.stop()
    await expect
      .poll(async () => (await mirror.get(`${app}/manifests/v1`)).headers['docker-content-digest'])
      .toBe(changed.digest)
  })
})
