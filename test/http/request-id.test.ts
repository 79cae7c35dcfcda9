import { describe, expect, test } from 'vitest'
import { createRequestId } from '../../src/server/request-id.ts'
import { get } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { startTestMirror } from '../support/mirror.ts'
import { parseAnswers } from '../support/parse-answers.ts'
import { rawHttp } from '../support/raw-http.ts'
import { startTestRegistry } from '../support/registry.ts'
import { app, startScene } from '../support/scene.ts'

const idForm = /^[a-z0-9]{11,16}$/

/** Returns the id in each line of a log about a request. */
function getLoggedIds(log: readonly string[]): unknown[] {
  return log
    .filter((line) => line.split(' ')[1] === 'request')
    .map((line) => (JSON.parse(line.slice(line.indexOf('{'))) as { id: unknown }).id)
}

describe('X-Request-Id', () => {
  test('is in every answer of the cache, another one each time, and in the log line of the request', async () => {
    const { mirror, layer } = await startScene()
    const paths = [
      '/v2/',
      `${app}/manifests/v1`,
      `${app}/blobs/${layer}`,
      `${app}/blobs/${layer}`,
      `${app}/tags/list`,
      `${app}/manifests/absent`,
      '/nothing/here',
    ]
    const ids: unknown[] = []
    for (const path of paths) ids.push((await mirror.get(path)).headers['x-request-id'])
    ids.push((await mirror.get(`${app}/manifests/v1`, { method: 'HEAD' })).headers['x-request-id'])
    ids.push((await mirror.get(`${app}/manifests/v1`, { headers: { host: 'evil.example' } })).headers['x-request-id'])
    for (const id of ids) expect(id).toMatch(idForm)
    expect(new Set(ids).size).toBe(ids.length)
    await expect.poll(() => getLoggedIds(mirror.log)).toEqual(ids)
  })

  test('is in every answer of the registry', async () => {
    const registry = await startTestRegistry()
    const ids = [(await registry.push('app', 'v1', makeImage())).headers['x-request-id']]
    ids.push((await registry.get('/v2/app/manifests/v1')).headers['x-request-id'])
    ids.push((await registry.get('/v2/app/manifests/absent')).headers['x-request-id'])
    for (const id of ids) expect(id).toMatch(idForm)
    expect(getLoggedIds(registry.log)).toEqual(expect.arrayContaining(ids))
  })

  test('is never the one that a client sends', async () => {
    const { mirror } = await startScene()
    const sent = { 'x-request-id': 'abcdefghijkl' }
    const answer = await mirror.get(`${app}/manifests/v1`, { headers: sent })
    expect(answer.headers['x-request-id']).toMatch(idForm)
    expect(answer.headers['x-request-id']).not.toBe(sent['x-request-id'])
  })

  test('belongs to the answers of a pipelined connection in their order', async () => {
    const { mirror } = await startScene({ cache: { tagFreshness: 60_000 } })
    const paths = [`${app}/manifests/v1`, `${app}/manifests/absent`, `${app}/tags/list`]
    const heads = paths.map((path, at) => {
      const end = at === paths.length - 1 ? 'Connection: close\r\n' : ''
      return `GET ${path} HTTP/1.1\r\nHost: localhost\r\n${end}\r\n`
    })
    const answers = parseAnswers((await rawHttp(mirror.url, heads.join(''), 10_000)).text)
    expect(answers.map(({ status }) => status)).toEqual([200, 404, 200])
    await expect.poll(() => getLoggedIds(mirror.log)).toEqual(answers.map(({ headers }) => headers['x-request-id']))
  })

  test.each([
    ['what is no HTTP', 'GET\r\n\r\n', 400],
    ['no Host', 'GET /v2/ HTTP/1.1\r\n\r\n', 400],
    [
      'an expectation that nobody meets',
      'GET /v2/ HTTP/1.1\r\nHost: localhost\r\nExpect: x\r\nConnection: close\r\n\r\n',
      417,
    ],
    ['a head that is too large', `GET /v2/ HTTP/1.1\r\nHost: localhost\r\nX: ${'a'.repeat(20_000)}\r\n\r\n`, 431],
  ])('is in the answer to %s', async (_, bytes, code) => {
    const mirror = await startTestMirror()
    const [answer] = parseAnswers((await rawHttp(mirror.url, bytes, 10_000)).text)
    expect(answer!.status).toBe(code)
    expect(answer!.headers['x-request-id']).toMatch(idForm)
  })

  test('is not in an answer of the admin listener, whose requests are not in the log', async () => {
    const mirror = await startTestMirror()
    expect((await get(mirror.adminUrl, '/api/status')).headers).not.toHaveProperty('x-request-id')
  })
})

test('a million ids are different and short', () => {
  const ids = new Set<string>()
  for (let at = 0; at < 1_000_000; at++) ids.add(createRequestId())
  expect(ids.size).toBe(1_000_000)
  for (const id of [...ids].slice(-10)) expect(id).toMatch(idForm)
  const begun = performance.now()
  for (let at = 0; at < 1_000_000; at++) createRequestId()
  console.log(`an id takes ${Math.round(performance.now() - begun)} ns`)
})
