import type { Server } from 'node:http'
import type { BlobSending } from '../server/pull.ts'
import { loadKernel, type Kernel } from '../server/send/sendfile.ts'
import { createNativeSendBlob } from '../server/send-blob-native.ts'
import { BufferPool, createPortableSendBlob } from '../server/send/send-blob.ts'
import { createUnpacing } from '../server/unpaced.ts'

export interface SendBlobChoice {
  /** How stored blobs leave. */
  readonly kind: 'sendfile' | 'portable'
  readonly sending: BlobSending
  /** For a listener whose clients are on this machine; undefined where there is nothing to be done. */
  readonly unpace: ((server: Server) => void) | undefined
  /** Gives memory back to the system; undefined where there is no such call. */
  readonly trimMemory: Kernel['trimMemory']
}

/**
 * The fastest way to send blobs that there is here. `idle`: a client that takes nothing for so long is cut off, ms.
 * `plain`: clients come without TLS, so that the kernel can write to them by itself.
 */
export async function chooseSendBlob(options: {
  readonly idle: number
  readonly plain: boolean
  readonly env: Readonly<Record<string, string | undefined>>
}): Promise<SendBlobChoice> {
  const { idle, plain, env } = options
  const buffers = new BufferPool()
  const portable = createPortableSendBlob({ idle, buffers })
  const kernel = isSet(env['MIRROR_NO_SENDFILE']) ? undefined : await loadKernel(process)
  const native = kernel && plain ? createNativeSendBlob({ idle, portable, kernel }) : undefined
  return {
    kind: native ? 'sendfile' : 'portable',
    sending: { idle, sendBlob: native ?? portable },
    unpace: createUnpacing(kernel),
    trimMemory: kernel?.trimMemory,
  }
}

function isSet(value: string | undefined): boolean {
  return value !== undefined && value !== '' && value !== '0' && value !== 'false'
}
