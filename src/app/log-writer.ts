import { writeSync } from 'node:fs'
import { errnoOf } from '../lib/errors.ts'

/**
 * Writes lines to a descriptor, those of one turn of the event loop in one go: with thousands of requests a second, a system
 * call for each line is most of what it costs. Synchronous all the same: the last words before an end are the ones that matter.
 */
export function createLogWriter(descriptor: number): { write(line: string): void } {
  let lines: string[] = []
  const flush = () => {
    if (lines.length === 0) return
    const text = lines.join('')
    lines = []
    writeAll(descriptor, Buffer.from(text))
  }
  process.once('exit', flush)
  return {
    write(line) {
      if (lines.push(line) === 1) setImmediate(flush)
    },
  }
}

/** A log that cannot be written is lost: it must not take the program with it. */
function writeAll(descriptor: number, bytes: Uint8Array): void {
  for (let written = 0; written < bytes.length;) {
    try {
      written += writeSync(descriptor, bytes, written)
    } catch (error) {
      const code = errnoOf(error)
      if (code === undefined) throw error
      if (code !== 'EAGAIN') return
      // Whoever reads the log is slow; there is no other way to wait for him here.
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10)
    }
  }
}
