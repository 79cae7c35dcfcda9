import { MessageChannel } from 'node:worker_threads'

/** Gives memory back at once; nobody may use these bytes any more. */
export type BufferRelease = (chunks: readonly Uint8Array[]) => void

/**
 * Buffers that hold what came from the network weigh nothing in the heap, so that the collector lets tens of megabytes of them
 * pile up, and then goes through all of the heap for them, again and again. What is sent to a port that nobody listens to is gone
 * at once. Only bytes that are all of their memory are released: others may stand beside them.
 */
export function createBufferRelease(): BufferRelease {
  const { port1, port2 } = new MessageChannel()
  port2.close()
  return (chunks) => {
    const buffers = chunks.filter(isWhole).map(({ buffer }) => buffer as ArrayBuffer)
    if (buffers.length > 0) port1.postMessage(undefined, [...new Set(buffers)])
  }
}

function isWhole({ buffer, byteLength }: Uint8Array): boolean {
  return byteLength > 0 && buffer.byteLength === byteLength && buffer instanceof ArrayBuffer
}
