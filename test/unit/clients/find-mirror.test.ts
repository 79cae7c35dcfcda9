import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { findMirrorAddress } from '../../../src/clients/find-mirror.ts'
import { getProcessIdentity } from '../../../src/lib/process.ts'
import { writeState } from '../../../src/admin/state.ts'
import { testCertificate } from '../../support/upstream/certificate.ts'

let home: string
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-find-'))
  await writeFile(join(home, 'tls.crt'), testCertificate.cert)
})
afterEach(() => rm(home, { recursive: true }))

async function addressOf(url: string, config: object, caFile?: string) {
  await writeFile(join(home, 'mirror.yaml'), JSON.stringify(config))
  const surroundings = { platform: 'linux' as const, env: { MIRROR_HOME: home }, homedir: home, cwd: home }
  return (await findMirrorAddress(surroundings, { url, caFile })).getAddress({ in: 'host' })
}

const tls = { cert: './tls.crt', key: './tls.key' }

test('the CA comes with an HTTPS address only', async () => {
  const secure = await addressOf('https://127.0.0.1:5055', { tls })
  expect(secure).toMatchObject({ registry: 'https://127.0.0.1:5001', ca: { file: join(home, 'tls.crt') } })
  expect(secure.warning).toBeUndefined()
  expect((await addressOf('http://127.0.0.1:5055', { tls })).ca).toBeUndefined()
  expect((await addressOf('https://127.0.0.1:5055', {})).ca).toBeUndefined()
  expect((await addressOf('https://127.0.0.1:5055', {}, join(home, 'tls.crt'))).ca).toBeDefined()
})

test('the registry of a named mirror is that of the running mirror with this address, or else the configured one', async () => {
  const config = { registry: { listen: ['127.0.0.1:6001'] } }
  const registryOf = async (url: string) => (await addressOf(url, config)).registry
  expect(await registryOf('http://127.0.0.1:5055')).toBe('http://127.0.0.1:6001')
  await runsWith({ cache: ['http://127.0.0.1:5055'], registry: ['http://127.0.0.1:7001'] })
  expect(await registryOf('http://127.0.0.1:5055')).toBe('http://127.0.0.1:7001')
  expect(await registryOf('http://localhost:5055')).toBe('http://localhost:7001')
  expect(await registryOf('http://172.18.0.1:5055')).toBe('http://172.18.0.1:7001')
  expect(await registryOf('http://build.corp.example:5055')).toBe('http://build.corp.example:6001')
  expect(await registryOf('http://127.0.0.1:5056')).toBe('http://127.0.0.1:6001')
  await runsWith({ cache: ['http://127.0.0.1:5055'], registry: [] })
  expect(await registryOf('http://127.0.0.1:5055')).toBeUndefined()
})

/** Records this process as a running mirror with these endpoints. */
async function runsWith(endpoints: {
  cache: string[]
  registry: string[]
  admin?: string[]
  networks?: Record<string, string>
}): Promise<void> {
  await writeState(join(home, 'state', 'mirror.json'), {
    pid: process.pid,
    processIdentity: await getProcessIdentity(process.pid),
    version: '1',
    runtime: 'process',
    startedAt: '2026-01-01T00:00:00.000Z',
    configHashes: {},
    endpoints: { admin: [], networks: { kind: 'http://172.18.0.1:5055' }, ...endpoints },
    logFile: undefined,
  })
}

test('an unreadable certificate does not matter for an HTTP address', async () => {
  const missingFiles = { cert: './gone.crt', key: './tls.key' }
  expect(await addressOf('http://127.0.0.1:5055', { tls: missingFiles })).toMatchObject({
    cache: 'http://127.0.0.1:5055',
  })
  await expect(addressOf('https://127.0.0.1:5055', { tls: missingFiles })).rejects.toMatchObject({ exit: 2 })
})

test('an address that the certificate does not name has a warning', async () => {
  const { warning } = await addressOf('https://172.18.0.1:5055', { tls })
  expect(warning).toContain('does not name 172.18.0.1')
})

test('a CA for an HTTP mirror is refused', async () => {
  await expect(addressOf('http://127.0.0.1:5055', {}, join(home, 'tls.crt'))).rejects.toMatchObject({ exit: 2 })
})

test.each([
  [{}, 'no Docker engine answers the mirror', 'docker info'],
  [
    { kind: { state: 'waiting', reason: 'the Docker engine does not answer' } },
    'no Docker engine answers the mirror',
    'docker info',
  ],
  [
    { kind: { state: 'waiting', reason: 'the network does not exist yet' } },
    'which does not exist yet',
    'mirror configure kind   (creates it',
  ],
  [{ kind: { state: 'failed', reason: 'Port 5055 is taken.' } }, 'listen there: Port 5055 is taken.', 'mirror logs'],
])('a network that is not served with the status %j is refused with its cause', async (networks, why, hint) => {
  const admin = createServer((_, response) => response.end(JSON.stringify({ networks, cache: {}, storage: {} })))
  await new Promise<void>((resolve) => admin.listen(0, '127.0.0.1', resolve))
  try {
    const url = `http://127.0.0.1:${(admin.address() as AddressInfo).port}`
    await runsWith({ cache: ['http://127.0.0.1:5055'], registry: [], admin: [url], networks: {} })
    const surroundings = { platform: 'linux' as const, env: { MIRROR_HOME: home }, homedir: home, cwd: home }
    const mirror = await findMirrorAddress(surroundings, { url: undefined, caFile: undefined })
    const ask = () => mirror.getAddress({ in: 'network', what: 'kind nodes', network: 'kind' })
    const hints = expect.arrayContaining([expect.stringContaining(hint)])
    expect(ask).toThrow(expect.objectContaining({ exit: 4, message: expect.stringContaining(why), hints }))
  } finally {
    admin.close()
  }
})
