import { describe, expect, test } from 'vitest'
import { getMachineNames, mirrorHostNames } from '../../src/lib/network.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { get } from '../support/get.ts'
import { rawHttp } from '../support/raw-http.ts'
import { startTestRegistry } from '../support/registry.ts'
import { app, startScene } from '../support/scene.ts'

describe('the Host header', () => {
  test.each([
    'localhost',
    'localhost:5055',
    'LOCALHOST',
    '127.0.0.1',
    '127.0.0.1:5055',
    '[::1]:5055',
    '[0:0:0:0:0:0:0:1]:5055',
    '[::ffff:127.0.0.1]:5055',
    'mirror.corp.example',
    'MIRROR.SVC.:5055',
    ...[...mirrorHostNames, ...getMachineNames()].map((name) => `${name}:5055`),
  ])('%s is accepted', async (host) => {
    const { mirror, image } = await startScene({ allowedHosts: ['mirror.corp.example'] })
    expectContent(await mirror.get(`${app}/manifests/v1`, { headers: { host } }), image.digest)
  })

  test.each([
    'evil.example',
    'evil.example:5055',
    '169.254.169.254',
    'localhost.evil.example',
    '127.0.0.1.nip.example',
    'mirror.svc.evil.example',
    'evil.internal',
    '10.1.2.3',
  ])('%s is refused, counted and named in the error', async (host) => {
    const { upstream, mirror } = await startScene()
    expectError(await mirror.get(`${app}/manifests/v1`, { headers: { host } }), 421)
    await mirror.get('/v2/', { headers: { host } })
    expect(upstream.requests).toEqual([])
    expect((await mirror.status()).refusedHosts).toEqual({ [host.replace(/:\d+$/, '')]: 2 })
  })

  test('is a 400 when it is given twice, even when both values are accepted names', async () => {
    const { mirror } = await startScene()
    const request = 'GET /v2/ HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n\r\n'
    expect((await rawHttp(mirror.url, request)).statuses).toEqual([400])
  })

  test('is a 400 when it is missing', async () => {
    const { mirror } = await startScene()
    expect((await rawHttp(mirror.url, 'GET /v2/ HTTP/1.1\r\nConnection: close\r\n\r\n')).statuses).toEqual([400])
  })

  test('is checked by the registry and the admin listener too', async () => {
    const foreign = { headers: { host: 'evil.example' } }
    const { mirror } = await startScene()
    for (const path of ['/healthz', '/api/status', '/metrics'])
      expectError(await get(mirror.adminUrl, path, foreign), 421)
    const registry = await startTestRegistry()
    for (const [method, path] of [
      ['GET', '/v2/'],
      ['GET', '/v2/_catalog'],
      ['POST', '/v2/app/blobs/uploads/'],
    ] as const)
      expectError(await registry.ask(method, path, foreign), 421)
  })
})

test('the number of remembered foreign names is bounded', async () => {
  const { mirror } = await startScene()
  await Promise.all(
    Array.from({ length: 200 }, (_, at) => mirror.get('/v2/', { headers: { host: `h${at}.evil.example` } })),
  )
  expect(Object.keys((await mirror.status()).refusedHosts).length).toBeLessThanOrEqual(100)
})
