import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import type { Operation } from '../../src/metadata/metadata.ts'
import { toOperations } from '../../src/metadata/repositories.ts'
import type { CredentialsSource } from '../../src/upstream/credentials.ts'
import { helperName, makeCredentialHelper, useCredentialHelper } from '../support/credential-helper.ts'
import { expectContent, expectError } from '../support/expect-content.ts'
import { send, type Fault } from '../support/faulty-server.ts'
import { makeImage } from '../support/images.ts'
import { startTestMirror, temporaryHome, type TestMirror, type TestMirrorOptions } from '../support/mirror.ts'
import { noise } from '../support/noise.ts'
import { openTestStore } from '../support/store/store.ts'
import { startUpstream } from '../support/upstream.ts'
import { webToken } from '../support/web-token.ts'

const image = makeImage({ layers: [noise(120_000, 1)] })
const layer = image.layers[0]!
const app = '/v2/team/app'
const ns = '?ns=private.example'
const paths = [`manifests/v1`, `manifests/${image.digest}`, `blobs/${layer}`]

/** constantNames are the user names that credential helpers return for all users of a registry. */
const constantNames = [
  'AWS',
  'oauth2accesstoken',
  '_dcgcloud_token',
  '_json_key',
  '$oauthtoken',
  '<token>',
  '00000000-0000-0000-0000-000000000000',
  'oauth2',
  'gitlab-ci-token',
  'x-access-token',
  'ann',
]

const config = { credHelpers: { 'private.example': helperName } }
const refusals = [401, 403, 404] as const

/** Right is the status that a repository answers to the owner of a secret. */
type Right = 200 | (typeof refusals)[number]

/** Sets up a registry whose users share one name, and a credential helper that returns the secret of one of them. */
async function setUp() {
  const upstream = await startUpstream({ images: { 'team/app': { v1: image } } })
  const rights: Record<string, Right> = {}
  /** granted has the requests that got 200 since the last call. */
  let granted: string[] = []

  const guard: Fault = async ({ request, response, reply }) => {
    if (request.url!.startsWith('/token')) {
      const secret = await secretOf(request)
      if (rights[secret] === undefined) return send(response, { status: 401 })
      const body = Buffer.from(JSON.stringify({ token: Buffer.from(secret).toString('base64url'), expires_in: 300 }))
      return send(response, { status: 200, headers: { 'content-type': 'application/json' }, body })
    }
    const bearer = /^Bearer (.+)$/.exec(request.headers.authorization ?? '')?.[1] ?? ''
    const right = rights[Buffer.from(bearer, 'base64url').toString()] ?? 401
    if (right === 200) granted.push(`${request.method} ${request.url!.split('/').at(-2)}`)
    if (right === 200) return send(response, reply)
    const challenge = `Bearer realm="${upstream.url}/token",service="it",scope="repository:team/app:pull"`
    send(response, { status: right, headers: right === 401 ? { 'www-authenticate': challenge } : {} })
  }
  upstream.on({}, guard)

  const answerFile = join(await temporaryHome(), 'answer.json')
  const helper = await makeCredentialHelper(`cat >/dev/null\ncat '${answerFile}'`)
  await helper.configure(config)
  useCredentialHelper(helper)

  const logIn = (Username: string, Secret: string) => writeFile(answerFile, JSON.stringify({ Username, Secret }))
  const start = (home: string, cache: TestMirrorOptions['cache'] = {}, credentials?: CredentialsSource) =>
    startTestMirror({
      home,
      cache,
      upstreams: { 'private.example': { url: upstream.url, credentials: credentials ?? { from: 'docker-config' } } },
    })

  return {
    upstream,
    guard,
    rights,
    helper,
    logIn,
    start,
    /** Returns the home of a mirror that has pulled the image by this login, which is allowed. */
    async pulledBy(name: string, secret: string): Promise<string> {
      const home = await temporaryHome()
      await logIn(name, secret)
      rights[secret] = 200
      await pull(start, home)
      return home
    },
    /** Returns the requests that got 200 since the last call. */
    granted() {
      const all = granted
      granted = []
      return all
    },
  }
}

async function secretOf(request: Parameters<Fault>[0]['request']): Promise<string> {
  const encoded = /^Basic (.+)$/.exec(request.headers.authorization ?? '')?.[1]
  if (encoded !== undefined) {
    const pair = Buffer.from(encoded, 'base64').toString()
    return pair.slice(pair.indexOf(':') + 1)
  }
  const chunks: Buffer[] = []
  for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk)
  return new URLSearchParams(Buffer.concat(chunks).toString()).get('refresh_token') ?? ''
}

/** Pulls the image by a mirror on this home, with the current login. */
async function pull(start: (home: string) => Promise<TestMirror>, home: string): Promise<void> {
  const mirror = await start(home)
  for (const path of paths) expect((await mirror.get(`${app}/${path}${ns}`)).status, path).toBe(200)
  await mirror.untilStored(2)
  await mirror.close()
}

describe.skipIf(process.platform === 'win32')('another account under the same user name', () => {
  test.each(constantNames.map((name, at) => ({ name, refused: refusals[at % refusals.length]! })))(
    'does not get what an account called $name has pulled ($refused)',
    async ({ name, refused }) => {
      const { rights, logIn, pulledBy, start, granted } = await setUp()
      const home = await pulledBy(name, 'secret-a')

      await logIn(name, 'secret-b')
      rights['secret-b'] = refused
      granted()
      const mirror = await start(home)
      // Requests the tag last, because it is revalidated each time, and a refusal revokes the grants.
      for (const path of paths.toReversed()) expectError(await mirror.get(`${app}/${path}${ns}`), refused)
      expect(granted()).toEqual([])
    },
  )

  test("does not get the other's content from an offline mirror, nor while the upstream is down", async () => {
    const { logIn, pulledBy, start, upstream } = await setUp()
    const home = await pulledBy('AWS', 'secret-a')

    await logIn('AWS', 'secret-b')
    const offline = await start(home, { offline: true })
    for (const path of paths) expect((await offline.get(`${app}/${path}${ns}`)).status, path).toBeGreaterThan(399)
    await offline.close()
    await upstream.stop()
    const mirror = await start(home, { stale: 'always' })
    for (const path of paths) expectError(await mirror.get(`${app}/${path}${ns}`), [502, 503, 504])
    await mirror.close()

    await logIn('AWS', 'secret-a')
    const again = await start(home, { offline: true })
    for (const path of paths) expect((await again.get(`${app}/${path}${ns}`)).status, path).toBe(200)
  })

  test.each(['manifests/v1', `manifests/${image.digest}`])(
    'gets the cached content of %s after one HEAD if the upstream grants it, without a new download',
    async (first) => {
      const { rights, logIn, pulledBy, start, granted, upstream } = await setUp()
      const home = await pulledBy('AWS', 'secret-a')

      await logIn('AWS', 'secret-b')
      rights['secret-b'] = 200
      granted()
      const mirror = await start(home, { tagFreshness: 600_000 })
      expectContent(await mirror.get(`${app}/${first}${ns}`), image.digest)
      expectContent(await mirror.get(`${app}/manifests/${image.digest}${ns}`), image.digest)
      expectContent(await mirror.get(`${app}/blobs/${layer}${ns}`), layer)
      expect(granted()).toEqual(['HEAD manifests'])
      await upstream.stop()
      expectContent(await mirror.get(`${app}/manifests/${image.digest}${ns}`), image.digest)
    },
  )

  test('costs a client that sends a HEAD and then a GET by digest one HEAD', async () => {
    const { rights, logIn, pulledBy, start, granted } = await setUp()
    const home = await pulledBy('oauth2accesstoken', 'secret-a')
    await logIn('oauth2accesstoken', 'secret-b')
    rights['secret-b'] = 200
    granted()
    const mirror = await start(home)
    expect((await mirror.get(`${app}/manifests/v1${ns}`, { method: 'HEAD' })).status).toBe(200)
    expectContent(await mirror.get(`${app}/manifests/${image.digest}${ns}`), image.digest)
    expectContent(await mirror.get(`${app}/blobs/${layer}${ns}`), layer)
    expect(granted()).toEqual(['HEAD manifests'])
  })

  test('is noticed by a running mirror, which does not use the access tokens of the first account', async () => {
    const { rights, logIn, start, helper } = await setUp()
    await logIn('AWS', 'secret-a')
    rights['secret-a'] = 200
    const mirror = await start(await temporaryHome(), { tagFreshness: 600_000 })
    for (const path of paths) expect((await mirror.get(`${app}/${path}${ns}`)).status).toBe(200)

    await logIn('AWS', 'secret-b')
    rights['secret-b'] = 403
    await helper.configure({ ...config, auths: {} })
    // Polls, because the mirror checks the file once a second.
    const tag = `${app}/manifests/v1${ns}`
    await expect.poll(async () => (await mirror.get(tag)).status).toBe(403)
    for (const path of paths) expectError(await mirror.get(`${app}/${path}${ns}`), 403)
  })

  test('is noticed when the password comes from a file', async () => {
    const { rights, start } = await setUp()
    const passwordFile = join(await temporaryHome(), 'password')
    await writeFile(passwordFile, 'secret-a')
    rights['secret-a'] = 200
    const credentials = { from: 'password-file', username: 'token', passwordFile } as const
    const mirror = await start(await temporaryHome(), { tagFreshness: 600_000 }, credentials)
    for (const path of paths) expect((await mirror.get(`${app}/${path}${ns}`)).status).toBe(200)
    await writeFile(passwordFile, 'secret-b')
    for (const path of paths) expectError(await mirror.get(`${app}/${path}${ns}`), 401)
  })
})

describe('two successive accounts of one registry', () => {
  /** Starts a mirror that has pulled anonymously or by the first account; returns it with a function that logs in. */
  async function startByFile(first: 'anonymous' | 'secret-a') {
    const scene = await setUp()
    const { rights, start } = scene
    const home = await temporaryHome()
    const passwordFile = join(home, 'password')
    const logIn = (secret: string) => writeFile(passwordFile, secret)
    const credentials = { from: 'password-file', username: 'token', passwordFile } as const
    await logIn('secret-a')
    rights[first === 'anonymous' ? '' : first] = 200
    await pull((at) => start(at, {}, first === 'anonymous' ? { from: 'anonymous' } : credentials), home)
    rights[''] = 401
    const mirror = await start(home, { timeouts: { revalidate: 10_000, headers: 10_000 } }, credentials)
    return { ...scene, logIn, mirror }
  }

  test('a refused revalidation of one account does not answer the other that has joined it', async () => {
    const { rights, logIn, mirror, upstream, guard } = await startByFile('anonymous')
    rights['secret-a'] = 403
    rights['secret-b'] = 200
    const isOfFirst = (authorization = '') =>
      Buffer.from(authorization.replace('Bearer ', ''), 'base64url').toString() === 'secret-a'
    let asked = false
    // Delays the GET that confirms the refused HEAD.
    upstream.on({ method: 'GET', path: /manifests/ }, async (exchange) => {
      if (isOfFirst(exchange.request.headers.authorization)) {
        asked = true
        await sleep(1000)
      }
      return guard(exchange)
    })
    const refused = mirror.get(`${app}/manifests/v1${ns}`)
    await expect.poll(() => asked).toBe(true)
    await logIn('secret-b')
    const joined = await Promise.all([1, 2, 3].map(() => mirror.get(`${app}/manifests/v1${ns}`)))
    for (const answer of joined) expectContent(answer, image.digest)
    expectError(await refused, 403)
    expectContent(await mirror.get(`${app}/manifests/v1${ns}`), image.digest)
  })

  test.each([200, 403])(
    'a request for referrers that one account gets %i for does not answer the other that has joined it',
    async (right) => {
      const { logIn, mirror, upstream } = await startByFile('anonymous')
      const answers: Record<string, number> = { 'secret-a': right, 'secret-b': right === 200 ? 403 : 200 }
      let asked = false
      upstream.on({ path: /referrers/ }, async ({ request, response }) => {
        const pair = Buffer.from((request.headers.authorization ?? '').replace('Basic ', ''), 'base64').toString()
        const secret = pair.replace('token:', '')
        if (answers[secret] === undefined)
          return send(response, { status: 401, headers: { 'www-authenticate': 'Basic realm="it"' } })
        if (secret === 'secret-a') {
          asked = true
          await sleep(1000)
        }
        const type = 'application/vnd.oci.image.index.v1+json'
        const index = { schemaVersion: 2, mediaType: type, manifests: [], annotations: { of: secret } }
        const body = Buffer.from(JSON.stringify(index))
        send(response, { status: answers[secret], headers: { 'content-type': type }, body })
      })
      const path = `${app}/referrers/${image.digest}${ns}`
      const first = mirror.get(path)
      await expect.poll(() => asked).toBe(true)
      await logIn('secret-b')
      const second = await mirror.get(path)
      expect([(await first).status, second.status]).toEqual([right, answers['secret-b']])
    },
  )

  test('the catalog lists what the account may read, and not what the other has pulled', async () => {
    const { rights, logIn, mirror } = await startByFile('secret-a')
    const catalog = async () => JSON.parse((await mirror.get('/v2/_catalog')).body.toString()) as unknown
    expect(await catalog()).toEqual({ repositories: ['private.example/team/app'] })
    await logIn('secret-b')
    expect(await catalog()).toEqual({ repositories: [] })
    rights['secret-b'] = 200
    expectContent(await mirror.get(`${app}/manifests/v1${ns}`), image.digest)
    expect(await catalog()).toEqual({ repositories: ['private.example/team/app'] })
  })
})

describe.skipIf(process.platform === 'win32')('a token that names its account', () => {
  const claims = { iss: 'Azure Container Registry', sub: 'ann@corp.example', aud: 'private.example', tenant: 't' }
  const acr = '00000000-0000-0000-0000-000000000000'

  test.each([acr, '<token>'])('is replaced by the next token of the account without a request (%s)', async (name) => {
    const { rights, logIn, pulledBy, start, granted } = await setUp()
    const [first, second] = [1, 2].map((n) => webToken({ ...claims, jti: `${n}`, iat: n, exp: n + 10_000 })) as [
      string,
      string,
    ]
    const home = await pulledBy(name, first)
    await logIn(name, second)
    rights[second] = 200
    granted()
    const mirror = await start(home)
    expectContent(await mirror.get(`${app}/manifests/${image.digest}${ns}`), image.digest)
    expectContent(await mirror.get(`${app}/blobs/${layer}${ns}`), layer)
    expect(granted()).toEqual([])
  })

  test('is another identity as soon as any other claim differs', async () => {
    const { rights, logIn, pulledBy, start } = await setUp()
    const first = webToken({ ...claims, exp: 1 })
    const home = await pulledBy(acr, first)
    for (const changed of [{ sub: 'bob@corp.example' }, { tenant: 'u' }, { roles: [] }, { iss: 'somebody' }]) {
      const second = webToken({ ...claims, ...changed, exp: 1 })
      await logIn(acr, second)
      rights[second] = 403
      const mirror = await start(home)
      expectError(await mirror.get(`${app}/manifests/${image.digest}${ns}`), 403)
      await mirror.close()
    }
  })
})

describe.skipIf(process.platform === 'win32')('the records on disk', () => {
  async function readLog(home: string): Promise<string> {
    const folder = join(home, 'data', 'cache', 'v2', 'metadata')
    const files = await Promise.all((await readdir(folder)).map((name) => readFile(join(folder, name), 'utf8')))
    const text = files.join('')
    expect(text).toContain('/team/app ')
    return text
  }

  /** Replaces the identity of all entries. */
  async function replaceIdentities(home: string, identity: string): Promise<void> {
    const root = join(home, 'data', 'cache')
    const store = await openTestStore(root)
    for (const repository of store.metadata.all()) {
      const operations = [...toOperations(repository)].map((operation) => ({ ...operation, identity }) as Operation)
      void store.metadata.commit(repository, operations, 'soon')
    }
    await store.close()
    expect(await readLog(home)).toContain(`"${identity}"`)
  }

  test('contain neither the user nor anything that reveals the secret without the key', async () => {
    const { pulledBy } = await setUp()
    const homes = [await pulledBy('ann-the-user', 'secret-a'), await pulledBy('ann-the-user', 'secret-a')]
    const identities = await Promise.all(
      homes.map(async (home) => /"(credential-[^"]+)"/.exec(await readLog(home))![1]),
    )
    expect(identities[0]).toMatch(/^credential-[0-9a-f]{32}$/)
    expect(identities[1]).not.toBe(identities[0])
    expect(await readLog(homes[0]!)).not.toContain('ann-the-user')
  })

  test('of an earlier version, with the user name as identity, are confirmed by one HEAD and kept', async () => {
    const { pulledBy, start, granted } = await setUp()
    const home = await pulledBy('AWS', 'secret-a')
    await replaceIdentities(home, 'AWS@private.example')

    const offline = await start(home, { offline: true })
    for (const path of paths) expect((await offline.get(`${app}/${path}${ns}`)).status).toBeGreaterThan(399)
    await offline.close()
    granted()
    const mirror = await start(home, { tagFreshness: 600_000 })
    for (const path of paths) expect((await mirror.get(`${app}/${path}${ns}`)).status).toBe(200)
    expect(granted()).toEqual(['HEAD manifests'])
  })
})
