import { connect, type Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { onTestFinished } from 'vitest'

export interface SlowWriting {
  /** Bytes of the body. */
  readonly bytes: number
  /** Minimum duration of sending, ms. */
  readonly milliseconds: number
  /** An open connection; default: a new one. */
  readonly socket?: Socket
}

const pieces = 40

/**
 * Sends a head and then a body piece by piece, and reads nothing before all of it is sent, as a program that writes before it
 * reads. Rejects when the connection breaks. Returns all that the server has sent until it closed its side.
 */
export async function writeSlowly(url: string, head: string, options: SlowWriting): Promise<string> {
  const { hostname, port } = new URL(url)
  const { bytes, milliseconds, socket = connect({ host: hostname, port: Number(port), allowHalfOpen: true }) } = options
  onTestFinished(() => void socket.destroy())
  const broken = new Promise<never>((_, reject) => socket.once('error', reject))
  broken.catch(() => {})
  const write = (part: string | Buffer) =>
    Promise.race([broken, new Promise<void>((resolve) => socket.write(part, () => resolve()))])
  await write(head)
  for (let at = 0; at < pieces; at++) {
    await write(Buffer.alloc(bytes / pieces, 'x'))
    await sleep(milliseconds / pieces)
  }
  let text = ''
  socket.on('data', (chunk: Buffer) => (text += chunk.toString('latin1')))
  await Promise.race([broken, new Promise((resolve) => socket.once('end', resolve))])
  socket.end()
  return text
}
