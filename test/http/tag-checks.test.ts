import { describe, expect, test } from 'vitest'
import type { ImageReport, TagCheckReport } from '../../src/admin/api.ts'
import { parse, startSession } from '../support/dashboard.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { status as answerStatus } from '../support/faults.ts'
import { get } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import type { TestMirror } from '../support/mirror.ts'
import { noise } from '../support/noise.ts'
import { app, startScene } from '../support/scene.ts'

const image = 'docker.io/library/app:v1'

async function check(mirror: TestMirror, name = image): Promise<TagCheckReport> {
  return parse(await mirror.post('/api/cache/check', { image: name })) as TagCheckReport
}

async function list(mirror: TestMirror): Promise<ImageReport[]> {
  return parse(await get(mirror.adminUrl, '/api/cache')) as ImageReport[]
}

describe('a check of a tag', () => {
  test('sends one HEAD, also for a fresh tag, and confirms it', async () => {
    const { mirror, upstream, image: current } = await startScene({ cache: { tagFreshness: 3_600_000 } })
    await mirror.get(`${app}/manifests/v1`)
    const before = upstream.requests.length
    const report = await check(mirror)
    expect(report).toEqual({ image, digest: current.digest, changed: false, checkedAt: expect.any(String) })
    expect(upstream.requests.slice(before).map(({ method }) => method)).toEqual(['HEAD'])
    const [listed] = await list(mirror)
    expect(Date.parse(listed!.checkedAt!)).toBeGreaterThanOrEqual(Date.parse(report.checkedAt))
    expect(listed).not.toHaveProperty('outdated')
  })

  test('names a newer digest, which the list shows until a pull fetches it', async () => {
    const { mirror, upstream, image: old } = await startScene({ cache: { tagFreshness: 50 } })
    await mirror.get(`${app}/manifests/v1`)
    const next = makeImage({ layers: [noise(1000)] })
    upstream.push('library/app', 'v1', next)
    const report = await check(mirror)
    expect([report.changed, report.digest]).toEqual([true, next.digest])
    expect(await list(mirror)).toEqual([
      expect.objectContaining({
        name: image,
        digest: old.digest,
        outdated: { digest: next.digest, at: report.checkedAt },
      }),
    ])
    await expect
      .poll(async () => (await mirror.get(`${app}/manifests/v1`)).headers['docker-content-digest'])
      .toBe(next.digest)
    const listed = (await list(mirror)).find(({ name }) => name === image)!
    expect(listed.digest).toBe(next.digest)
    expect(listed).not.toHaveProperty('outdated')
    expect(Date.parse(listed.movedAt!)).toBeGreaterThanOrEqual(Date.parse(report.checkedAt))
  })

  test('reports the failure of the upstream, and changes nothing', async () => {
    const { mirror, upstream, image: current } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    for (const code of [404, 401, 500]) {
      upstream.heal()
      upstream.on({ path: /manifests/ }, answerStatus(code))
      const report = await check(mirror)
      expect([code, report]).toEqual([
        code,
        { image, digest: current.digest, changed: false, checkedAt: expect.any(String), error: expect.any(String) },
      ])
    }
    upstream.heal()
    expectContent(await mirror.get(`${app}/manifests/${current.digest}`), current.digest)
    expect((await list(mirror)).map(({ name }) => name)).toEqual([image])
  })

  test('is not sent while the mirror is offline', async () => {
    const { mirror, upstream } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    await mirror.post('/api/offline', { offline: true })
    const before = upstream.requests.length
    expect((await check(mirror)).error).toContain('offline')
    expect(upstream.requests.length).toBe(before)
  })

  test('is refused for what is not cached, and for a name without a tag', async () => {
    const { mirror, upstream } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    const before = upstream.requests.length
    for (const [name, code] of [
      ['docker.io/library/app:v2', 404],
      ['docker.io/library/other:v1', 404],
      ['evil.example/app:v1', 404],
      ['docker.io/library/app', 400],
      [`docker.io/library/app@sha256:${'0'.repeat(64)}`, 400],
      ['', 400],
      [7, 400],
    ] as const)
      expectError(await mirror.post('/api/cache/check', { image: name }), code)
    expect(upstream.requests.length).toBe(before)
  })

  test('is shared by all who ask at the same time, and open to a session', async () => {
    const { mirror, upstream } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    const { headers } = await startSession(mirror)
    const before = upstream.requests.length
    const body = JSON.stringify({ image })
    const answers = await Promise.all(
      Array.from({ length: 5 }, () => get(mirror.adminUrl, '/api/cache/check', { method: 'POST', headers, body })),
    )
    expect(answers.map(({ status }) => status)).toEqual([200, 200, 200, 200, 200])
    expect(upstream.requests.length - before).toBeLessThan(5)
  })
})

test('the list of images numbers them in the order of eviction', async () => {
  const { mirror, upstream } = await startScene()
  for (const [tag, size] of [
    ['v2', 1000],
    ['v3', 2000],
  ] as const)
    upstream.push('library/app', tag, makeImage({ layers: [noise(size)] }))
  for (const tag of ['v3', 'v1', 'v2']) {
    await mirror.get(`${app}/manifests/${tag}`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  const ranks = (await list(mirror)).map(({ name, evictionRank }) => [name.split(':')[1], evictionRank])
  expect(ranks).toEqual([
    ['v1', 2],
    ['v2', 3],
    ['v3', 1],
  ])
})
