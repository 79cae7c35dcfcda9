import { createHash } from 'node:crypto'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { createDockerEngine } from '../../../src/docker/dockerode-engine.ts'
import { findDockerEndpoint, renderDockerHost } from '../../../src/docker/endpoint.ts'
import { systemClock } from '../../../src/lib/time.ts'
import { DockerApiServer, network, startDockerEngine } from '../../support/docker-engine.ts'

let home: string
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-docker-'))
})
afterEach(() => rm(home, { recursive: true }))

const find = (env: Record<string, string> = {}, platform: NodeJS.Platform = 'linux') =>
  findDockerEndpoint({ platform, env, homedir: home })

async function write(path: string, value: unknown) {
  const file = join(home, '.docker', path)
  await mkdir(dirname(file), { recursive: true })
  await writeFile(file, typeof value === 'string' ? value : JSON.stringify(value))
}

const contextFolder = (kind: string, name: string) =>
  join('contexts', kind, createHash('sha256').update(name).digest('hex'))

describe('the endpoint of the Docker engine', () => {
  test('is the default socket of the platform', async () => {
    expect(await find()).toEqual({ kind: 'socket', path: '/var/run/docker.sock' })
    expect(await find({}, 'win32')).toEqual({ kind: 'socket', path: '//./pipe/docker_engine' })
  })

  test.each([
    ['unix:///run/user/7/docker.sock', { kind: 'socket', path: '/run/user/7/docker.sock' }],
    ['tcp://10.0.0.7', { kind: 'tcp', host: '10.0.0.7', port: 2375, tlsFolder: undefined }],
    ['tcp://[::1]:99', { kind: 'tcp', host: '::1', port: 99, tlsFolder: undefined }],
    ['ssh://me@there', { kind: 'ssh', host: 'there', user: 'me', port: undefined }],
    ['ssh://there:2222/', { kind: 'ssh', host: 'there', user: undefined, port: 2222 }],
    ['ssh://corp%5Cme@[fe80::1]:22', { kind: 'ssh', host: 'fe80::1', user: 'corp\\me', port: 22 }],
    ['ssh://me:secret@there', undefined],
    ['ssh://-oProxyCommand=true', undefined],
    ['ssh://there/run/docker.sock', undefined],
    ['ssh://%zz@there', undefined],
    ['ssh://', undefined],
  ])('is the value of DOCKER_HOST: %s', async (host, endpoint) => {
    expect(await find({ DOCKER_HOST: host })).toEqual(endpoint)
  })

  test.each([
    'unix:///run/docker.sock',
    'tcp://10.0.0.7:99',
    'tcp://[::1]:99',
    'ssh://corp%5Cme@[fe80::1]:22',
    'ssh://there',
  ])('is rendered like it was parsed: %s', async (host) => {
    expect(renderDockerHost((await find({ DOCKER_HOST: host }))!)).toBe(host)
  })

  test('has the certificates of DOCKER_CERT_PATH with DOCKER_TLS_VERIFY', async () => {
    const env = { DOCKER_HOST: 'tcp://there', DOCKER_TLS_VERIFY: '1', DOCKER_CERT_PATH: '/certs' }
    expect(await find(env)).toEqual({ kind: 'tcp', host: 'there', port: 2376, tlsFolder: '/certs' })
  })

  test('is that of the current context, or of DOCKER_CONTEXT', async () => {
    await write('config.json', { currentContext: 'rootless' })
    await write(`${contextFolder('meta', 'rootless')}/meta.json`, { Endpoints: { docker: { Host: 'unix:///r.sock' } } })
    await write(`${contextFolder('meta', 'far')}/meta.json`, { Endpoints: { docker: { Host: 'tcp://far:5' } } })
    await write(`${contextFolder('tls', 'far')}/docker/ca.pem`, '')
    expect(await find()).toEqual({ kind: 'socket', path: '/r.sock' })
    const tlsFolder = join(home, '.docker', contextFolder('tls', 'far'), 'docker')
    expect(await find({ DOCKER_CONTEXT: 'far' })).toEqual({ kind: 'tcp', host: 'far', port: 5, tlsFolder })
    expect(await find({ DOCKER_CONTEXT: 'default' })).toEqual({ kind: 'socket', path: '/var/run/docker.sock' })
  })

  test.each(['', 'null', '{"currentContext": 7}', '{'])('is the default one when config.json is %j', async (text) => {
    await write('config.json', text)
    expect(await find()).toEqual({ kind: 'socket', path: '/var/run/docker.sock' })
  })
})

const dockerAt = (path: string) => createDockerEngine({ kind: 'socket', path }, { clock: systemClock, retryMs: 20 })

describe('the networks of a Docker engine', () => {
  test('are undefined when the engine does not answer', async () => {
    const docker = dockerAt(join(home, 'docker.sock'))
    expect(await docker.ping()).toBe(false)
    expect(await docker.networks.findGateways('kind')).toBeUndefined()
  })

  test('have the gateways of the network with exactly this name', async () => {
    const { socket } = await startDockerEngine(
      network('kind', '172.18.0.1', 'fc00::1/64', ''),
      network('kindly', '172.19.0.1'),
      { Name: 'kind' },
    )
    const docker = dockerAt(socket)
    expect(await docker.ping()).toBe(true)
    expect(await docker.networks.findGateways('kind')).toEqual(['172.18.0.1', 'fc00::1'])
    expect(await docker.networks.findGateways('none')).toEqual([])
  })

  test('are watched while the engine comes, changes and goes', async () => {
    const socket = join(home, 'docker.sock')
    const docker = dockerAt(socket)
    const stop = new AbortController()
    let changes = 0
    const watching = docker.networks.watch(() => (changes += 1), stop.signal)
    await expect.poll(() => changes).toBe(1)

    const engine = new DockerApiServer()
    await engine.start(socket)
    await expect.poll(() => changes).toBe(2)
    engine.changeNetworks([network('kind', '172.18.0.1')])
    await expect.poll(() => changes).toBe(3)
    await engine.stop()
    await expect.poll(() => changes).toBe(4)

    const again = new DockerApiServer()
    await again.start(socket)
    await expect.poll(() => changes).toBe(5)
    stop.abort()
    await watching
    await again.stop()
  })
})
