import { mkdtemp, rm } from 'node:fs/promises'
import { networkInterfaces, tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { openEngine } from '../../../../src/app/container/open-engine.ts'

async function openWith(dockerHost: (home: string) => string) {
  const home = await mkdtemp(join(tmpdir(), 'mirror-engine-'))
  onTestFinished(() => rm(home, { recursive: true }))
  const env = { DOCKER_HOST: dockerHost(home) }
  return openEngine({ platform: 'linux', env, homedir: home, cwd: home })
}

test.each([
  ['is not there', (home: string) => `unix://${home}/docker.sock`, 'No Docker engine answers'],
  ['refuses connections', () => 'tcp://127.0.0.1:1', 'No Docker engine answers'],
  ['is reached over ssh', () => 'ssh://me@there', 'DOCKER_HOST is an engine on another machine, reached over ssh'],
  ['is named in a way that nobody knows', () => 'carrier-pigeon:7', 'DOCKER_HOST names no address'],
  ["is another machine's", () => 'tcp://10.1.2.3:2375', "is another machine's"],
])('an engine that %s is refused, with the reason', async (_, host, message) => {
  await expect(openWith(host)).rejects.toMatchObject({ exit: 4, message: expect.stringContaining(message) })
})

test('a context that nobody has made is named', async () => {
  const home = await mkdtemp(join(tmpdir(), 'mirror-engine-'))
  onTestFinished(() => rm(home, { recursive: true }))
  const surroundings = { platform: 'linux' as const, env: { DOCKER_CONTEXT: 'gone' }, homedir: home, cwd: home }
  const refusal = { exit: 4, message: 'The Docker context gone is not there.' }
  await expect(openEngine(surroundings)).rejects.toMatchObject(refusal)
})

const ownAddress = Object.values(networkInterfaces())
  .flatMap((addresses) => addresses ?? [])
  .find(({ internal, family }) => !internal && family === 'IPv4')?.address

test.skipIf(ownAddress === undefined)('an engine at an address of this very machine is asked', async () => {
  await expect(openWith(() => `tcp://${ownAddress}:1`)).rejects.toMatchObject({
    message: expect.stringContaining('No Docker engine answers'),
  })
})
