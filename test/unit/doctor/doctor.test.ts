import { writeState } from '../../../src/admin/state.ts'
import { mirrorPaths } from '../../../src/config/paths.ts'
import { mkdir, rm, writeFile } from 'node:fs/promises'
import type { ServerResponse } from 'node:http'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import type { CheckResult } from '../../../src/admin/activity.ts'
import { checks, createSelection } from '../../../src/doctor/checks.ts'
import { type DoctorRequest, runDoctor } from '../../../src/doctor/doctor.ts'
import { listMended, listOwnFixes } from '../../../src/doctor/fix.ts'
import { commandEnv } from '../../support/command-env.ts'
import { makeCredentialHelper, helperName, useCredentialHelper } from '../../support/credential-helper.ts'
import { startMirrorProcess } from '../../support/mirror-process.ts'
import { temporaryHome } from '../../support/mirror.ts'
import { serveHttpProxy } from '../../support/proxies.ts'
import { testCertificate } from '../../support/upstream/certificate.ts'
import { reply, serve } from '../../support/upstream/serve.ts'

/** Runs the doctor for the mirror of a home, without clients of this machine. */
async function examine(
  home: string,
  only: string[],
  env: Record<string, string> = {},
  more: Partial<DoctorRequest> = {},
) {
  const surroundings = {
    platform: 'linux',
    env: { ...commandEnv(home), PATH: '/var/empty', DOCKER_CONFIG: home, ...env },
    homedir: home,
    cwd: home,
  }
  return runDoctor({ surroundings, version: '0.1.0', clients: [], only, pull: false, ...more })
}

/** Writes a mirror.yaml for a stopped mirror. */
async function homeWith(config: object): Promise<string> {
  const home = await temporaryHome()
  await writeFile(join(home, 'mirror.yaml'), JSON.stringify(config))
  return home
}

const upstreamAt = (url: string, more: object = {}) => ({
  upstreams: { 'registry.test': { url, credentials: 'anonymous', ...more } },
})
const findings = (results: readonly CheckResult[]) =>
  results.filter(({ state }) => state === 'warn' || state === 'fail')

const anyPort = {
  cache: { listen: ['127.0.0.1:0'] },
  registry: { listen: ['127.0.0.1:0'] },
  admin: { listen: ['127.0.0.1:0'] },
}

describe('without a running mirror', () => {
  test('the doctor says so, names `mirror up`, and skips what needs it', async () => {
    const report = await examine(await homeWith(anyPort), ['mirror.runs', 'mirror.version', 'use', 'listeners'])
    expect(findings(report.results)).toEqual([
      expect.objectContaining({ id: 'mirror.runs', group: 'mirror', fix: { command: 'mirror up', isOwn: true } }),
    ])
    const skipped = report.results.filter(({ state }) => state === 'skipped').map(({ id }) => id)
    expect(skipped).toEqual(expect.arrayContaining(['mirror.version', 'listeners.loopback', 'use.hosts', 'use.seen']))
    expect(listOwnFixes(report)).toEqual(['mirror up'])
  })

  test('the doctor names the program that has a port of the mirror, and the flag for another one', async () => {
    const server = createServer().listen(0, '127.0.0.1')
    onTestFinished(() => void server.close())
    await new Promise((resolve) => server.once('listening', resolve))
    const { port } = server.address() as { port: number }
    const home = await homeWith({ ...anyPort, cache: { listen: [`127.0.0.1:${port}`] } })
    const env = { MIRROR_CACHE_LISTEN: `127.0.0.1:${port}` }
    const { results } = await examine(home, ['mirror.ports'], env)
    expect(results).toEqual([
      expect.objectContaining({
        state: 'fail',
        saw: expect.stringContaining(`Port ${port} (cache) is in use by `),
        fix: { command: expect.stringMatching(/^mirror up --cache-port \d+$/), isOwn: false },
      }),
    ])
    // A dead mirror's state names no command that fails because of that port.
    await writeState(
      mirrorPaths({ platform: 'linux', env: { MIRROR_HOME: home }, homedir: home, cwd: home }).stateFile,
      {
        pid: 4_000_000,
        processIdentity: undefined,
        version: '1',
        runtime: 'process',
        startedAt: new Date().toISOString(),
        configHashes: {},
        endpoints: { cache: [`http://127.0.0.1:${port}`], registry: [], admin: [], networks: {} },
        logFile: undefined,
      },
    )
    for (const id of ['mirror.runs', 'mirror.lock'])
      expect((await examine(home, [id], env)).results).toMatchObject([
        { id, advice: 'See the command of mirror.ports.' },
      ])
  })

  test('the doctor reports a mirror.yaml that is not valid', async () => {
    const { results } = await examine(await homeWith({ cache: { maxSize: 'much' } }), ['mirror.config'])
    expect(results).toEqual([expect.objectContaining({ id: 'mirror.config', state: 'fail' })])
  })

  test('the doctor reports a damaged record of a client', async () => {
    const home = await homeWith(anyPort)
    await mkdir(join(home, 'state', 'configured'), { recursive: true })
    await writeFile(join(home, 'state', 'configured', 'docker-0123456789abcdef.json'), '{')
    const { results } = await examine(home, ['mirror.records'])
    expect(results).toEqual([expect.objectContaining({ state: 'fail', saw: expect.stringContaining('is damaged') })])
  })

  test('the doctor reports a disk without room above the reserve', async () => {
    const home = await homeWith({ ...anyPort, cache: { listen: ['127.0.0.1:0'], minFree: '8000TiB' } })
    const { results } = await examine(home, ['mirror.disk'])
    expect(results).toEqual([
      expect.objectContaining({ state: 'fail', fix: { command: 'mirror cache prune', isOwn: true } }),
    ])
  })
})

describe('of an upstream the doctor names', () => {
  const at = async (url: string, only: string[], env: Record<string, string> = {}, more: object = {}) => {
    const report = await examine(await homeWith({ ...anyPort, ...upstreamAt(url, more) }), only, env)
    // Leaves out the time of the answer, which depends on how busy the machine is.
    const found = findings(report.results).filter(({ id }) => id !== 'upstreams.time')
    return found.map(({ id, state, saw }) => ({ id, state, saw }))
  }

  test('nothing when all is well', async () => {
    const upstream = await serve((_, response) => reply(response, 200))
    expect(await at(upstream.url, ['upstreams', 'mirror.clock'])).toEqual([])
  })

  test('neither a certificate of plain HTTP nor a proxy without one', async () => {
    const upstream = await serve((_, response) => reply(response, 200))
    const { results } = await examine(await homeWith({ ...anyPort, ...upstreamAt(upstream.url) }), ['upstreams'])
    expect(results.map(({ id }) => id)).toContain('upstreams.reachable')
    expect(results.map(({ id }) => id)).not.toContain('upstreams.tls')
    expect(results.map(({ id }) => id)).not.toContain('upstreams.proxy')
  })

  test('none while the mirror is offline, with a warning that says so', async () => {
    const home = await homeWith({ ...anyPort, cache: { ...anyPort.cache, offline: true } })
    const { results } = await examine(home, ['upstreams.reachable'])
    expect(results).toEqual([
      expect.objectContaining({
        state: 'warn',
        saw: expect.stringContaining('The mirror is offline (cache.offline)'),
        advice: expect.stringContaining('Remove offline: true below cache: in'),
      }),
    ])
  })

  test('a connection that is refused', async () => {
    expect(await at('http://127.0.0.1:1', ['upstreams'])).toEqual([
      { id: 'upstreams.reachable', state: 'fail', saw: expect.stringContaining('refused the connection') },
    ])
  })

  test('a status of a registry that has a problem', async () => {
    const upstream = await serve((_, response) => reply(response, 503))
    expect(await at(upstream.url, ['upstreams'])).toEqual([
      { id: 'upstreams.reachable', state: 'fail', saw: expect.stringContaining('503') },
    ])
  })

  test('a certificate that nobody trusts', async () => {
    const upstream = await serve((_, response) => reply(response, 200), testCertificate)
    expect(await at(upstream.url, ['upstreams'])).toEqual([
      { id: 'upstreams.tls', state: 'fail', saw: expect.stringContaining('certificate') },
    ])
  })

  test('a proxy that wants a password', async () => {
    const proxy = await serveHttpProxy({ to: '127.0.0.1:1', login: 'me:secret-word' })
    const found = await at('https://registry.invalid', ['upstreams'], { https_proxy: `http://${proxy.host}` })
    expect(found).toEqual([{ id: 'upstreams.proxy', state: 'fail', saw: expect.stringContaining('(407)') }])
    expect(JSON.stringify(found)).not.toContain('secret-word')
  })

  test('a proxy that refuses to connect, with what may be done about it', async () => {
    const proxy = await serveHttpProxy({ to: '127.0.0.1:1', refuse: 403 })
    const home = await homeWith({ ...anyPort, ...upstreamAt('https://registry.invalid') })
    const { results } = await examine(home, ['upstreams'], { https_proxy: `http://${proxy.host}` })
    const advice = expect.stringMatching(/no_proxy, then: mirror down && mirror up$/)
    expect(findings(results)).toMatchObject([{ id: 'upstreams.proxy', saw: expect.stringContaining('(403)'), advice }])
  })

  test('a certificate that nobody trusts behind a proxy, which may have replaced it', async () => {
    const upstream = await serve((_, response) => reply(response, 200), testCertificate)
    const proxy = await serveHttpProxy({ to: new URL(upstream.url).host })
    const home = await homeWith({ ...anyPort, ...upstreamAt('https://registry.invalid') })
    const { results } = await examine(home, ['upstreams'], { https_proxy: `http://${proxy.host}` })
    const advice = `Set upstreams."registry.test".ca to the file of the CA (PEM) in ${join(home, 'mirror.yaml')}, then: mirror up`
    expect(findings(results)).toMatchObject([{ id: 'upstreams.tls', state: 'fail', advice }])
  })

  test('a registry by plain HTTP that is asked by HTTPS, and not its certificate authority', async () => {
    const upstream = await serve((_, response) => reply(response, 200))
    const home = await homeWith({ ...anyPort, ...upstreamAt(upstream.url.replace('http:', 'https:')) })
    const { results } = await examine(home, ['upstreams'])
    const advice = expect.stringContaining('Begin upstreams."registry.test".url with http:// in ')
    expect(findings(results)).toMatchObject([{ id: 'upstreams.tls', state: 'fail', advice }])
  })

  test('a registry whose name has the word proxy, and not a proxy', async () => {
    const found = await at('http://proxy.localhost:1', ['upstreams'])
    expect(found).toEqual([{ id: 'upstreams.reachable', state: 'fail', saw: expect.any(String) }])
  })

  test('a file of a certificate authority that is missing, and goes on with the other upstreams', async () => {
    const upstream = await serve((_, response) => reply(response, 200))
    const upstreams = {
      'registry.test': { url: upstream.url, credentials: 'anonymous', ca: '/var/empty/ca.pem' },
      'other.test': { url: upstream.url, credentials: 'anonymous' },
    }
    const { results } = await examine(await homeWith({ ...anyPort, upstreams }), ['upstreams'])
    expect(findings(results)).toMatchObject([
      { id: 'upstreams.tls', subject: 'registry.test', saw: expect.stringContaining('/var/empty/ca.pem') },
    ])
    expect(results).toContainEqual(
      expect.objectContaining({ id: 'upstreams.reachable', subject: 'other.test', state: 'ok' }),
    )
  })

  test('a variable that is no proxy', async () => {
    const upstream = await serve((_, response) => reply(response, 200))
    expect(await at(upstream.url, ['upstreams'], { http_proxy: 'ftp://proxy.corp' })).toEqual([
      { id: 'upstreams.proxy', state: 'fail', saw: expect.stringContaining('http_proxy') },
    ])
  })

  const login = (user: string, password: string) => `Basic ${Buffer.from(`${user}:${password}`).toString('base64')}`
  /** Serves a registry that takes one password, at its token service or itself. */
  const serveWithLogin = (challenge: 'Basic' | 'Bearer') =>
    serve((request, response) => {
      const isToken = request.url!.startsWith('/token')
      const realm = `http://${request.headers.host}/token`
      if (request.headers.authorization === login('me', 'right')) return reply(response, 200)
      if (isToken && request.headers.authorization === undefined) return reply(response, 200, {}, '{"token":"t"}')
      const asks = challenge === 'Basic' ? 'Basic realm="r"' : `Bearer realm="${realm}",service="s"`
      return reply(response, 401, isToken ? {} : { 'www-authenticate': asks })
    })

  test.each(['Basic', 'Bearer'] as const)(
    'a wrong password that %s shows, and none for the right one',
    async (challenge) => {
      const upstream = await serveWithLogin(challenge)
      const examineWith = async (password: string) => {
        const auths = { 'registry.test': { auth: login('me', password).slice('Basic '.length) } }
        const home = await homeWith({ ...anyPort, ...upstreamAt(upstream.url, { credentials: 'docker-config' }) })
        return examine(home, ['upstreams.credential'], { DOCKER_AUTH_CONFIG: JSON.stringify({ auths }) })
      }
      const report = await examineWith('secret-word')
      const fix = { command: 'docker login registry.test', isOwn: false }
      expect(report.results).toMatchObject([
        { state: 'fail', saw: expect.stringContaining('refuses the credential'), fix },
      ])
      expect(JSON.stringify(report)).not.toContain('secret-word')
      expect((await examineWith('right')).results).toMatchObject([
        { state: 'ok', saw: expect.stringContaining('accepts') },
      ])
    },
  )

  test('a wrong password in a file, and the file', async () => {
    const upstream = await serveWithLogin('Basic')
    const home = await homeWith(anyPort)
    const passwordFile = join(home, 'password')
    await writeFile(passwordFile, 'wrong\n')
    const credentials = { username: 'me', passwordFile }
    await writeFile(
      join(home, 'mirror.yaml'),
      JSON.stringify({ ...anyPort, ...upstreamAt(upstream.url, { credentials }) }),
    )
    const { results } = await examine(home, ['upstreams.credential'])
    expect(results).toMatchObject([{ state: 'fail', advice: `Write the current password into ${passwordFile}.` }])
  })

  test('a token service that may not get the credential, which it does not get', async () => {
    const thief = await serve((_, response) => reply(response, 200, {}, '{"token":"t"}'))
    const realm = `${thief.url}/token`
    const upstream = await serve((_, response) =>
      reply(response, 401, { 'www-authenticate': `Bearer realm="${realm}"` }),
    )
    const auths = { 'registry.test': { auth: login('me', 'right').slice('Basic '.length) } }
    const home = await homeWith({ ...anyPort, ...upstreamAt(upstream.url, { credentials: 'docker-config' }) })
    const env = { DOCKER_AUTH_CONFIG: JSON.stringify({ auths }) }
    const { results } = await examine(home, ['upstreams.credential'], env)
    const advice = expect.stringContaining(`tokenHosts: ["${new URL(thief.url).host}"]`)
    expect(results).toMatchObject([{ state: 'fail', advice }])
    expect(thief.log).toEqual([])
  })

  test('a token service that does not answer', async () => {
    const upstream = await serve((_, response) =>
      reply(response, 401, { 'www-authenticate': 'Bearer realm="http://127.0.0.1:1/token",service="test"' }),
    )
    expect(await at(upstream.url, ['upstreams'])).toEqual([
      { id: 'upstreams.token', state: 'fail', saw: expect.stringContaining('127.0.0.1:1') },
    ])
  })

  test('a clock that differs', async () => {
    const date = new Date(Date.now() - 3_600_000).toUTCString()
    const upstream = await serve((_, response) => reply(response, 200, { date }))
    expect(await at(upstream.url, ['mirror.clock'])).toEqual([
      { id: 'mirror.clock', state: 'fail', saw: expect.stringContaining('ahead of the upstreams') },
    ])
  })

  test('a command for root itself without sudo, which may not be installed', async () => {
    const date = new Date(Date.now() - 3_600_000).toUTCString()
    const upstream = await serve((_, response) => reply(response, 200, { date }))
    const examineAs = async (env: Record<string, string>) =>
      (await examine(await homeWith({ ...anyPort, ...upstreamAt(upstream.url) }), ['mirror.clock'], env)).results
    const command = process.geteuid?.() === 0 ? 'timedatectl set-ntp true' : 'sudo timedatectl set-ntp true'
    expect(await examineAs({})).toMatchObject([{ fix: { command } }])
    expect(await examineAs({ SUDO_UID: '1000' })).toMatchObject([{ fix: { command: 'sudo timedatectl set-ntp true' } }])
  })

  test('a password file that is missing', async () => {
    const upstream = await serve((_, response) => reply(response, 200))
    const credentials = { username: 'me', passwordFile: '/var/empty/password' }
    expect(await at(upstream.url, ['upstreams'], {}, { credentials })).toEqual([
      { id: 'upstreams.credential', state: 'fail', saw: expect.stringContaining('/var/empty/password') },
    ])
  })

  test('a credential helper that fails', async () => {
    const upstream = await serve((_, response) => reply(response, 200))
    const helper = await makeCredentialHelper('echo it is locked >&2; exit 1')
    await helper.configure({ credHelpers: { 'registry.test': helperName } })
    expect(await at(upstream.url, ['upstreams'], helper.env, { credentials: 'docker-config' })).toEqual([
      { id: 'upstreams.credential', state: 'fail', saw: expect.any(String) },
    ])
  })

  const broken: readonly [name: string, config: string, advice: string][] = [
    ['a config.json that is not valid', '{"auths": ', 'Correct FILE, then run mirror doctor again.'],
    [
      'a credential helper that is not installed',
      '{"credHelpers": {"registry.test": "of-nobody"}}',
      'Install docker-credential-of-nobody, or remove credHelpers."registry.test" from FILE.',
    ],
    [
      'a credential helper that fails',
      `{"credsStore": "${helperName}"}`,
      `See why the helper fails: docker-credential-${helperName} list`,
    ],
  ]

  test.for(broken)('no docker login for what it does not mend: %s', async ([, config, advice]) => {
    const upstream = await serve((_, response) => reply(response, 200))
    const helper = await makeCredentialHelper('exit 1')
    useCredentialHelper(helper)
    const file = join(helper.folder, 'config.json')
    await writeFile(file, config)
    const home = await homeWith({ ...anyPort, ...upstreamAt(upstream.url, { credentials: 'docker-config' }) })
    const { results } = await examine(home, ['upstreams.credential'], helper.env)
    expect(results).toMatchObject([{ state: 'fail', advice: advice.replace('FILE', file) }])
    expect(results[0]).not.toHaveProperty('fix')
  })

  test.each([
    ['an upstream', 'upstreams.reachable', () => {}],
    [
      'a token service',
      'upstreams.token',
      (realm: string, response: ServerResponse) =>
        reply(response, 401, { 'www-authenticate': `Bearer realm="${realm}"` }),
    ],
  ] as const)('%s that is silent, and what the other upstreams say', async (_, id, answer) => {
    const silent = await serve((request, response) => {
      if (request.url !== '/token') answer(`http://${request.headers.host}/token`, response)
    })
    const other = await serve((_request, response) => reply(response, 200))
    const upstreams = {
      'registry.test': { url: silent.url, credentials: 'anonymous' },
      'other.test': { url: other.url, credentials: 'anonymous' },
    }
    const { results } = await examine(await homeWith({ ...anyPort, upstreams }), ['upstreams', 'mirror.clock'])
    const found = findings(results).filter((one) => one.id !== 'upstreams.time')
    expect(found).toMatchObject([
      { id, subject: 'registry.test', state: 'fail', saw: expect.stringContaining('in time') },
    ])
    expect(results).toContainEqual(
      expect.objectContaining({ id: 'upstreams.reachable', subject: 'other.test', state: 'ok' }),
    )
  })

  test('an upstream that is silent, within the deadline', async () => {
    const upstream = await serve(() => {})
    const begin = performance.now()
    const found = await at(upstream.url, ['upstreams.reachable'])
    expect(performance.now() - begin).toBeLessThan(9000)
    expect(found).toEqual([{ id: 'upstreams.reachable', state: 'fail', saw: expect.stringContaining('in time') }])
  })
})

describe('of a running mirror', () => {
  test('the doctor finds nothing when all is well, and counts its checks', async () => {
    const upstream = await serve((_, response) => reply(response, 200))
    const mirror = await startMirrorProcess({ upstreams: { 'registry.test': upstream.url } })
    const status = await mirror.status()
    const groups = ['mirror', 'upstreams', 'listeners', 'use']
    const report = await examine(mirror.home, groups, {}, { version: status.version })
    const others = ['mirror.config', 'upstreams.time']
    expect(findings(report.results).filter(({ id }) => !others.includes(id))).toEqual([])
    expect(report.counts.ok).toBeGreaterThan(12)
  })

  test('the doctor names another version, refused names, and registries that are not mirrored', async () => {
    const mirror = await startMirrorProcess({ upstreams: {} })
    for (const host of ['build.corp:5055', 'ci.corp']) await mirror.get('/v2/', { headers: { host } })
    await mirror.get('/v2/registry.corp/app/manifests/v1')
    const { endpoints } = await mirror.status()
    const file = join(mirror.home, 'mirror.yaml')
    const [cache, admin] = [endpoints.cache, endpoints.admin].map(([url]) => new URL(url!).port)
    const start = `mirror up --cache-port ${cache} --admin-port ${admin}`
    // The mirror has other ports than configured, as by flags.
    const env = {
      MIRROR_ALLOWED_HOSTS: 'other.corp',
      MIRROR_CACHE_LISTEN: '127.0.0.1:5055',
      MIRROR_ADMIN_LISTEN: '127.0.0.1:5056',
    }
    const { results } = await examine(mirror.home, ['mirror.version', 'use'], env, { version: '99.0.0' })
    const then = `${file}, then: ${start}`
    const allow = `Write allowedHosts: ["other.corp", "build.corp", "ci.corp"] in ${then}`
    expect(findings(results)).toEqual([
      expect.objectContaining({ id: 'mirror.version', state: 'warn', fix: { command: start, isOwn: true } }),
      ...['build.corp', 'ci.corp'].map((subject) =>
        expect.objectContaining({ id: 'use.hosts', subject, state: 'fail', advice: expect.stringContaining(allow) }),
      ),
      expect.objectContaining({
        id: 'use.registries',
        state: 'warn',
        advice: expect.stringContaining(`Add "registry.corp": {} below "upstreams:" in ${then}`),
      }),
    ])
  })

  test('the doctor names a mirror that has ended without being stopped', async () => {
    const mirror = await startMirrorProcess({ upstreams: {} })
    mirror.kill('SIGKILL')
    await mirror.ended
    const { results } = await examine(mirror.home, ['mirror.runs', 'mirror.lock'])
    expect(results).toEqual([
      expect.objectContaining({ id: 'mirror.runs', state: 'fail', saw: expect.stringContaining('died') }),
      expect.objectContaining({
        id: 'mirror.lock',
        state: 'warn',
        saw: expect.stringContaining(`process ${mirror.pid}`),
      }),
    ])
  })
})

describe('the checks', () => {
  test('have ids of their own, each of which begins with its group', () => {
    expect(new Set(checks.map(({ id }) => id)).size).toBe(checks.length)
    expect(checks.filter(({ id, group }) => !id.startsWith(`${group}.`))).toEqual([])
  })

  test('can be selected by an id or its first parts, and an unknown one is refused with a suggestion', () => {
    const isSelected = createSelection(['clients.hosts', 'mirror.runs'])
    expect(['clients.hosts.syntax', 'mirror.runs', 'mirror.version', 'clients.files'].filter(isSelected)).toEqual([
      'clients.hosts.syntax',
      'mirror.runs',
    ])
    expect(() => createSelection(['mirror.run'])).toThrow('Did you mean mirror.runs?')
  })
})

test('a mended finding is named once, and one that stays is not', async () => {
  const home = await homeWith(anyPort)
  const before = await examine(home, ['mirror.runs', 'mirror.config'])
  await rm(join(home, 'mirror.yaml'))
  expect(listMended(before, { ...before, results: [] })).toEqual(['mirror.runs'])
  expect(listMended(before, before)).toEqual([])
})
