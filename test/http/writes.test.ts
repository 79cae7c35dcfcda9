import { describe, expect, test } from 'vitest'
import { expectContent, expectError } from '../support/expect-content.ts'
import { makeImage } from '../support/images.ts'
import { app, startScene } from '../support/scene.ts'

const { digest, bytes } = makeImage({ seed: 9 })

describe('the cache is read-only', () => {
  test.each([
    ['POST', `${app}/blobs/uploads/`],
    ['POST', `${app}/blobs/uploads/?mount=${digest}&from=library/other`],
    ['PATCH', `${app}/blobs/uploads/some-id`],
    ['PUT', `${app}/blobs/uploads/some-id?digest=${digest}`],
    ['PUT', `${app}/manifests/v1`],
    ['DELETE', `${app}/manifests/v1`],
    ['DELETE', `${app}/manifests/${digest}`],
    ['DELETE', `${app}/blobs/${digest}`],
    ['POST', '/v2/'],
    ['OPTIONS', '/v2/'],
    ['TRACE', '/v2/'],
  ])('so that %s %s is a 405', async (method, path) => {
    const { upstream, mirror, image } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    const { length } = upstream.requests
    const body = method === 'PUT' || method === 'PATCH' ? { body: bytes } : {}
    const answer = await mirror.get(path, { method, ...body })
    expectError(answer, 405, 'UNSUPPORTED')
    expect(answer.headers['access-control-allow-origin']).toBeUndefined()
    expect(upstream.requests.length).toBe(length)
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
  })

  test('so that GET of an upload is a 405 too', async () => {
    const { mirror } = await startScene()
    expectError(await mirror.get(`${app}/blobs/uploads/some-id`), 405, 'UNSUPPORTED')
  })

  test('so that an upload of many megabytes is refused before its end', async () => {
    const { mirror } = await startScene()
    const answer = await mirror
      .get(`${app}/blobs/uploads/some-id`, { method: 'PATCH', body: Buffer.alloc(20_000_000) })
      .catch((error: NodeJS.ErrnoException) => error.code)
    if (typeof answer === 'object') expectError(answer, 405, 'UNSUPPORTED')
    else expect(['ECONNRESET', 'EPIPE']).toContain(answer)
    expect((await mirror.get('/v2/')).status).toBe(200)
  })
})
