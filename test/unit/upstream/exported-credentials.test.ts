import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { systemClock } from '../../../src/lib/time.ts'
import type { Credential } from '../../../src/upstream/identity.ts'
import { createDockerCredentials } from '../../../src/upstream/docker-credentials.ts'
import { readExportedCredentials, renderExportedCredentials } from '../../../src/upstream/credentials.ts'

const now = Date.parse('2026-01-01T00:00:00Z')
const hour = 3_600_000
const password = (username: string): Credential => ({ kind: 'password', username, password: 'secret:with:colons' })

async function handed(credentials: Record<string, Credential>): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'mirror-handed-'))
  onTestFinished(() => rm(folder, { recursive: true }))
  const path = join(folder, 'config.json')
  await writeFile(path, renderExportedCredentials(new Map(Object.entries(credentials)), now))
  return path
}

function findAt(wall: number, dockerConfig: string, host: string) {
  const clock = { ...systemClock, wall: () => wall }
  return createDockerCredentials({
    host,
    dockerConfig,
    env: {},
    clock,
    runCommand: () => Promise.resolve(undefined),
  }).find()
}

test('exported credentials are read back unchanged', async () => {
  const all: Record<string, Credential> = {
    'docker.io': password('me'),
    'registry.example:5000': password('me'),
    'token.example': { kind: 'identity-token', token: 'refresh' },
    'bearer.example': { kind: 'registry-token', token: 'bearer' },
  }
  const path = await handed(all)
  for (const [host, credential] of Object.entries(all)) expect(await findAt(now, path, host)).toEqual(credential)
  expect(await findAt(now, path, 'other.example')).toBeUndefined()
})

test('an exported credential that expires is ignored after its expiry, and is reported as expired', async () => {
  const path = await handed({ 'ecr.example': password('AWS'), 'static.example': password('me') })
  expect(await findAt(now + 11 * hour, path, 'ecr.example')).toEqual(password('AWS'))
  expect(await findAt(now + 13 * hour, path, 'ecr.example')).toBeUndefined()
  expect(await findAt(now + 10_000 * hour, path, 'static.example')).toEqual(password('me'))
  const expires = '2026-01-01T12:00:00.000Z'
  expect(await readExportedCredentials(path, now)).toEqual({
    'ecr.example': { state: 'valid', expires },
    'static.example': { state: 'valid' },
  })
  expect(await readExportedCredentials(path, now + 13 * hour)).toMatchObject({
    'ecr.example': { state: 'expired', expires },
  })
})

test('an export file that is missing or damaged has no entries', async () => {
  const path = await handed({})
  expect(await readExportedCredentials(`${path}.absent`, now)).toEqual({})
  await writeFile(path, '{')
  expect(await readExportedCredentials(path, now)).toEqual({})
})
