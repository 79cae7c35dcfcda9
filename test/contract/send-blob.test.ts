import { once } from 'node:events'
import { createServer } from 'node:http'
import { describe, expect, test } from 'vitest'
import { BufferPool, createPortableSendBlob, type SendBlob } from '../../src/server/send/send-blob.ts'
import { chooseSendBlob, createNativeSendBlob, loadLibc } from '../../src/server/send/sendfile.ts'
import { sendBlobContract } from './send-blob.ts'

const portable = (idle: number) => createPortableSendBlob({ idle, buffers: new BufferPool() })

async function native(idle: number): Promise<SendBlob> {
  return createNativeSendBlob({ idle, portable: portable(idle), libc: (await loadLibc(process))! })
}

sendBlobContract('sending by reading the file', async (idle) => portable(idle))

describe.runIf(process.platform === 'linux')('on Linux', () => {
  sendBlobContract('sending by sendfile', native)

  test('blobs are sent with sendfile, unless the client uses TLS or sendfile is disabled', async () => {
    const kind = async (plain: boolean, env: Record<string, string>) =>
      (await chooseSendBlob({ idle: 1000, plain, env })).kind
    expect(await kind(true, {})).toBe('sendfile')
    expect(await kind(true, { MIRROR_NO_SENDFILE: '0' })).toBe('sendfile')
    expect(await kind(true, { MIRROR_NO_SENDFILE: '1' })).toBe('portable')
    expect(await kind(false, {})).toBe('portable')
  })

  test('memory is trimmed with the GNU C library', async () => {
    const { trimMemory } = (await loadLibc(process))!
    const { header } = process.report.getReport() as { header: { glibcVersionRuntime?: string } }
    expect(trimMemory !== undefined).toBe(header.glibcVersionRuntime !== undefined)
    await trimMemory?.()
  })

  test('a listening socket accepts a congestion control of every kernel, and other descriptors do not', async () => {
    const kernel = (await loadLibc(process))!
    const server = createServer().listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { fd } = (server as unknown as { _handle: { fd: number } })._handle
    expect(kernel.setCongestionControl(fd, 'reno')).toBe(true)
    expect(kernel.setCongestionControl(fd, 'no such thing')).toBe(false)
    expect(kernel.setCongestionControl(-1, 'reno')).toBe(false)
    server.close()
    await once(server, 'close')
  })
})

test('other platforms have no such calls, and log nothing about it', async () => {
  expect(await loadLibc({ platform: 'darwin', arch: 'arm64' })).toBe(undefined)
  expect(await loadLibc({ platform: 'linux', arch: 'arm' })).toBe(undefined)
})
