import { describe, expect, test } from 'vitest'
import { expectContent } from '../support/expect-content.ts'
import { hang, status } from '../support/faults.ts'
import { startTestMirror } from '../support/mirror.ts'
import { app, startScene, type SceneOptions } from '../support/scene.ts'
import { startUpstream, type TestUpstream } from '../support/upstream.ts'
import { makeImage } from '../support/images.ts'

const time = String.raw`(?:\d{4}-\d\d-\d\d )?\d\d:\d\d UTC(?:[+-]\d\d:\d\d)?`
const served = `served tag app:v1 as of ${time}`

/** Caches the tag, breaks the upstream, and returns the text of the warning of the next answer. */
async function warningOf(breakIt: (upstream: TestUpstream) => unknown, options?: SceneOptions): Promise<string> {
  const { upstream, mirror, image } = await startScene(options)
  const first = await mirror.get(`${app}/manifests/v1`)
  expect(first.headers['warning']).toBeUndefined()
  await breakIt(upstream)
  const answer = await mirror.get(`${app}/manifests/v1`)
  expectContent(answer, image.digest)
  const [, text] = /^299 - "(.+)"$/.exec(answer.headers['warning'] ?? '') ?? []
  return text!
}

const limited = status(429, { 'retry-after': '600' })
/** Waits for the retries of a revalidation. */
const patient = { cache: { timeouts: { revalidate: 10_000 } } }
const long = 'Ä "long"\t\\ message '.repeat(40)

describe('the answer to a client has a warning', () => {
  test('when the upstream limits the requests: until when, and how old the tag is', async () => {
    expect(await warningOf((upstream) => upstream.on({}, limited))).toMatch(
      new RegExp(`^docker\\.io is limiting this address until ${time}; ${served}$`),
    )
  })

  test('when the upstream limits the requests for longer than the mirror waits: the announced end', async () => {
    const text = await warningOf((upstream) => upstream.on({}, status(429, { 'retry-after': '7200' })))
    expect(text).toMatch(new RegExp(`^docker\\.io is limiting this address until ${time}; ${served}$`))
    const [, hour, minute] = / until (?:\S+ )?(\d\d):(\d\d) /.exec(text)!
    const end = new Date(Date.now() + 7_200_000)
    const minutes = Number(hour) * 60 + Number(minute) - end.getHours() * 60 - end.getMinutes()
    // The minute may have ended meanwhile.
    expect([0, -1, 1439]).toContain(minutes)
  })

  test('when the upstream limits the requests without an end: when the upstream is asked again', async () => {
    expect(await warningOf((upstream) => upstream.on({}, status(429)))).toMatch(
      new RegExp(`^docker\\.io is limiting this address \\(asked again at ${time}\\); ${served}$`),
    )
  })

  test('when the upstream is down: its failure', async () => {
    expect(await warningOf((upstream) => upstream.stop(), patient)).toMatch(
      new RegExp(`^docker\\.io .*refused.*; ${served}$`),
    )
  })

  test('when the upstream hangs: how long the mirror waited', async () => {
    expect(await warningOf((upstream) => upstream.on({}, hang))).toMatch(
      new RegExp(`^docker\\.io did not answer within 500 ms; ${served}$`),
    )
  })

  test('when the circuit is open: the earlier failure, and when the upstream is asked again', async () => {
    const { upstream, mirror } = await startScene(patient)
    await mirror.get(`${app}/manifests/v1`)
    await upstream.stop()
    let text: string | undefined = ''
    for (let asked = 0; asked < 6; asked++)
      text = (await mirror.get(`${app}/manifests/v1`)).headers['warning'] as string
    expect(text).toMatch(new RegExp(`^299 - "docker\\.io .*refused.* \\(asked again at ${time}\\); ${served}"$`))
  })

  test.each([401, 403, 404])('with stale: always, when the upstream refuses (%i)', async (code) => {
    expect(
      await warningOf((upstream) => upstream.on({}, status(code)), {
        cache: { stale: 'always' },
      }),
    ).toMatch(new RegExp(`^docker\\.io .*; ${served}$`))
  })

  test('also while the cached tag counts as fresh after the failure, and no longer when the upstream answers', async () => {
    const { upstream, mirror } = await startScene({ cache: { tagFreshness: 60_000 } })
    await mirror.get(`${app}/manifests/v1`)
    upstream.on({}, status(418))
    const noCache = { headers: { 'cache-control': 'no-cache' } }
    const warning = async (options = {}) => (await mirror.get(`${app}/manifests/v1`, options)).headers['warning']
    expect(await warning(noCache)).toMatch(/docker\.io answered 418/)
    expect(await warning()).toMatch(/docker\.io answered 418/)
    upstream.heal()
    expect(await warning(noCache)).toBeUndefined()
    expect(await warning()).toBeUndefined()
  })

  test('in offline mode, also after a restart', async () => {
    const { upstream, mirror, image } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    await mirror.close()
    const offline = await startTestMirror({
      home: mirror.home,
      upstreams: { 'docker.io': upstream.url },
      cache: { offline: true },
    })
    const answer = await offline.get(`${app}/manifests/v1`)
    expectContent(answer, image.digest)
    expect(answer.headers['cache-status']).toBe('mirror; hit')
    expect(answer.headers['warning']).toMatch(new RegExp(`^299 - "the mirror is offline; ${served}"$`))
    expect((await offline.get(`${app}/manifests/${image.digest}`)).headers['warning']).toBeUndefined()
  })

  test('for a list of tags', async () => {
    const { upstream, mirror } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    upstream.on({}, limited)
    expect((await mirror.get(`${app}/tags/list`)).headers['warning']).toMatch(
      new RegExp(`^299 - "docker\\.io is limiting this address until ${time}; served the cached list of tags"$`),
    )
  })

  test('when the disk does not take the image', async () => {
    const { mirror, image } = await startScene({ cache: { minFree: 2 ** 52 } })
    const answer = await mirror.get(`${app}/manifests/v1`)
    expectContent(answer, image.digest)
    expect(answer.headers['warning']).toBe('299 - "the mirror does not keep this image, because its disk is full"')
  })

  test('of at most 300 printable ASCII characters, whatever the upstream and the client sent', async () => {
    const name = `org/${'n'.repeat(200)}`
    const tag = 't'.repeat(120)
    const upstream = await startUpstream({ images: { [name]: { [tag]: makeImage() } } })
    const mirror = await startTestMirror({ upstreams: { 'docker.io': upstream.url }, cache: { stale: 'always' } })
    await mirror.get(`/v2/${name}/manifests/${tag}`)
    const body = JSON.stringify({ errors: [{ code: 'DENIED', message: long }] })
    upstream.on({}, status(403, { 'content-type': 'application/json' }, body))
    const { warning } = (await mirror.get(`/v2/${name}/manifests/${tag}`)).headers
    expect(warning).toMatch(/^299 - "[\x20-\x7e]{50,300}"$/)
    expect(warning).toMatch(/served tag org\/nnn.*ttt as of/)
  })
})

test('a fresh, a confirmed and a fetched tag have no warning', async () => {
  const { mirror } = await startScene()
  for (let asked = 0; asked < 3; asked++)
    expect((await mirror.get(`${app}/manifests/v1`)).headers['warning']).toBeUndefined()
})
