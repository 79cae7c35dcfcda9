import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { findMirror } from '../../../../src/app/configure/find-mirror.ts'
import { testCertificate } from '../../upstream/support/certificate.ts'

let home: string
beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), 'mirror-find-'))
  await writeFile(join(home, 'tls.crt'), testCertificate.cert)
})
afterEach(() => rm(home, { recursive: true }))

async function addressOf(url: string, config: object, caFile?: string) {
  await writeFile(join(home, 'mirror.yaml'), JSON.stringify(config))
  const surroundings = { platform: 'linux' as const, env: { MIRROR_HOME: home }, homedir: home, cwd: home }
  return (await findMirror(surroundings, { url, caFile })).addressFor({ in: 'host' })
}

const tls = { cert: './tls.crt', key: './tls.key' }

test('the CA comes with an address that speaks TLS, and with no other', async () => {
  const secure = await addressOf('https://127.0.0.1:5055', { tls })
  expect(secure).toMatchObject({ registry: 'https://127.0.0.1:5001', ca: { file: join(home, 'tls.crt') } })
  expect(secure.warning).toBeUndefined()
  expect((await addressOf('http://127.0.0.1:5055', { tls })).ca).toBeUndefined()
  expect((await addressOf('https://127.0.0.1:5055', {})).ca).toBeUndefined()
  expect((await addressOf('https://127.0.0.1:5055', {}, join(home, 'tls.crt'))).ca).toBeDefined()
})

test('an address that the certificate does not name is warned of', async () => {
  const { warning } = await addressOf('https://172.18.0.1:5055', { tls })
  expect(warning).toContain('does not name 172.18.0.1')
})

test('a CA for a mirror that speaks no TLS is refused', async () => {
  await expect(addressOf('http://127.0.0.1:5055', {}, join(home, 'tls.crt'))).rejects.toMatchObject({ exit: 2 })
})
