import { describe, expect, test } from 'vitest'
import { chooseSendBlob } from '../../src/app/choose-send-blob.ts'
import { loadKernel } from '../../src/server/kernel.ts'
import { createNativeSendBlob } from '../../src/server/send-blob-native.ts'
import { BufferPool, createPortableSendBlob, type SendBlob } from '../../src/server/send-blob.ts'
import { sendBlobContract } from './send-blob.ts'

const portable = (idle: number) => createPortableSendBlob({ idle, buffers: new BufferPool() })

async function native(idle: number): Promise<SendBlob> {
  return createNativeSendBlob({ idle, portable: portable(idle), kernel: (await loadKernel(process))! })
}

sendBlobContract('sending by reading the file', async (idle) => portable(idle))

describe.runIf(process.platform === 'linux')('on Linux', () => {
  sendBlobContract('sending by sendfile', native)

  test('sendfile is what blobs are sent by, unless clients come with TLS or it is switched off', async () => {
    const kind = async (plain: boolean, env: Record<string, string>) =>
      (await chooseSendBlob({ idle: 1000, plain, env })).kind
    expect(await kind(true, {})).toBe('sendfile')
    expect(await kind(true, { MIRROR_NO_SENDFILE: '0' })).toBe('sendfile')
    expect(await kind(true, { MIRROR_NO_SENDFILE: '1' })).toBe('portable')
    expect(await kind(false, {})).toBe('portable')
  })
})

test('elsewhere there are no such calls, and nothing is said of it', async () => {
  expect(await loadKernel({ platform: 'darwin', arch: 'arm64' })).toBe(undefined)
  expect(await loadKernel({ platform: 'linux', arch: 'arm' })).toBe(undefined)
})
