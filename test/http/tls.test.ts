import { writeFile } from 'node:fs/promises'
import type { IncomingMessage } from 'node:http'
import { request } from 'node:https'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { digestOf } from '../../src/oci/digest.ts'
import { temporaryHome } from '../support/mirror.ts'
import { app, startScene } from '../support/scene.ts'
import { testCertificate } from '../unit/upstream/support/certificate.ts'

test('with a certificate the cache speaks TLS, and nothing else', async () => {
  const home = await temporaryHome()
  const tls = { cert: join(home, 'tls.crt'), key: join(home, 'tls.key') }
  await writeFile(tls.cert, testCertificate.cert)
  await writeFile(tls.key, testCertificate.key, { mode: 0o600 })
  const { mirror, layer } = await startScene({ tls })
  expect(mirror.url).toMatch(/^https:/)

  const response = await new Promise<IncomingMessage>((resolve, reject) => {
    const url = new URL(`${app}/blobs/${layer}`, mirror.url)
    request(url, { ca: testCertificate.cert, checkServerIdentity: () => undefined, agent: false }, resolve)
      .once('error', reject)
      .end()
  })
  const chunks: Buffer[] = []
  for await (const chunk of response as AsyncIterable<Buffer>) chunks.push(chunk)
  expect(digestOf(Buffer.concat(chunks))).toBe(layer)
  await expect(mirror.get('/v2/')).rejects.toMatchObject({ code: 'ECONNRESET' })
})

test('a certificate that cannot be read stops the start with its name', async () => {
  const tls = { cert: '/nowhere/tls.crt', key: '/nowhere/tls.key' }
  await expect(startScene({ tls })).rejects.toMatchObject({
    name: 'MirrorError',
    message: expect.stringContaining('/nowhere/tls.crt'),
  })
})
