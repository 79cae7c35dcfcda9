import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { startCdn } from '../support/cdn.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { cutAt, redirect, times } from '../support/faults.ts'
import { send } from '../support/faulty-server.ts'
import { temporaryHome } from '../support/mirror.ts'
import { app, layerSize, startScene, type Scene } from '../support/scene.ts'
import { anyBlob } from '../support/upstream.ts'

/** Starts a scene whose upstream needs a password, which the mirror has. */
async function startPrivateScene(scheme: 'basic' | 'bearer'): Promise<Scene> {
  const file = join(await temporaryHome(), 'password')
  await writeFile(file, 'open-sesame', { mode: 0o600 })
  return startScene({
    auth: { scheme, users: { puller: 'open-sesame' }, private: ['library/app'] },
    upstream: { credentials: { from: 'password-file', username: 'puller', passwordFile: file } },
  })
}

describe('a blob behind a redirect', () => {
  test.each(['basic', 'bearer'] as const)(
    'is fetched from its storage without the %s Authorization',
    async (scheme) => {
      const { upstream, mirror, layer, layerBytes } = await startPrivateScene(scheme)
      const cdn = await startCdn()
      upstream.on(
        anyBlob,
        redirect(() => cdn.sign(layerBytes)),
      )
      expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
      expect(upstream.requests.at(-1)!.headers.authorization).toMatch(scheme === 'basic' ? /^Basic / : /^Bearer /)
      expect(cdn.requests.map(({ headers }) => headers.authorization)).toEqual([undefined])
    },
  )

  test('is fetched from a storage with another name on the same machine', async () => {
    const { upstream, mirror, layer, layerBytes } = await startPrivateScene('basic')
    const cdn = await startCdn()
    upstream.on(
      anyBlob,
      redirect(() => cdn.sign(layerBytes).replace('127.0.0.1', 'localhost')),
    )
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expect(cdn.requests.map(({ headers }) => headers.authorization)).toEqual([undefined])
  })

  test.each(['end', 'reset'] as const)(
    'that breaks (%s) after its URL has expired is resumed with a new URL from the registry',
    async (how) => {
      const { upstream, mirror, layer, layerBytes } = await startScene()
      const cdn = await startCdn()
      upstream.on(
        anyBlob,
        redirect(() => cdn.sign(layerBytes, { uses: 1 })),
      )
      cdn.on({}, times(1, cutAt(layerSize / 2, how)))
      expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
      expect(upstream.count(anyBlob)).toBe(2)
      expect(cdn.requests.map(({ headers }) => headers.range)).toEqual([undefined, `bytes=${layerSize / 2}-`])
      expect(new Set(cdn.requests.map(({ path }) => path)).size).toBe(2)
    },
  )

  test('is fetched with the Authorization when the redirect stays on the registry', async () => {
    const { upstream, mirror, layer } = await startPrivateScene('basic')
    const again = redirect(`${app}/blobs/${layer}?again`)
    upstream.on(anyBlob, (exchange) =>
      exchange.request.url!.endsWith('?again') ? send(exchange.response, exchange.reply) : again(exchange),
    )
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expect(upstream.requests.at(-1)).toMatchObject({
      path: `${app}/blobs/${layer}?again`,
      headers: { authorization: expect.stringMatching(/^Basic /) },
    })
  })
})

/** Starts a chain of redirects in which hop number `last` answers. */
async function startChain(last: number): Promise<Scene> {
  const scene = await startScene()
  const { upstream, layer } = scene
  upstream.on({ method: 'GET', path: /\/blobs\// }, (exchange) => {
    const hop = Number(new URL(exchange.request.url!, upstream.url).searchParams.get('hop') ?? 0)
    if (hop < last) return redirect(`${app}/blobs/${layer}?hop=${hop + 1}`)(exchange)
    exchange.response.writeHead(200, { 'content-length': String(exchange.reply.body!.length) }).end(exchange.reply.body)
  })
  return scene
}

describe('a chain of redirects', () => {
  test('of five hops is followed', async () => {
    const { mirror, layer } = await startChain(5)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
  })

  test('of six hops is refused', async () => {
    const { mirror, layer } = await startChain(6)
    expectError(await mirror.get(`${app}/blobs/${layer}`), 502)
  })
})

test.each([
  ['the metadata address of clouds', 'http://169.254.169.254/latest/meta-data/'],
  ['that address in IPv6 clothing', 'http://[::ffff:169.254.169.254]/'],
  ['a file', 'file:///etc/passwd'],
  ['no URL', 'http://['],
])('a redirect to %s is refused', async (_, target) => {
  const { upstream, mirror, layer } = await startScene()
  upstream.on(anyBlob, redirect(target))
  const answer = await mirror.get(`${app}/blobs/${layer}`)
  expectError(answer, 502)
  expect((await mirror.status()).storage.blobs).toBe(0)
})
