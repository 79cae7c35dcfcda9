import { createCipheriv } from 'node:crypto'

/** Makes bytes that do not compress; equal sizes and seeds give equal bytes. */
export function noise(size: number, seed = 0): Buffer {
  const key = Buffer.alloc(16)
  key.writeUInt32LE(seed)
  return createCipheriv('aes-128-ctr', key, Buffer.alloc(16)).update(Buffer.alloc(size))
}
