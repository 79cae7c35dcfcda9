import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { findClientsOnPath } from '../../../src/clients/adapters.ts'

let home: string
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-programs-'))
})
afterEach(() => rm(home, { recursive: true }))

async function foundWith(...names: string[]) {
  for (const name of names) {
    await mkdir(dirname(join(home, name)), { recursive: true })
    await writeFile(join(home, name), '#!/bin/sh\n')
    await chmod(join(home, name), 0o755)
  }
  const env = { PATH: home, DOCKER_HOST: `unix://${join(home, 'none.sock')}` }
  return findClientsOnPath({ platform: 'linux', env, home, root: home })
}

test('findClientsOnPath does not count the docker command without an engine as a client', async () => {
  expect(await foundWith('docker', 'podman')).toEqual(['podman'])
})

test('findClientsOnPath counts an installed engine that does not run as a client', async () => {
  expect(await foundWith('dockerd', 'kind')).toEqual(['docker', 'kind'])
})

test('findClientsOnPath counts a dockerd in a folder that the PATH of an ordinary user lacks', async () => {
  expect(await foundWith('docker', 'usr/sbin/dockerd')).toEqual(['docker'])
})

test("findClientsOnPath counts any program that reads podman's files as podman", async () => {
  expect(await foundWith('skopeo')).toEqual(['podman'])
})
