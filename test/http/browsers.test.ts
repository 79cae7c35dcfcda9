import { describe, expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { headers as withHeaders, status } from '../support/faults.ts'
import { send } from '../support/faulty-server.ts'
import { get } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { startTestRegistry } from '../support/registry.ts'
import { app, startScene } from '../support/scene.ts'
import { anyBlob } from '../support/upstream.ts'

describe('a request that a browser makes', () => {
  type Asked = readonly [who: string, headers: Record<string, string>, registries: boolean, admin: boolean]
  const pages: Asked[] = [
    ['of another site', { 'sec-fetch-site': 'cross-site', 'sec-fetch-mode': 'no-cors' }, false, false],
    ['that follows a link', { 'sec-fetch-site': 'cross-site', 'sec-fetch-mode': 'navigate' }, false, false],
    ['of another port of this machine', { 'sec-fetch-site': 'same-site' }, false, false],
    ['of a site that no version of the standard knows', { 'sec-fetch-site': 'elsewhere' }, false, false],
    ['from another origin', { origin: 'http://localhost:3000' }, false, false],
    ['from a sandbox', { origin: 'null' }, false, false],
    // Applies also to a redirect by a site that the user opened from the address bar.
    ['for the address bar', { 'sec-fetch-site': 'none', 'sec-fetch-mode': 'navigate' }, false, true],
    ['for the address bar, without a mode', { 'sec-fetch-site': 'none' }, false, true],
    ['for a page of the same listener', { 'sec-fetch-site': 'same-origin', origin: 'OWN' }, true, true],
    ['to show a page', { 'sec-fetch-site': 'same-origin', 'sec-fetch-mode': 'navigate' }, false, true],
    ['that names no site, to show a page', { 'sec-fetch-mode': 'navigate' }, false, true],
    ['for a WebSocket', { 'sec-fetch-mode': 'websocket', 'sec-fetch-dest': 'websocket' }, false, true],
    ['for an image', { 'sec-fetch-mode': 'no-cors', 'sec-fetch-dest': 'image' }, false, true],
    ['for a frame', { 'sec-fetch-site': 'same-origin', 'sec-fetch-dest': 'iframe' }, false, true],
    ['for a script', { 'sec-fetch-site': 'same-origin', 'sec-fetch-dest': 'script' }, false, true],
    ['by a script', { 'sec-fetch-site': 'same-origin', 'sec-fetch-dest': 'empty' }, true, true],
    ["no browser: Node's fetch", { 'sec-fetch-mode': 'cors' }, true, true],
    ['no browser', {}, true, true],
  ]

  test.each(pages)(
    '%s (%j) is answered or refused by the rules of its listener',
    async (_, headers, registries, admin) => {
      const { upstream, mirror, image, layer } = await startScene()
      const registry = await startTestRegistry()
      await registry.push('app', 'v1', image)
      const paths: [string, string, boolean][] = [
        [mirror.url, '/v2/', registries],
        [mirror.url, `${app}/manifests/v1`, registries],
        [mirror.url, `${app}/blobs/${layer}`, registries],
        [mirror.url, `${app}/tags/list`, registries],
        [mirror.url, '/v2/_catalog', registries],
        [registry.url, '/v2/app/manifests/v1', registries],
        [registry.url, `/v2/app/blobs/${layer}`, registries],
        [mirror.adminUrl, '/api/status', admin],
        [mirror.adminUrl, '/metrics', admin],
        [mirror.adminUrl, '/healthz', admin],
      ]
      for (const [url, path, isAllowed] of paths)
        for (const method of ['GET', 'HEAD']) {
          const own = headers['origin'] === 'OWN' ? { ...headers, origin: url } : headers
          const answer = await get(url, path, { method, headers: own })
          expect([method, path, answer.status]).toEqual([method, path, isAllowed ? 200 : 403])
          if (!isAllowed && method === 'GET') expectError(answer, 403, 'DENIED')
        }
      if (!registries) expect(upstream.requests).toEqual([])
    },
  )

  test('to navigate to the cache or the registry gets the message that neither has pages for browsers', async () => {
    const { mirror } = await startScene()
    const registry = await startTestRegistry()
    const navigation = { 'sec-fetch-site': 'none', 'sec-fetch-mode': 'navigate', 'sec-fetch-dest': 'document' }
    for (const url of [mirror.url, registry.url]) {
      const answer = await get(url, '/v2/', { headers: navigation })
      expectError(answer, 403, 'DENIED')
      expect(answer.body.toString()).toContain('no pages for browsers')
    }
  })

  test('from the address bar may only read, and one by the fetch of Node may do everything, with the token', async () => {
    const { mirror } = await startScene()
    const change = (headers: Record<string, string>) =>
      get(mirror.adminUrl, '/api/cache/prune', { method: 'POST', headers, body: '{}' })
    expect((await change({ 'sec-fetch-site': 'none' })).status).toBe(403)
    expect((await change({ 'sec-fetch-mode': 'cors' })).status).toBe(401)
    expect((await fetch(`${mirror.url}/v2/`)).status).toBe(200)
  })
})

describe("an upstream's page", () => {
  const page = '<html><script>alert(document.domain)</script></html>'

  test.each([
    ['text/html', undefined],
    ['text/html', 'text/html'],
    ['application/xhtml+xml', 'application/xhtml+xml'],
    ['image/svg+xml', 'application/x.svg+xml'],
    ['application/vnd.x<script>', undefined],
    ['application/vnd.x y', 'application/vnd.x y'],
    ['application/vnd.foo+xml', undefined],
    ['', 'not a type'],
  ])('is not served as a manifest: one sent as %j that calls itself %j has its real type', async (sent, own) => {
    const image = makeImage({ manifest: { mediaType: own, annotations: { a: page } } })
    const { upstream, mirror } = await startScene({ image })
    upstream.on({ path: /\/manifests\// }, withHeaders({ 'content-type': sent }))
    for (const [method, path] of [
      ['HEAD', 'v1'],
      ['GET', 'v1'],
      ['GET', image.digest],
      ['HEAD', 'v1'],
      ['HEAD', image.digest],
    ] as const) {
      const answer = await mirror.get(`${app}/manifests/${path}`, { method })
      expect([answer.status, answer.headers['content-type']]).toEqual([
        200,
        'application/vnd.oci.image.manifest.v1+json',
      ])
      if (method === 'GET') expectContent(answer, image.digest)
    }
  })

  test('in place of a manifest, a list or an error is never sent as a page', async () => {
    const { upstream, mirror, image } = await startScene()
    for (const code of [200, 401, 403, 404, 429, 500]) {
      upstream.heal()
      upstream.on({}, status(code, { 'content-type': 'text/html' }, page))
      for (const path of [`manifests/x${code}`, 'tags/list', `referrers/${image.digest}`]) {
        const { headers, body } = await mirror.get(`${app}/${path}`)
        expect(headers['content-type']).toMatch(/^application\/(?:json|vnd\.oci\.image\.index\.v1\+json)$/)
        expect(body.toString()).not.toContain('<script>')
      }
    }
  })

  test('as a blob is sent as octet-stream, whatever its type', async () => {
    const image = makeImage({ layers: [Buffer.from(page)] })
    const { upstream, mirror, layer } = await startScene({ image })
    upstream.on(anyBlob, withHeaders({ 'content-type': 'text/html' }))
    for (const _ of ['cold', 'warm']) {
      const answer = await mirror.get(`${app}/blobs/${layer}`)
      expectContent(answer, layer)
      expect(answer.headers['content-type']).toBe('application/octet-stream')
    }
  })

  test('with the requested digest is still not a manifest', async () => {
    const { upstream, mirror } = await startScene()
    const path = `${app}/manifests/${computeDigest(Buffer.from(page))}`
    upstream.on({ path }, ({ response }) =>
      send(response, { status: 200, headers: { 'content-type': 'text/html' }, body: Buffer.from(page) }),
    )
    expectError(await mirror.get(path), 502)
  })
})

test.each(['text/html', 'image/svg+xml', 'application/xhtml+xml', 'application/x"y', 'application/', 'json'])(
  'a manifest that is pushed as %s is refused',
  async (type) => {
    const registry = await startTestRegistry()
    const image = makeImage({ manifest: { mediaType: undefined } })
    for (const one of image.blobs.values()) await registry.pushBlob('app', one)
    expectError(
      await registry.pushManifest('app', 'v1', { bytes: image.bytes, mediaType: type }),
      400,
      'MANIFEST_INVALID',
    )
    expect((await registry.get('/v2/app/manifests/v1')).status).toBe(404)
  },
)
