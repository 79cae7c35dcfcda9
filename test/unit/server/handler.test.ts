import { open, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import { type AddressInfo, connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect, onTestFinished, test } from 'vitest'
import { createDeferred } from '../../../src/lib/async.ts'
import { createSystemError } from '../../../src/lib/errors.ts'
import type { Logger } from '../../../src/lib/logger.ts'
import { systemClock } from '../../../src/lib/time.ts'
import { mediaType } from '../../../src/oci/content.ts'
import { computeDigest } from '../../../src/oci/reference.ts'
import type { Registry } from '../../../src/oci/registry.ts'
import { TransferLog } from '../../../src/server/transfer-log.ts'
import { createHandler } from '../../../src/server/handler.ts'
import { createHostGuard } from '../../../src/server/request-guard.ts'
import { BufferPool, createPortableSendBlob } from '../../../src/server/send/send-blob.ts'
import { SeenClients } from '../../../src/stats/clients.ts'
import { RecentRequests } from '../../../src/stats/requests.ts'
import { FileOpenBlob } from '../../../src/store/file-blob-store.ts'
import { type Answer, get } from '../../support/get.ts'
import { parseAnswers } from '../../support/parse-answers.ts'
import { temporaryFolder } from '../../support/store/store.ts'

const bytes = Buffer.alloc(100_000, 'm')
const digest = computeDigest(bytes)

/** Serves a cache with one large manifest on disk, whose links cannot be read. */
async function serveManifest(failure: Error, opened = Promise.resolve(), onAsked = () => {}) {
  const path = join(await temporaryFolder(), 'manifest')
  await writeFile(path, bytes)
  const stored = {
    open: async () => new FileOpenBlob(digest, bytes.length, await open(path)),
    use: () => Promise.reject(failure),
    links: () => Promise.reject(failure),
  }
  const provenance = { registry: 'docker.io', outcome: 'hit', cacheStatus: undefined } as const
  const answer = { digest, mediaType: mediaType.ociManifest, size: bytes.length, body: undefined, stored, provenance }
  const log: [level: string, message: string][] = []
  const at = (level: string) => (_: object, message: string) => void log.push([level, message])
  const logger: Logger = { debug: at('debug'), info: at('info'), warn: at('warn'), error: at('error') }
  const idle = 5000
  const handle = createHandler({
    registry: opened.then(() => ({ manifest: async () => (onAsked(), answer) }) as Partial<Registry> as Registry),
    addressing: 'proxy',
    access: 'anonymous',
    guard: createHostGuard([], () => {}),
    stats: undefined,
    sending: { sendBlob: createPortableSendBlob({ idle, buffers: new BufferPool() }), idle },
    defaultRegistry: 'docker.io',
    transfers: new TransferLog({ logger, clock: systemClock }),
    recent: new RecentRequests(systemClock),
    clients: new SeenClients(systemClock),
    logger,
  })
  const server = createServer(handle)
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => {
    server.closeAllConnections()
    server.close()
  })
  return { port: (server.address() as AddressInfo).port, log }
}

test.each([
  ['the disk fails', createSystemError('EIO', 'read', 'EIO: i/o error, read'), []],
  ['there is a bug', new Error('a bug'), [['error', 'could not sum up a transfer']]],
])(
  'an answer is complete, and logged once, also when %s while the log looks at its manifest',
  async (_, failure, errors) => {
    const { port, log } = await serveManifest(failure)
    const socket = connect(port, '127.0.0.1')
    onTestFinished(() => void socket.destroy())
    let text = ''
    socket.on('data', (chunk: Buffer) => (text += chunk.toString('latin1')))
    for (let request = 1; request <= 2; request++) {
      socket.write('GET /v2/library/app/manifests/v1 HTTP/1.1\r\nHost: localhost\r\n\r\n')
      await expect.poll(() => parseAnswers(text).filter(({ complete }) => complete)).toHaveLength(request)
      await sleep(50)
    }
    expect(parseAnswers(text).map(({ status, body }) => [status, computeDigest(body)])).toEqual([
      [200, digest],
      [200, digest],
    ])
    expect(socket.closed).toBe(false)
    expect(log.filter(([, message]) => message === 'request')).toEqual([
      ['info', 'request'],
      ['info', 'request'],
    ])
    expect(log.filter(([level]) => level === 'error')).toEqual([...errors, ...errors])
  },
)

test('a request waits for a registry that is being opened, and a ping does not', async () => {
  const opening = createDeferred()
  const { port } = await serveManifest(new Error('unused'), opening.promise)
  const url = `http://127.0.0.1:${port}`
  let answer: Answer | undefined
  const asked = get(url, '/v2/library/app/manifests/v1').then((received) => (answer = received))
  expect((await get(url, '/v2/')).status).toBe(200)
  await sleep(50)
  expect(answer).toBeUndefined()
  opening.resolve()
  expect(computeDigest((await asked).body)).toBe(digest)
})

test('a request whose client left while the registry was being opened is not carried out', async () => {
  const opening = createDeferred()
  let asked = 0
  const { port, log } = await serveManifest(new Error('unused'), opening.promise, () => (asked += 1))
  const socket = connect(port, '127.0.0.1')
  socket.write('GET /v2/library/app/manifests/v1 HTTP/1.1\r\nHost: localhost\r\n\r\n')
  await sleep(100)
  socket.destroy()
  await sleep(100)
  opening.resolve()
  await expect.poll(() => log.map(([, message]) => message)).toEqual(['request'])
  expect(asked).toBe(0)
})
