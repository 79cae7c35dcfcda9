import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
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
  ['is reached over ssh', () => 'ssh://me@there', 'reached over ssh'],
  ["is another machine's", () => 'tcp://10.1.2.3:2375', "is another machine's"],
])('an engine that %s is refused, with the reason', async (_, host, message) => {
  await expect(openWith(host)).rejects.toMatchObject({ exit: 4, message: expect.stringContaining(message) })
})
