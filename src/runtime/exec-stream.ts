import { Duplex } from 'node:stream'

const headerBytes = 8
const stdout = 1

/** What a program in a container has complained about. */
export class ProgramError extends Error {
  override name = 'ProgramError'
}

/**
 * What a program in a container reads and writes, of the stream that the engine attaches to it: there what it writes comes in
 * frames of 8 bytes (1 stdout or 2 stderr, three zeroes, length) and a payload. What it has said on stderr is the ProgramError
 * that ends it.
 * https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerAttach
 */
export function execStream(attached: Duplex): Duplex {
  let header = Buffer.alloc(0)
  let left = 0
  let said = ''

  /** False when whoever reads cannot keep up. */
  function take(bytes: Buffer): boolean {
    let isWelcome = true
    while (bytes.length > 0) {
      if (left === 0) {
        const missing = headerBytes - header.length
        header = Buffer.concat([header, bytes.subarray(0, missing)])
        bytes = bytes.subarray(missing)
        if (header.length < headerBytes) return isWelcome
        left = header.readUInt32BE(4)
      }
      const payload = bytes.subarray(0, left)
      bytes = bytes.subarray(left)
      left -= payload.length
      if (header[0] !== stdout) said += payload.toString()
      else if (payload.length > 0) isWelcome = stream.push(payload)
      if (left === 0) header = Buffer.alloc(0)
    }
    return isWelcome
  }

  const stream = new Duplex({
    read: () => void attached.resume(),
    write: (chunk, _encoding, done) => void attached.write(chunk, (error) => done(error)),
    final: (done) => void attached.end(() => done()),
    destroy(error, done) {
      attached.destroy()
      done(error)
    },
  })
  attached.on('data', (bytes: Buffer) => {
    if (!take(bytes)) attached.pause()
  })
  attached.once('error', (error) => stream.destroy(error))
  const end = () => {
    if (said !== '') stream.destroy(new ProgramError(said.trim()))
    else stream.push(null)
  }
  attached.once('end', end)
  attached.once('close', end)
  return stream
}
