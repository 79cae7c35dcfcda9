import { once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import type { IncomingMessage } from 'node:http'
import { request } from 'node:https'
import { connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { connect as connectTls } from 'node:tls'
import { expect, onTestFinished, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { listen } from '../../src/server/listen.ts'
import { temporaryHome } from '../support/mirror.ts'
import { app, startScene } from '../support/scene.ts'
import { testCertificate } from '../support/upstream/certificate.ts'

test('with a certificate the cache serves TLS only', async () => {
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
  expect(computeDigest(Buffer.concat(chunks))).toBe(layer)
  await expect(mirror.get('/v2/')).rejects.toMatchObject({ code: 'ECONNRESET' })
})

test('a certificate that cannot be read ends the start with an error that names it', async () => {
  const tls = { cert: '/nowhere/tls.crt', key: '/nowhere/tls.key' }
  await expect(startScene({ tls })).rejects.toMatchObject({
    name: 'MirrorError',
    message: expect.stringContaining('/nowhere/tls.crt'),
  })
})

test.skipIf(process.platform !== 'linux')(
  'two connections of a client that have the same port, to two addresses, are two',
  async () => {
    const { cert, key } = testCertificate
    const listener = await listen(
      { host: '0.0.0.0', port: 0, tls: { cert, key } },
      (_, response) => void response.end(),
    )
    onTestFinished(() => listener.close(0))
    const open = async (host: string, localPort?: number) => {
      const socket = connect({ host, port: listener.port, localAddress: '127.0.0.1', ...(localPort && { localPort }) })
      onTestFinished(() => void socket.destroy())
      await once(socket, 'connect')
      return socket
    }
    const first = await open('127.0.0.1')
    const second = await open('127.0.0.2', first.localPort)
    await sleep(50)
    first.destroy()
    await sleep(50)
    const secured = connectTls({ socket: second, ca: cert, checkServerIdentity: () => undefined })
    secured.write('GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
    const [answer] = (await once(secured, 'data')) as [Buffer]
    expect(answer.toString()).toMatch(/^HTTP\/1\.1 200 /)
  },
)
