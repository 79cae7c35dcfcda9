import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import type { CredentialsConfig } from '../../src/config/config.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { status } from '../support/faults.ts'
import { send } from '../support/faulty-server.ts'
import { makeImage } from '../support/images.ts'
import { startTestMirror, temporaryHome } from '../support/mirror.ts'
import { app, startScene } from '../support/scene.ts'
import { anyToken, startUpstream } from '../support/upstream.ts'

const users = { puller: 'open-sesame' }

/** Creates the credential of a user whose password is in a file. */
async function passwordFile(password: string, username = 'puller'): Promise<CredentialsConfig> {
  const file = join(await temporaryHome(), 'password')
  await writeFile(file, `${password}\n`, { mode: 0o600 })
  return { from: 'password-file', username, passwordFile: file }
}

describe('the bearer tokens of an upstream', () => {
  test('are requested once for a whole pull, manifests and blobs', async () => {
    const { upstream, mirror, image, layer } = await startScene({ auth: { scheme: 'bearer' } })
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expect(upstream.count(anyToken)).toBe(1)
  })

  test('are requested once for fifty concurrent manifests of one repository', async () => {
    const images = Array.from({ length: 50 }, (_, seed) => makeImage({ layers: [10], seed }))
    const { upstream, mirror } = await startScene({ auth: { scheme: 'bearer' } })
    for (const [at, image] of images.entries()) upstream.push('library/app', `t${at}`, image)
    const answers = await Promise.all(images.map((_, at) => mirror.get(`${app}/manifests/t${at}`)))
    for (const [at, answer] of answers.entries()) expectContent(answer, images[at]!.digest)
    expect(upstream.count(anyToken)).toBe(1)
  })

  test('have the scope of one repository', async () => {
    const { upstream, mirror, image } = await startScene({ auth: { scheme: 'bearer' } })
    upstream.push('library/other', 'v1', makeImage({ seed: 2 }))
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expect((await mirror.get('/v2/library/other/manifests/v1')).status).toBe(200)
    const scopes = upstream.requests
      .filter(({ path }) => path.startsWith('/token'))
      .map(({ path }) => new URL(path, upstream.url).searchParams.getAll('scope'))
    expect(scopes).toEqual([['repository:library/app:pull'], ['repository:library/other:pull']])
  })

  test('are requested again when one is refused before its expiry', async () => {
    const auth = { scheme: 'bearer', expiresIn: 60, livesFor: 300 } as const
    const { upstream, mirror, image, layer } = await startScene({ auth })
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    await sleep(400)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expect(upstream.count(anyToken)).toBe(2)
  })

  test('are used for 60 seconds when they have no expires_in', async () => {
    const { upstream, mirror, image, layer } = await startScene({ auth: { scheme: 'bearer', expiresIn: null } })
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    expect(upstream.count(anyToken)).toBe(1)
  })

  test('cause an outage, not a 404, when their endpoint is down', async () => {
    const { upstream, mirror } = await startScene({ auth: { scheme: 'bearer' } })
    upstream.on(anyToken, status(503))
    expectError(await mirror.get(`${app}/manifests/v1`), [502, 503, 504])
  })
})

describe('credentials', () => {
  test.each(['basic', 'bearer'] as const)('are sent to a %s upstream', async (scheme) => {
    const auth = { scheme, users, private: ['library/app'] }
    const { mirror, image, layer } = await startScene({
      auth,
      upstream: { credentials: await passwordFile('open-sesame') },
    })
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
  })

  test.each(['basic', 'bearer'] as const)(
    'are reported as wrong for a %s upstream, without a fallback to anonymous access',
    async (scheme) => {
      const credentials = await passwordFile('guess')
      const { upstream, mirror } = await startScene({ auth: { scheme, users }, upstream: { credentials } })
      const answer = await mirror.get(`${app}/manifests/v1`)
      expectError(answer, [401, 403])
      expect(answer.headers['www-authenticate']).toBeUndefined()
      const anonymous = upstream.requests.filter(
        ({ path, headers }) => path.startsWith('/token') && headers.authorization === undefined,
      )
      expect(anonymous).toEqual([])
    },
  )

  test.each(['basic', 'bearer'] as const)(
    'give access to a repository that a %s upstream hides from anonymous requests',
    async (scheme) => {
      const { upstream, mirror, image, layer } = await startScene({
        auth: { scheme, users, private: ['library/app'] },
        upstream: { credentials: await passwordFile('open-sesame') },
      })
      upstream.on({ path: /\/(manifests|blobs|tags)\// }, (exchange) =>
        exchange.request.headers.authorization ? send(exchange.response, exchange.reply) : status(404)(exchange),
      )
      expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
      expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
      expect((await mirror.get(`${app}/tags/list`)).status).toBe(200)
      expect(upstream.count({ path: '/v2/' })).toBe(1)
    },
  )

  test('are not requested from the client: a refusal has no challenge, so the client tries the origin', async () => {
    const { mirror } = await startScene({ auth: { scheme: 'bearer', users, private: ['library/app'] } })
    const answer = await mirror.get(`${app}/manifests/v1`)
    expectError(answer, 401, 'UNAUTHORIZED')
    expect(answer.headers['www-authenticate']).toBeUndefined()
  })

  test('of a client are not forwarded', async () => {
    const { upstream, mirror, image } = await startScene({ auth: { scheme: 'bearer' } })
    const headers = { authorization: `Basic ${Buffer.from('client:secret').toString('base64')}`, cookie: 'a=b' }
    expectContent(await mirror.get(`${app}/manifests/v1`, { headers }), image.digest)
    for (const seen of upstream.requests) {
      expect(seen.headers.authorization ?? '').not.toContain(headers.authorization)
      expect(seen.headers.cookie).toBeUndefined()
    }
  })

  test('are not sent to a realm on another host', async () => {
    const elsewhere = await startUpstream({ auth: { scheme: 'bearer', users } })
    const { upstream, mirror } = await startScene({
      auth: { scheme: 'bearer', users, private: ['library/app'], realm: `${elsewhere.url}/token` },
      upstream: { credentials: await passwordFile('open-sesame') },
    })
    const answer = await mirror.get(`${app}/manifests/v1`)
    expectError(answer, [401, 403, 502])
    expect(answer.body.toString()).toContain('tokenHosts')
    expect(elsewhere.requests.filter(({ headers }) => headers.authorization !== undefined)).toEqual([])
    expect(upstream.requests.filter(({ headers }) => headers.authorization?.startsWith('Basic'))).toEqual([])
  })

  test('are sent to a realm on a host that tokenHosts names', async () => {
    const elsewhere = await startUpstream({ auth: { scheme: 'bearer', users } })
    const { mirror } = await startScene({
      auth: { scheme: 'bearer', users, realm: `${elsewhere.url}/token` },
      upstream: { credentials: await passwordFile('open-sesame'), tokenHosts: [elsewhere.host] },
    })
    // Checks only that the password was sent, because the two servers do not share their tokens.
    await mirror.get(`${app}/manifests/v1`)
    expect(elsewhere.count({ path: '/token' })).toBeGreaterThan(0)
    expect(elsewhere.requests[0]!.headers.authorization).toMatch(/^Basic /)
  })

  test('are not needed for an anonymous token, which is never fetched from a link-local address', async () => {
    const realm = 'http://169.254.169.254/latest/meta-data/token'
    const { mirror } = await startScene({ auth: { scheme: 'bearer', realm } })
    expectError(await mirror.get(`${app}/manifests/v1`), [401, 403, 502])
  })
})

describe('content that was fetched with a credential', () => {
  const auth = { scheme: 'bearer', users, private: ['library/app'] } as const

  test('is not served without that credential', async () => {
    const home = await temporaryHome()
    const { upstream, mirror, image, layer } = await startScene({
      home,
      auth,
      upstream: { credentials: await passwordFile('open-sesame') },
    })
    expectContent(await mirror.get(`${app}/manifests/v1`), image.digest)
    expectContent(await mirror.get(`${app}/blobs/${layer}`), layer)
    await mirror.close()

    const second = await startTestMirror({ home, upstreams: { 'docker.io': upstream.url } })
    for (const path of [`manifests/v1`, `manifests/${image.digest}`, `blobs/${layer}`]) {
      expectError(await second.get(`${app}/${path}`), 401)
    }
  })

  test('is served again, without a fetch, to the same credential after a restart', async () => {
    const home = await temporaryHome()
    const credentials = await passwordFile('open-sesame')
    const { upstream, mirror, layer } = await startScene({ home, auth, upstream: { credentials } })
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(`${app}/blobs/${layer}`)
    await mirror.close()

    const second = await startTestMirror({ home, upstreams: { 'docker.io': { url: upstream.url, credentials } } })
    const before = upstream.requests.length
    expectContent(await second.get(`${app}/blobs/${layer}`), layer)
    expect(upstream.requests.length).toBe(before)
  })

  test('is served to another credential only with a grant of its own, and not fetched again', async () => {
    const home = await temporaryHome()
    const both = { ...auth, users: { ...users, other: 'their-own' } }
    const credentials = await passwordFile('open-sesame')
    const { upstream, mirror, layer } = await startScene({ home, auth: both, upstream: { credentials } })
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(`${app}/blobs/${layer}`)
    await mirror.close()

    const changed = { url: upstream.url, credentials: await passwordFile('their-own', 'other') }
    const second = await startTestMirror({ home, upstreams: { 'docker.io': changed } })
    const { length } = upstream.requests
    expectContent(await second.get(`${app}/blobs/${layer}`), layer)
    const asked = upstream.requests.slice(length).filter(({ path }) => path.includes('/blobs/'))
    expect(new Set(asked.map(({ method }) => method))).toEqual(new Set(['HEAD']))
  })

  test('is not served once the upstream has refused the credential', async () => {
    const credentials = await passwordFile('open-sesame')
    const { upstream, mirror, image, layer } = await startScene({ auth, upstream: { credentials } })
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(`${app}/blobs/${layer}`)
    await mirror.untilStored(2)
    upstream.on({}, status(403))
    expectError(await mirror.get(`${app}/manifests/v1`), 403, 'DENIED')
    expectError(await mirror.get(`${app}/manifests/${image.digest}`), 403)
    expectError(await mirror.get(`${app}/blobs/${layer}`), 403)
  })
})
