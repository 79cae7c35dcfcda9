import { mkdtemp, rm } from 'node:fs/promises'
import { networkInterfaces, tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { openEngine } from '../../../src/docker/dockerode-engine.ts'
import { type DockerEndpoint, isRemoteEngine } from '../../../src/docker/endpoint.ts'

async function openWith(dockerHost: (home: string) => string) {
  const home = await mkdtemp(join(tmpdir(), 'mirror-engine-'))
  onTestFinished(() => rm(home, { recursive: true }))
  const env = { DOCKER_HOST: dockerHost(home) }
  return openEngine({ platform: 'linux', env, homedir: home, cwd: home })
}

test.each([
  ['is not there', (home: string) => `unix://${home}/docker.sock`, 'No Docker engine answers'],
  ['refuses connections', () => 'tcp://127.0.0.1:1', 'No Docker engine answers'],
  ['looks like an option of ssh', () => 'ssh://-oProxyCommand=true', 'DOCKER_HOST is not the address'],
  ['is named with a password', () => 'ssh://me:secret@there', 'DOCKER_HOST is not the address'],
  ['has an unknown scheme', () => 'carrier-pigeon:7', 'DOCKER_HOST is not the address'],
])('an engine that %s is an error with the reason', async (_, host, message) => {
  await expect(openWith(host)).rejects.toMatchObject({ exit: 4, message: expect.stringContaining(message) })
})

test('a context that does not exist is named in the error', async () => {
  const home = await mkdtemp(join(tmpdir(), 'mirror-engine-'))
  onTestFinished(() => rm(home, { recursive: true }))
  const surroundings = { platform: 'linux' as const, env: { DOCKER_CONTEXT: 'gone' }, homedir: home, cwd: home }
  const refusal = { exit: 4, message: 'The Docker context gone does not exist.' }
  await expect(openEngine(surroundings)).rejects.toMatchObject(refusal)
})

test('a recorded engine is opened, whichever is chosen now', async () => {
  const home = await mkdtemp(join(tmpdir(), 'mirror-engine-'))
  onTestFinished(() => rm(home, { recursive: true }))
  const surroundings = {
    platform: 'linux' as const,
    env: { DOCKER_HOST: 'carrier-pigeon:7' },
    homedir: home,
    cwd: home,
  }
  const noted = { kind: 'socket', path: join(home, 'noted.sock') } as const
  await expect(openEngine(surroundings, noted)).rejects.toMatchObject({ message: expect.stringContaining(noted.path) })
})

const ownAddress = Object.values(networkInterfaces())
  .flatMap((addresses) => addresses ?? [])
  .find(({ internal, family }) => !internal && family === 'IPv4')?.address

test.skipIf(ownAddress === undefined)('an engine at an address of this machine is opened', async () => {
  await expect(openWith(() => `tcp://${ownAddress}:1`)).rejects.toMatchObject({
    message: expect.stringContaining('No Docker engine answers'),
  })
  expect(isRemoteEngine({ kind: 'tcp', host: ownAddress!, port: 1, tlsFolder: undefined })).toBe(false)
})

test.each<[string, DockerEndpoint, boolean]>([
  ['a socket', { kind: 'socket', path: '/var/run/docker.sock' }, false],
  ['the loopback', { kind: 'tcp', host: '127.0.0.1', port: 2375, tlsFolder: undefined }, false],
  ['localhost', { kind: 'tcp', host: 'localhost', port: 2375, tlsFolder: undefined }, false],
  ['a strange address', { kind: 'tcp', host: '192.0.2.1', port: 2375, tlsFolder: undefined }, true],
  ['ssh, even to localhost', { kind: 'ssh', host: 'localhost', user: undefined, port: 2222 }, true],
])('an engine at %s is recognised as local or remote', (_, endpoint, elsewhere) => {
  expect(isRemoteEngine(endpoint)).toBe(elsewhere)
})
