import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { findPrograms } from '../../../src/clients/adapters.ts'

let home: string
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-programs-'))
})
afterEach(() => rm(home, { recursive: true }))

async function foundWith(...names: string[]) {
  for (const name of names) {
    await writeFile(join(home, name), '#!/bin/sh\n')
    await chmod(join(home, name), 0o755)
  }
  const env = { PATH: home, DOCKER_HOST: `unix://${join(home, 'none.sock')}` }
  return findPrograms({ platform: 'linux', env, home })
}

test('the docker command without an engine is no client, as for `configure`', async () => {
  expect(await foundWith('docker', 'podman')).toEqual(['podman'])
})

test('an engine that is installed is one, though it does not run', async () => {
  expect(await foundWith('dockerd', 'kind')).toEqual(['docker', 'kind'])
})

test('whatever reads the files of podman is podman', async () => {
  expect(await foundWith('skopeo')).toEqual(['podman'])
})
