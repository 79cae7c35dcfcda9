import { existsSync } from 'node:fs'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { Digest } from '../../src/oci/reference.ts'
import { helperName, makeCredentialHelper, useCredentialHelper } from '../support/credential-helper.ts'
import { expectContent } from '../support/expect-content.ts'
import { makeImage } from '../support/images.ts'
import { startTestMirror, temporaryHome, type TestMirrorOptions } from '../support/mirror.ts'
import { noise } from '../support/noise.ts'
import { startUpstream, type TestUpstream } from '../support/upstream.ts'

const dockerConfig = { from: 'docker-config' } as const
const image = makeImage({ layers: [noise(300_000), noise(200_000)] })
const [layer, second] = image.layers as [Digest, Digest]
const app = '/v2/library/app'

/** Sets up a credential helper that answers only when the test lets it, and Docker's config.json that names it. */
async function setUpHelper({ inUse = true } = {}) {
  const folder = await temporaryHome()
  const [started, go] = [join(folder, 'started'), join(folder, 'go')]
  const helper = await makeCredentialHelper(`echo >> ${started}
while [ ! -e ${go} ]; do sleep 0.1; done
echo '{"Username":"ann","Secret":"open-sesame"}'`)
  const use = () => helper.configure({ credsStore: helperName })
  if (inUse) await use()
  useCredentialHelper(helper)
  const answer = () => writeFile(go, '')
  onTestFinished(answer)
  return { use, answer, wasStarted: () => existsSync(started) }
}

/** Returns the home of a mirror that has pulled the image anonymously. */
async function pulledHome(upstream: TestUpstream): Promise<string> {
  const mirror = await startTestMirror({ upstreams: { 'docker.io': upstream.url } })
  for (const path of [`manifests/v1`, `blobs/${layer}`, `blobs/${second}`]) await mirror.get(`${app}/${path}`)
  await mirror.untilStored(3)
  await mirror.close()
  return mirror.home
}

const startUp = (upstream: TestUpstream, home: string, cache: TestMirrorOptions['cache'] = {}) =>
  startTestMirror({ home, upstreams: { 'docker.io': { url: upstream.url, credentials: dockerConfig } }, cache })

describe.skipIf(process.platform === 'win32')('public cached content', () => {
  test.each([{ offline: true }, { offline: false }])(
    'is served without starting a credential helper: by digest, in ranges, by HEAD (%j)',
    async (cache) => {
      const upstream = await startUpstream({ images: { 'library/app': { v1: image } } })
      const home = await pulledHome(upstream)
      const helper = await setUpHelper()
      const mirror = await startUp(upstream, home, cache)
      const asked = upstream.requests.length
      expectContent(await mirror.get(`${app}/manifests/${image.digest}`), image.digest)
      expect((await mirror.get(`${app}/manifests/${image.digest}`, { method: 'HEAD' })).status).toBe(200)
      expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
      expect((await mirror.get(`${app}/blobs/${layer}`, { method: 'HEAD' })).status).toBe(200)
      const part = await mirror.get(`${app}/blobs/${second}`, { headers: { range: 'bytes=10-19' } })
      expect([part.status, part.body.length]).toEqual([206, 10])
      expect(helper.wasStarted()).toBe(false)
      expect(upstream.requests.length).toBe(asked)
    },
  )

  test('is served by its tag, and listed, without starting a credential helper, when the mirror is offline', async () => {
    const upstream = await startUpstream({ images: { 'library/app': { v1: image } } })
    const home = await pulledHome(upstream)
    const helper = await setUpHelper()
    const mirror = await startUp(upstream, home, { offline: true })
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expect((await mirror.get(`${app}/manifests/v1`, { method: 'HEAD' })).status).toBe(200)
    expect(JSON.parse((await mirror.get(`${app}/tags/list`)).body.toString())).toMatchObject({ tags: ['v1'] })
    expect(helper.wasStarted()).toBe(false)
  })

  test('is served by a fresh tag without starting a credential helper', async () => {
    const upstream = await startUpstream({ images: { 'library/app': { v1: image } } })
    const helper = await setUpHelper({ inUse: false })
    const mirror = await startUp(upstream, await temporaryHome(), { tagFreshness: 600_000 })
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    await helper.use()
    // Waits until the mirror checks the file again.
    await sleep(1100)
    const again = await mirror.get(`${app}/manifests/v1`)
    expectContent(again, image.digest)
    expect(again.headers['cache-status']).toBe('mirror; hit')
    expect(helper.wasStarted()).toBe(false)
  })

  test('is served stale by a tag that needs revalidation, before the credential helper responds', async () => {
    const upstream = await startUpstream({ images: { 'library/app': { v1: image } } })
    const home = await pulledHome(upstream)
    const helper = await setUpHelper()
    const mirror = await startUp(upstream, home)
    const answer = await mirror.get(`${app}/manifests/v1`)
    expectContent(answer, image.digest)
    expect(answer.headers['cache-status']).toContain('stale-on-error')
    await expect.poll(() => helper.wasStarted()).toBe(true)
    await helper.answer()
    await expect
      .poll(async () => (await mirror.get(`${app}/manifests/v1`)).headers['cache-status'])
      .toContain('fwd=stale')
  })
})

test.skipIf(process.platform === 'win32')(
  'uncached content, and content of a credential, waits for the credential helper',
  async () => {
    const auth = { scheme: 'basic', users: { ann: 'open-sesame' } } as const
    const upstream = await startUpstream({ images: { 'library/app': { v1: image } }, auth })
    const helper = await setUpHelper()
    await helper.answer()
    const home = await temporaryHome()
    const first = await startUp(upstream, home)
    expectContent(await first.get(`${app}/manifests/v1`), image.digest)
    expect(helper.wasStarted()).toBe(true)
    await first.close()

    const later = await setUpHelper()
    const mirror = await startUp(upstream, home, { offline: true })
    const waiting = mirror.get(`${app}/manifests/v1`)
    await expect.poll(() => later.wasStarted()).toBe(true)
    await later.answer()
    expectContent(await waiting, image.digest)
  },
)
