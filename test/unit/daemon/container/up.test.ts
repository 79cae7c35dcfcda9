import { mkdir, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { getRemoteEngine } from '../../../../src/admin/access.ts'
import { findRunning, readState, assertDataOnHost, readVolumeMarkerEngine } from '../../../../src/admin/state.ts'
import { defaultConfig } from '../../../../src/config/config.ts'
import { loadConfig } from '../../../../src/config/load.ts'
import { mirrorPaths } from '../../../../src/config/paths.ts'
import { isCredentialRefreshDue, selectCredentialHosts } from '../../../../src/daemon/container/credentials.ts'
import { refuseOtherEngine } from '../../../../src/daemon/container/reconcile.ts'
import { prepareContainer, applyPreparedPlan } from '../../../../src/daemon/container/up.ts'
import { systemClock } from '../../../../src/lib/time.ts'
import { createFakeEngine, type FakeEngine } from '../../../support/fake-engine.ts'
import { testCertificate } from '../../../support/upstream/certificate.ts'

let home: string
let docker: FakeEngine
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-up-'))
  await write('docker/config.json', {
    auths: { 'private.example': { auth: Buffer.from('AWS:secret').toString('base64') } },
  })
  docker = createFakeEngine()
  docker.addImage('mine:1', { id: 'image', hasEntrypoint: true })
})
afterEach(() => rm(home, { recursive: true }))

async function write(path: string, content: unknown) {
  await mkdir(dirname(join(home, path)), { recursive: true })
  await writeFile(join(home, path), JSON.stringify(content))
}

async function requestFor(env: Record<string, string>, more: { credentials?: string[]; dryRun?: boolean } = {}) {
  const surroundings = {
    platform: 'linux' as const,
    env: {
      MIRROR_HOME: home,
      MIRROR_IMAGE: 'mine:1',
      DOCKER_CONFIG: join(home, 'docker'),
      MIRROR_CACHE_PORT: '0',
      ...env,
    },
    homedir: home,
    cwd: home,
  }
  const paths = mirrorPaths(surroundings)
  const messages: string[] = []
  return {
    said: messages,
    request: {
      surroundings,
      paths,
      config: await loadConfig({ ...surroundings, paths }),
      version: '1.0.0',
      root: home,
      published: undefined,
      credentials: more.credentials ?? [],
      dryRun: more.dryRun ?? false,
      clock: systemClock,
      signal: new AbortController().signal,
      notify: (text: string) => messages.push(text),
    },
  }
}

async function up(env: Record<string, string> = {}, more: { credentials?: string[] } = {}) {
  const { request, said: messages } = await requestFor(env, more)
  const preparation = await prepareContainer(docker, request)
  return { ...(await applyPreparedPlan(docker, request, preparation)), ...preparation, request, said: messages }
}

const specOf = () => docker.container('mirror')!.spec
const readExports = () =>
  docker
    .container('mirror')!
    .unpacked.map(({ archive }) => archive.toString())
    .join('')

describe('up in a container', () => {
  test('creates the network of kind and records the addresses of the mirror', async () => {
    const { endpoints, request } = await up()
    expect(docker.names.get('kind')).toEqual(['mirror.svc', 'mirror'])
    expect(docker.done).toEqual([
      'network kind fc00:f853:ccd:e793::/64',
      'create mirror',
      'connect kind',
      'start mirror',
    ])
    expect(endpoints).toMatchObject({
      // Has the port that the engine chose.
      cache: ['http://127.0.0.1:45055'],
      registry: ['http://127.0.0.1:5001'],
      networks: { kind: 'http://mirror.svc:5055' },
    })
    expect(readExports()).toContain(JSON.stringify(endpoints))
    const running = await findRunning(request.paths.stateFile)
    expect(running).toMatchObject({ runtime: 'container', endpoints, container: { volume: 'mirror-data' } })
    expect(JSON.parse(await readFile(request.paths.stateFile, 'utf8'))).toMatchObject({ pid: 0, endpoints })
    expect((await stat(request.paths.tokenFile)).mode & 0o777).toBe(0o600)

    expect((await up()).plan).toEqual({ action: 'keep', connect: [], disconnect: [] })
    await docker.containers.remove('mirror')
    expect(await findRunning(request.paths.stateFile, () => Promise.resolve(false))).toBeUndefined()
    const { stateDir } = request.paths
    await expect(assertDataOnHost(stateDir), 'removed behind our back').rejects.toMatchObject({ exit: 3 })
    await up({ MIRROR_DATA: join(home, 'content') })
    await assertDataOnHost(stateDir)
  })

  test('that fails records the new addresses of the mirror before', async () => {
    const { request, container } = await up({ MIRROR_NETWORKS: '' })
    const before = (await readState(request.paths.stateFile))!
    docker.outcome = ({ memory }) => (memory === 64 * 1024 ** 2 ? { code: 2, lines: ['mirror: No.'] } : 'answers')
    await expect(up({ MIRROR_NETWORKS: '', MIRROR_MEMORY: '64MiB' })).rejects.toMatchObject({
      exit: 2,
      message: 'No. The mirror that ran before runs again, as it was.',
    })
    const running = await findRunning(request.paths.stateFile)
    expect(running).toMatchObject({ container: before.container, configHashes: before.configHashes })
    expect(running!.endpoints.cache).toEqual(before.endpoints.cache)
    // Expects another free port after each start.
    expect(running!.endpoints.admin).not.toEqual(before.endpoints.admin)
    expect((await fetch(`${running!.endpoints.admin[0]}/healthz`)).status).toBe(200)
    const [first, second] = docker.container(container.id)!.unpacked.slice(-2)
    expect(second!.archive.toString()).toContain(JSON.stringify(running!.endpoints))
    expect(first!.archive.equals(second!.archive)).toBe(false)
  })

  test('has its own folder for each container, where a restored one finds its files', async () => {
    const { container } = await up()
    const { container: successor } = await up({ MIRROR_MEMORY: '64MiB' })
    const folders = [container, successor].map(({ labels }) => `home/handed/${labels['dev-mirror.instance']}`)
    expect(new Set(folders).size).toBe(2)
    expect(specOf().env).toMatchObject({
      MIRROR_CONFIG: `/data/${folders[1]}/mirror.yaml`,
      DOCKER_CONFIG: `/data/${folders[1]}/docker`,
    })
    expect(readExports()).toContain(`${folders[1]}/mirror.yaml`)
    expect(readExports()).not.toContain(folders[0])
  })

  test('changes nothing in a dry run', async () => {
    const { request } = await requestFor({}, { dryRun: true })
    expect((await prepareContainer(docker, request)).plan).toEqual({ action: 'create' })
    expect(docker.done).toEqual([])
  })

  test('joins the network that kind uses; other networks must exist', async () => {
    const { endpoints } = await up({ KIND_EXPERIMENTAL_DOCKER_NETWORK: 'other' })
    expect(endpoints.networks).toEqual({ other: 'http://mirror.svc:5055' })
    await expect(up({ MIRROR_NETWORKS: 'kind,compose_default' })).rejects.toMatchObject({
      exit: 2,
      message: expect.stringContaining('compose_default'),
    })
  })

  test('serves TLS with the files that the configuration names', async () => {
    await writeFile(join(home, 'tls.crt'), `the tls.crt\n${testCertificate.cert}`)
    await writeFile(join(home, 'tls.key'), `the tls.key\n${testCertificate.key}`)
    await write('mirror.yaml', { tls: { cert: './tls.crt', key: './tls.key' } })
    const { endpoints } = await up()
    expect(endpoints).toMatchObject({
      cache: ['https://127.0.0.1:45055'],
      admin: [expect.stringMatching(/^http:/)],
      networks: { kind: 'https://mirror.svc:5055' },
    })
    expect(readExports()).toContain('the tls.key')
    expect((await up()).plan.action).toBe('keep')
    await writeFile(join(home, 'tls.crt'), `a new one\n${testCertificate.cert}`)
    expect((await up()).plan).toEqual({ action: 'replace', changed: ['files'] })
  })

  test('exports proxies, but no credentials by default', async () => {
    const ALL_PROXY = 'http://me:hush@proxy.example:3128'
    const { said: messages } = await up({ HTTPS_PROXY: 'http://127.0.0.1:3128', NO_PROXY: 'corp.example', ALL_PROXY })
    expect(specOf().env).toMatchObject({ HTTPS_PROXY: 'http://127.0.0.1:3128', NO_PROXY: 'corp.example' })
    expect(Object.keys(specOf().env)).not.toContain('MIRROR_IMAGE')
    expect(messages).toEqual([
      expect.stringContaining('HTTPS_PROXY names a proxy on this machine'),
      expect.stringContaining('ALL_PROXY holds a password'),
    ])
    expect(messages.join()).not.toContain('hush')
    expect(readExports()).not.toContain(Buffer.from('AWS:secret').toString('base64'))
  })

  test('exports credentials with cache.shareCredentials, and knows when they are due again', async () => {
    const credentials = ['private.example']
    await expect(up({}, { credentials })).rejects.toMatchObject({ exit: 2 })
    const share = { MIRROR_CACHE_SHARE_CREDENTIALS: 'true' }
    await expect(up(share, { credentials: ['nobody.example'] })).rejects.toMatchObject({ exit: 2 })
    const { request: missing } = await requestFor(share, { credentials: ['nobody.example'] })
    await expect(prepareContainer(docker, missing), 'before anything is stopped').rejects.toMatchObject({ exit: 2 })
    const { request } = await up(share, { credentials })
    expect(readExports()).toContain(Buffer.from('AWS:secret').toString('base64'))
    expect(JSON.stringify(specOf())).not.toContain('secret')
    expect(JSON.stringify(await readState(request.paths.stateFile))).not.toContain('secret')

    const now = Date.now()
    expect(await isCredentialRefreshDue(request.surroundings, now)).toBe(false)
    expect(await isCredentialRefreshDue(request.surroundings, now + 3_600_000)).toBe(true)
    expect(await isCredentialRefreshDue(request.surroundings, now - 3_600_000), 'a clock that was set back').toBe(true)
  })

  test('keeps its credentials until the user names others or none', () => {
    const config = (shareCredentials: boolean) => ({ cache: { ...defaultConfig().cache, shareCredentials } })
    const before = ['ghcr.io']
    expect(selectCredentialHosts(undefined, before, config(true))).toEqual(before)
    expect(selectCredentialHosts(undefined, before, config(false)), 'which may not be shared any more').toEqual([])
    expect(selectCredentialHosts(['quay.io', 'ghcr.io'], before, config(true))).toEqual(['quay.io', 'ghcr.io'])
    expect(selectCredentialHosts(['none'], before, config(true))).toEqual([])
    expect(() => selectCredentialHosts(['no host'], before, config(true))).toThrow('not a registry')
  })

  test('on another machine is awaited and recorded with its engine', async () => {
    docker.endpoint = { kind: 'ssh', host: 'there', user: 'me', port: undefined }
    docker.isRemote = true
    const { endpoints, request, container } = await up()
    const noted = await readState(request.paths.stateFile)
    expect(noted).toMatchObject({
      endpoints,
      container: { id: container.id, engine: docker.endpoint, elsewhere: { adminPort: 5056 } },
    })
    expect(getRemoteEngine(noted!)).toBe('ssh://me@there')
    expect(await readVolumeMarkerEngine(request.paths.stateDir)).toEqual(docker.endpoint)
    const again = await up()
    expect(again).toMatchObject({ plan: { action: 'keep' }, said: [] })
    docker.endpoint = { kind: 'tcp', host: 'there', port: 2375, tlsFolder: undefined }
    expect((await up()).said).toEqual([
      expect.stringContaining('at tcp://there:2375 is reached over plain TCP (unencrypted)'),
    ])
    docker.endpoint = { ...docker.endpoint, tlsFolder: '/certs' }
    expect((await up()).said).toEqual([])
    await expect(up({ MIRROR_DATA: join(home, 'content') })).rejects.toMatchObject({
      exit: 2,
      message: expect.stringContaining('tcp://there:2375'),
    })
  })

  test('on another machine that ends at once is an error with its message', async () => {
    docker.isRemote = true
    docker.outcome = { code: 2, lines: ['mirror: No.'] }
    await expect(up()).rejects.toMatchObject({ exit: 2, message: 'No.' })
  })

  test('refuses a second mirror on another engine, unless the user asks for a container', async () => {
    const { request } = await up()
    const running = await readState(request.paths.stateFile)
    const remoteEngine = {
      endpoint: { kind: 'tcp', host: 'there', port: 1, tlsFolder: '/certs' },
      isRemote: true,
    } as const
    const refuse = (engine: typeof remoteEngine, found: typeof running, remembered: boolean) =>
      refuseOtherEngine(engine, request.paths, { running: found, remembered })
    await expect(refuse(remoteEngine, running, false)).rejects.toMatchObject({
      exit: 2,
      message: 'The mirror runs in a container on unix:///var/run/docker.sock, but Docker is at tcp://there:1 now.',
      hints: ['DOCKER_HOST=unix:///var/run/docker.sock mirror up   (there)', 'mirror down   (stops that one)'],
    })
    await expect(refuse(remoteEngine, undefined, true)).rejects.toMatchObject({ exit: 2 })
    await refuse(remoteEngine, undefined, false)
    await refuseOtherEngine(docker, request.paths, { running, remembered: true })
    const alias = { endpoint: { kind: 'socket', path: '/run/docker.sock' }, isRemote: false } as const
    await refuseOtherEngine(alias, request.paths, { running, remembered: true })
    docker.endpoint = remoteEngine.endpoint
    docker.isRemote = true
    await up()
    await expect(refuseOtherEngine(alias, request.paths, { running: undefined, remembered: true })).rejects.toThrow(
      'ran in a container the last time, on tcp://there:1',
    )
  })

  test('runs as the caller with a data folder, who is root in a rootless engine', async () => {
    const data = join(home, 'content')
    await up({ MIRROR_DATA: data })
    expect(specOf()).toMatchObject({ data: { from: { folder: data } } })
    expect(specOf().user).toBe(process.getuid === undefined ? '1000:1000' : `${process.getuid()}:${process.getgid!()}`)
    docker = createFakeEngine({ isRootless: true })
    docker.addImage('mine:1')
    await up({ MIRROR_DATA: data })
    expect(specOf().user).toBe('0:0')
  })

  test('exports the additional certificates of Node, and no path of this machine', async () => {
    const file = join(home, 'corp.pem')
    await writeFile(file, '-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----')
    const others = {
      AWS_PROFILE: 'dev',
      GOOGLE_APPLICATION_CREDENTIALS: '/keys/g.json',
      SSL_CERT_FILE: file,
      PATH: '/x',
    }
    await up({ NODE_EXTRA_CA_CERTS: file, ...others })
    const { env } = specOf()
    expect(env['NODE_EXTRA_CA_CERTS']).toMatch(/\/extra-ca\.pem$/)
    for (const name of Object.keys(others)) expect(env).not.toHaveProperty(name)
  })

  test.each([
    [
      'a bad password file',
      { registry: { auth: { htpasswd: './bad' } } },
      'line 1 is not a user name and a bcrypt hash',
    ],
    ['no password file', { registry: { auth: { htpasswd: './none' } } }, 'it does not exist'],
    ['a bad certificate', { tls: { cert: './bad', key: './bad' } }, 'The certificate and key of "tls" cannot be used'],
  ])('does not change the running container when there is %s', async (_, config, reason) => {
    await up()
    const done = [...docker.done]
    await write('bad', 'nonsense')
    await write('mirror.yaml', config)
    const { request } = await requestFor({})
    await expect(prepareContainer(docker, request)).rejects.toMatchObject({
      exit: 2,
      message: expect.stringMatching(new RegExp(`${reason}.*\\. Nothing was done\\.$`)),
    })
    expect(docker.done).toEqual(done)
  })

  test.each([
    ['a file that is not there', { NODE_EXTRA_CA_CERTS: '/nowhere/ca.pem' }],
    ['too little memory', { MIRROR_MEMORY: '1MiB' }],
  ])('refuses %s, and creates no container', async (_, env) => {
    await expect(up(env)).rejects.toMatchObject({ exit: 2 })
    expect(docker.container('mirror')).toBeUndefined()
  })
})
