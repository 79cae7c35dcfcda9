import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import { systemError } from './errors.ts'

/** More than any file that a mirror writes about itself. */
const mostBytes = 1024 * 1024

/**
 * The text of a file that holds little. Throws the system's error, and EFBIG for a file of more than `limit` bytes: it is not
 * what it was when it was written, and would not fit into memory.
 */
export async function readSmallFile(path: string, limit = mostBytes): Promise<string> {
  // A pipe in its place would keep everybody waiting.
  const file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK)
  try {
    const { size } = await file.stat()
    if (size > limit) throw systemError('EFBIG', 'read', `${path} has ${size} bytes, more than ${limit}`)
    const buffer = Buffer.alloc(size + 1)
    let length = 0
    for (;;) {
      const { bytesRead } = await file.read(buffer, length, buffer.length - length, length)
      length += bytesRead
      if (bytesRead === 0 || length === buffer.length) break
    }
    return buffer.toString('utf8', 0, length)
  } finally {
    await file.close()
  }
}
