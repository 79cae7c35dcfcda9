import { chmod, mkdtemp, rm, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { createDeferred } from '../../../src/lib/async.ts'
import type { CommandResult, RunCommand } from '../../../src/lib/process.ts'
import { createCredentials, type CredentialsSource } from '../../../src/upstream/credentials.ts'
import { getDockerConfigPath, parseAuthHost, parseAuthVariable } from '../../../src/upstream/docker-credentials.ts'
import { failureOf, fakeClock } from '../../support/upstream/open-upstream.ts'

const basic = (pair: string) => Buffer.from(pair).toString('base64')
const done = (stdout: string, exitCode = 0): CommandResult => ({ exitCode, stdout, stderr: 'secret on stderr' })
const found = (Username: string, Secret: string) => done(JSON.stringify({ ServerURL: 'x', Username, Secret }))

async function setUp(host: string, config: unknown, run: RunCommand = async () => undefined) {
  const folder = await mkdtemp(join(tmpdir(), 'mirror-credentials-'))
  onTestFinished(() => rm(folder, { recursive: true }))
  const dockerConfig = join(folder, 'config.json')
  const write = (content: unknown) =>
    writeFile(dockerConfig, typeof content === 'string' ? content : JSON.stringify(content))
  if (config !== undefined) await write(config)
  const runs: string[] = []
  const clock = fakeClock()
  const create = (source: CredentialsSource, env: Record<string, string> = {}) =>
    createCredentials({
      host,
      source,
      dockerConfig,
      env,
      clock,
      runCommand: (file, args, options) => {
        runs.push([file, ...args, options.input].join(' '))
        return run(file, args, options)
      },
    })
  return { folder, dockerConfig, clock, runs, write, create, credentials: create({ from: 'docker-config' }) }
}

const none: RunCommand = async () => done('credentials not found in native keychain\n', 1)
const password = (username: string, password: string) => ({ kind: 'password', username, password })

describe("Docker's config.json", () => {
  test.each([
    ['docker.io', 'https://index.docker.io/v1/'],
    ['docker.io', 'docker.io'],
    ['docker.io', 'https://registry-1.docker.io/v2/'],
    ['ghcr.io', 'ghcr.io'],
    ['ghcr.io', 'https://ghcr.io'],
    ['ghcr.io', 'http://GHCR.io/v2/'],
    ['ghcr.io', 'ghcr.io/team'],
    ['ghcr.io', 'ghcr.io/v1/'],
    ['ghcr.io', 'https://ghcr.io/v1/users/'],
    ['ghcr.io', 'https://someone@ghcr.io/'],
    ['localhost:5000', 'localhost:5000'],
    ['localhost:5000', 'http://localhost:5000/v2/'],
    ['registry.example:6555', 'registry.example:6555/team/app'],
  ])('has the entry of %s under %s', async (host, key) => {
    const { credentials } = await setUp(host, { auths: { [key]: { auth: basic('ann:pass:word') } } })
    expect(await credentials.find()).toEqual(password('ann', 'pass:word'))
  })

  test.each([
    ['ghcr.io', 'ghcr.io:443'],
    ['registry.example:6555', 'registry.example'],
    ['ghcr.io', 'https://proxy.example/ghcr.io'],
    ['ghcr.io', 'ghcr.io.example'],
    ['docker.io', 'https://index.docker.io.example/v1/'],
  ])('does not have the entry of %s under %s', async (host, key) => {
    const { credentials } = await setUp(host, { auths: { [key]: { auth: basic('ann:secret') } } })
    expect(await credentials.find()).toBeUndefined()
  })

  test('gives the entry that is nearest to the name', async () => {
    const entries = ['ghcr.io/team', 'https://GHCR.io', 'http://ghcr.io/v1/', 'ghcr.io']
    for (let count = entries.length; count > 0; count--) {
      const auths = Object.fromEntries(entries.slice(0, count).map((key) => [key, { auth: basic(`${key.length}:p`) }]))
      const { credentials } = await setUp('ghcr.io', { auths })
      expect(await credentials.find()).toEqual(password(String(entries[count - 1]!.length), 'p'))
    }
    const empty = await setUp('ghcr.io', { auths: { 'ghcr.io': {}, 'https://ghcr.io': { auth: basic('ann:p') } } })
    expect(await empty.credentials.find()).toBeUndefined()
  })

  test.each(['', ' \n', '{}', '{"auths": null, "credHelpers": null}'])(
    'that is empty gives no credential: %j',
    async (text) => {
      expect(await (await setUp('ghcr.io', text)).credentials.find()).toBeUndefined()
    },
  )

  test('that is missing, or has no entry for the registry, gives no credential', async () => {
    expect(await (await setUp('ghcr.io', undefined)).credentials.find()).toBeUndefined()
    expect(
      await (await setUp('ghcr.io', { auths: { 'quay.io': { auth: basic('a:b') } } })).credentials.find(),
    ).toBeUndefined()
    expect(await (await setUp('ghcr.io', { auths: { 'ghcr.io': {} } })).credentials.find()).toBeUndefined()
  })

  test('may have a plain pair, an identity token, or a token in place of a password', async () => {
    const plain = await setUp('a.example', { auths: { 'a.example': { username: 'u', password: 'p' } } })
    expect(await plain.credentials.find()).toEqual(password('u', 'p'))
    const token = await setUp('a.example', { auths: { 'a.example': { auth: basic('0000:'), identitytoken: 'T' } } })
    expect(await token.credentials.find()).toEqual({ kind: 'identity-token', token: 'T' })
    const bearer = await setUp('a.example', { auths: { 'a.example': { auth: basic('u:p'), registrytoken: 'T' } } })
    expect(await bearer.credentials.find()).toEqual({ kind: 'registry-token', token: 'T' })
    const beside = await setUp('a.example', { credsStore: 's', auths: { 'a.example': { registrytoken: 'T' } } }, none)
    expect(await beside.credentials.find()).toEqual({ kind: 'registry-token', token: 'T' })
    const disguised = await setUp('a.example', { auths: { 'a.example': { auth: basic('<token>:T') } } })
    expect(await disguised.credentials.find()).toEqual({ kind: 'identity-token', token: 'T' })
  })

  test.each([
    ['ann:', ''],
    ['ann:pass:word', 'pass:word'],
    ['ann:padded\0\0\0', 'padded'],
    ['ann:\0padded', 'padded'],
    ['ann:pässwörd', 'pässwörd'],
  ])('gives the password of %j unchanged', async (pair, secret) => {
    const { credentials } = await setUp('a.example', { auths: { 'a.example': { auth: basic(pair) } } })
    expect(await credentials.find()).toEqual(password('ann', secret))
  })

  test.each([['{"auths": {"ghcr.io": hunter2'], [{ auths: { 'ghcr.io': { auth: basic('hunter2') } } }]])(
    'that is broken is reported without a quote from it',
    async (content) => {
      const { credentials } = await setUp('ghcr.io', content)
      const error = await failureOf(credentials.find())
      expect(error.failure).toBe('unavailable')
      expect(error.message).not.toContain('hunter2')
    },
  )

  test('is read again when it changes, at most once a second', async () => {
    const { credentials, clock, write } = await setUp('ghcr.io', undefined)
    expect(await credentials.find()).toBeUndefined()
    await write({ auths: { 'ghcr.io': { auth: basic('ann:new') } } })
    expect(await credentials.find()).toBeUndefined()
    clock.pass(1000)
    expect(await credentials.find()).toEqual(password('ann', 'new'))
  })

  test('is read again when an archive replaced it with a file of the same size and time', async () => {
    const { credentials, clock, dockerConfig, write } = await setUp('ghcr.io', undefined)
    for (const secret of ['one', 'two']) {
      await write({ auths: { 'ghcr.io': { auth: basic(`AWS:${secret}`) } } })
      await utimes(dockerConfig, 0, 0)
      clock.pass(1000)
      expect(await credentials.find()).toEqual(password('AWS', secret))
    }
  })

  test('is in the folder that DOCKER_CONFIG names', () => {
    expect(getDockerConfigPath({ DOCKER_CONFIG: '/etc/it' })).toBe('/etc/it/config.json')
    expect(getDockerConfigPath({})).toMatch(/\.docker.config\.json$/)
  })
})

describe('the variable DOCKER_AUTH_CONFIG', () => {
  const given = (auths: unknown) => ({ DOCKER_AUTH_CONFIG: JSON.stringify({ auths }) })
  const fromDocker = { from: 'docker-config' } as const

  test('takes precedence over every helper and the file, for the registries that it names', async () => {
    const config = { credsStore: 'store', auths: { 'ghcr.io': { auth: basic('file:f') } } }
    const { create, runs } = await setUp('ghcr.io', config, async () => found('store', 's'))
    expect(await create(fromDocker, given({ 'ghcr.io': { auth: basic('env:e') } })).find()).toEqual(
      password('env', 'e'),
    )
    expect(runs).toEqual([])
    const other = given({ 'quay.io': { auth: basic('env:e') }, 'https://ghcr.io': { auth: basic('env:e') } })
    expect(await create(fromDocker, other).find()).toEqual(password('store', 's'))
    const hub = await setUp('docker.io', config)
    const named = given({ 'https://index.docker.io/v1/': { auth: basic('env:e') } })
    expect(await hub.create(fromDocker, named).find()).toEqual(password('env', 'e'))
  })

  test.each([
    ['', false],
    ['{}', false],
    ['{"auths":{}}', false],
    ['hunter2', true],
    ['{"auths":{"ghcr.io":{"username":"env","password":"hunter2"}}}', true],
    ['{"auths":{"ghcr.io":{"auth":""}}}', true],
    [`{"auths":{"ghcr.io":{"auth":"${basic('hunter2')}"}}}`, true],
    ['{"auths":{},"credsStore":"store"}', true],
    [`{"auths":{"ghcr.io":{"auth":"${basic('env:e')}"}}}{}`, true],
  ])('is ignored when it is empty or not in a form that Docker reads: %s', async (text, isInvalid) => {
    const { create } = await setUp('ghcr.io', { auths: { 'ghcr.io': { auth: basic('file:f') } } })
    expect(await create(fromDocker, { DOCKER_AUTH_CONFIG: text }).find()).toEqual(password('file', 'f'))
    expect(parseAuthVariable(text) === undefined).toBe(isInvalid)
  })
})

describe('credential helpers', () => {
  test("take precedence: a registry's helper over the store, the store over the file", async () => {
    const config = {
      auths: { 'ghcr.io': { auth: basic('file:f') } },
      credsStore: 'store',
      credHelpers: { 'ghcr.io': 'own' },
    }
    const own = await setUp('ghcr.io', config, async () => found('own', 'o'))
    expect(await own.credentials.find()).toEqual(password('own', 'o'))
    expect(own.runs).toEqual(['docker-credential-own get ghcr.io'])
    const store = await setUp('ghcr.io', { ...config, credHelpers: {} }, async () => found('<token>', 's'))
    expect(await store.credentials.find()).toEqual({ kind: 'identity-token', token: 's' })
    expect(store.runs).toEqual(['docker-credential-store get ghcr.io'])
  })

  test('are called for Docker Hub by its old name', async () => {
    const { credentials, runs } = await setUp('docker.io', { credsStore: 'store' }, async () => found('u', 'p'))
    await credentials.find()
    expect(runs).toEqual(['docker-credential-store get https://index.docker.io/v1/'])
  })

  test('that have no credential give none, whatever the file contains, as for Docker', async () => {
    const config = { credsStore: 'store', auths: { 'ghcr.io': { auth: basic('u:p') } } }
    const { credentials } = await setUp('ghcr.io', config, none)
    expect(await credentials.find()).toBeUndefined()
  })

  test.each<[string, object, string | undefined]>([
    ['an empty entry beside a store', { credHelpers: { 'ghcr.io': '' }, credsStore: 'store' }, undefined],
    ['an empty entry alone', { credHelpers: { 'ghcr.io': '' } }, undefined],
    ['an empty store', { credsStore: '' }, undefined],
    ['no helper for this registry', { credHelpers: { 'quay.io': 'other' } }, undefined],
    ['the entry of another spelling', { credHelpers: { 'https://ghcr.io': 'other' } }, undefined],
    ['an entry beside a store', { credHelpers: { 'ghcr.io': 'own' }, credsStore: 'store' }, 'own'],
    ['a store, and an entry for another registry', { credHelpers: { 'quay.io': 'own' }, credsStore: 'store' }, 'store'],
    ['keys in another case', { CREDHELPERS: { 'ghcr.io': 'own' }, CredsStore: 'store' }, 'own'],
  ])("are chosen by Docker's rules: %s means the file (undefined) or a helper: %j → %s", async (_, config, helper) => {
    const auths = { 'ghcr.io': { auth: basic('file:f') } }
    const { credentials, runs } = await setUp('ghcr.io', { auths, ...config }, async (file) => found(file, 's'))
    const name = helper === undefined ? 'file' : `docker-credential-${helper}`
    expect(await credentials.find()).toMatchObject({ username: name })
    expect(runs).toEqual(helper === undefined ? [] : [`docker-credential-${helper} get ghcr.io`])
  })

  test.each<[object, string | undefined]>([
    [{ credHelpers: { 'https://index.docker.io/v1/': 'own' }, credsStore: 'store' }, 'own'],
    [{ credHelpers: { 'docker.io': 'own' }, credsStore: 'store' }, 'store'],
    [{ credHelpers: { 'docker.io': 'own' } }, 'own'],
    [{ credHelpers: { 'https://index.docker.io/v1/': '' }, credsStore: 'store' }, undefined],
  ])('are found for Docker Hub by its old name: %j → %s', async (config, helper) => {
    const { credentials, runs } = await setUp('docker.io', config, async () => found('u', 'p'))
    await credentials.find()
    const hub = 'https://index.docker.io/v1/'
    expect(runs).toEqual(helper === undefined ? [] : [`docker-credential-${helper} get ${hub}`])
  })

  test.each<[string, CommandResult, unknown]>([
    ['the words for nothing', done('credentials not found in native keychain\n', 1), undefined],
    ['two empty members', done('{"ServerURL":"","Username":"","Secret":""}'), undefined],
    ['an empty object', done('{}'), undefined],
    ['lower-case members', done('{"username":"u","secret":"s"}'), password('u', 's')],
    ['a refresh token', done('{"Username":"<token>","Secret":"t"}'), { kind: 'identity-token', token: 't' }],
    ['an empty password', done('{"Username":"u","Secret":""}'), password('u', '')],
    ['text after the answer', done('{"Username":"u","Secret":"a}b"}\nupdated}\n'), password('u', 'a}b')],
  ])('may print %s', async (_, result, credential) => {
    const { credentials } = await setUp('ghcr.io', { credsStore: 's' }, async () => result)
    expect(await credentials.find()).toEqual(credential)
  })

  test.each<[string, RunCommand]>([
    ['is not installed', async () => undefined],
    ["which credsStore in Docker's config.json names", async () => undefined],
    ['failed with exit code 1', async () => done('no', 1)],
    ['exit code 1 (no credentials server URL)', async () => done('no credentials server URL\n', 1)],
    ['did not finish', async () => ({ exitCode: undefined, stdout: '', stderr: '' })],
    ['cannot be started (EACCES)', async () => ({ exitCode: undefined, stdout: '', stderr: 'spawn x EACCES' })],
    ['did not print a credential', async () => done('hunter2')],
    ['did not print a credential', async () => done('hunter2 {"Username":"u","Secret":"hunter2"}')],
    ['did not print a credential', async () => done('["hunter2"]')],
    ['did not print a credential', async () => done('{"Username":"","Secret":"hunter2"}')],
  ])('that fail are named in the error: %s', async (why, run) => {
    const { credentials } = await setUp('ghcr.io', { credsStore: 'broken' }, run)
    const error = await failureOf(credentials.find())
    expect([error.failure, error.status]).toEqual(['unavailable', 503])
    expect(error.message).toContain('docker-credential-broken')
    expect(error.message).toContain(why)
    expect(error.message).not.toMatch(/secret|hunter2/)
  })

  test('are run once for concurrent requests, and again after ten minutes', async () => {
    const { credentials, runs, clock } = await setUp('ghcr.io', { credsStore: 's' }, async () => found('u', 'p'))
    await Promise.all(Array.from({ length: 20 }, () => credentials.find()))
    clock.pass(599_000)
    await credentials.find()
    expect(runs).toHaveLength(1)
    clock.pass(1000)
    await credentials.find()
    expect(runs).toHaveLength(2)
  })

  test('that are run again after ten minutes delay no request', async () => {
    const answers = [createDeferred<CommandResult>(), createDeferred<CommandResult>(), createDeferred<CommandResult>()]
    const { credentials, runs, clock } = await setUp(
      'ghcr.io',
      { credsStore: 's' },
      () => answers[runs.length - 1]!.promise,
    )
    answers[0]!.resolve(found('u', 'one'))
    const one = (await credentials.find())!
    clock.pass(600_000)
    expect(await credentials.find()).toEqual(one)
    expect(runs).toHaveLength(2)
    // Makes a refused request wait for another credential.
    const renewed = credentials.renew(one)
    answers[1]!.resolve(found('u', 'two'))
    expect(await renewed).toEqual(password('u', 'two'))
    clock.pass(600_000)
    expect(await credentials.find()).toEqual(password('u', 'two'))
    answers[2]!.resolve(done('no', 1))
    await expect
      .poll(() =>
        credentials.find().then(
          () => 'found',
          () => 'failed',
        ),
      )
      .toBe('failed')
  })

  test('that were not run for twenty minutes are awaited, because another user may have logged in', async () => {
    let secret = 'one'
    const { credentials, clock } = await setUp('ghcr.io', { credsStore: 's' }, async () => found('AWS', secret))
    await credentials.find()
    secret = 'two'
    clock.pass(20 * 60_000)
    expect(await credentials.find()).toEqual(password('AWS', 'two'))
  })

  test('that failed slowly are not run again for a while', async () => {
    const held = await setUp('ghcr.io', { credsStore: 's' }, async () => {
      held.clock.pass(15_000)
      return { exitCode: undefined, stdout: '', stderr: '' }
    })
    await failureOf(held.credentials.find())
    await failureOf(held.credentials.find())
    expect(held.runs).toHaveLength(1)
    held.clock.pass(5000)
    await failureOf(held.credentials.find())
    expect(held.runs).toHaveLength(2)
  })

  test('are run again when their credential was refused, and only another credential counts', async () => {
    let secret = 'old'
    const { credentials, runs, clock } = await setUp('ghcr.io', { credsStore: 's' }, async () => found('u', secret))
    const old = (await credentials.find())!
    clock.pass(5000)
    expect(await credentials.renew(old)).toBeUndefined()
    secret = 'new'
    expect(await credentials.renew(old)).toBeUndefined()
    clock.pass(5000)
    expect(await credentials.renew(old)).toEqual(password('u', 'new'))
    expect(runs).toHaveLength(3)
  })

  test('whose name cannot be a program are not run', async () => {
    const { credentials, runs } = await setUp('ghcr.io', { credsStore: '../../bin/sh' })
    expect((await failureOf(credentials.find())).failure).toBe('unavailable')
    expect(runs).toEqual([])
  })
})

describe('a password', () => {
  test('is read from a file each time', async () => {
    const { folder, create } = await setUp('ghcr.io', undefined)
    const passwordFile = join(folder, 'password')
    const credentials = create({ from: 'password-file', username: 'ann', passwordFile })
    expect((await failureOf(credentials.find())).message).toContain(passwordFile)
    await writeFile(passwordFile, 'one\n')
    await chmod(passwordFile, 0o600)
    const one = (await credentials.find())!
    expect(one).toEqual(password('ann', 'one'))
    expect(await credentials.renew(one)).toBeUndefined()
    await writeFile(passwordFile, 'two')
    expect(await credentials.renew(one)).toEqual(password('ann', 'two'))
    await writeFile(passwordFile, '\n')
    expect((await failureOf(credentials.find())).message).toContain('empty')
  })

  test('is read from the environment', async () => {
    const { create } = await setUp('ghcr.io', undefined)
    const source = { from: 'password-env', username: 'ann', passwordEnv: 'GHCR_TOKEN' } as const
    expect(await create(source, { GHCR_TOKEN: 'p' }).find()).toEqual(password('ann', 'p'))
    expect((await failureOf(create(source).find())).message).toContain('GHCR_TOKEN')
  })
})

test.each([
  ['127.0.0.1', '127.0.0.1'],
  ['::1', '::1'],
  ['[::1]', '[::1]'],
  ['registry.example', 'registry.example'],
  ['http://registry.example', 'registry.example'],
  ['https://registry.example/', 'registry.example'],
  ['https://registry.example/v2/', 'registry.example'],
  ['https://registry.example?x=/y', 'registry.example'],
  ['ftp://registry.example', 'registry.example'],
  ['registry.example/team/app', 'registry.example'],
  ['127.0.0.1:6556', '127.0.0.1:6556'],
  ['::1:6556', '::1:6556'],
  ['[::1]:6556', '[::1]:6556'],
  ['registry.example:6555', 'registry.example:6555'],
  ['https://127.0.0.1:6555/v2/', '127.0.0.1:6555'],
  ['https://::1:6555/v2/', '[::1]:6555'],
  ['https://[::1]:6555/v2/', '[::1]:6555'],
  ['https://[::1]/v2/', '::1'],
  ['http://registry.example:6555', 'registry.example:6555'],
  ['https://registry.example:6555/v2/', 'registry.example:6555'],
])('the key %s of auths is the registry %s', (key, host) => {
  expect(parseAuthHost(key)).toBe(host)
})
