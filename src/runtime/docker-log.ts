import { StringDecoder } from 'node:string_decoder'

const headerBytes = 8

/**
 * The lines in a container's log as the engine sends it: frames of 8 bytes (stream, three zeroes, length) and a payload.
 * https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerAttach
 * A stream that is cut when the signal aborts ends quietly.
 */
export async function* linesOfLog(stream: AsyncIterable<Buffer | string>, signal: AbortSignal): AsyncGenerator<string> {
  // A line may be cut anywhere, and the two streams mix between lines only.
  const texts = new Map<number, { decoder: StringDecoder; rest: string }>()
  let bytes = Buffer.alloc(0)
  try {
    for await (const chunk of stream) {
      bytes = Buffer.concat([bytes, Buffer.from(chunk as Buffer)])
      while (bytes.length >= headerBytes && bytes.length >= headerBytes + bytes.readUInt32BE(4)) {
        const end = headerBytes + bytes.readUInt32BE(4)
        const text = texts.get(bytes[0]!) ?? { decoder: new StringDecoder('utf8'), rest: '' }
        texts.set(bytes[0]!, text)
        const lines = (text.rest + text.decoder.write(bytes.subarray(headerBytes, end))).split('\n')
        text.rest = lines.pop()!
        yield* lines
        bytes = bytes.subarray(end)
      }
    }
  } catch (error) {
    if (!signal.aborted) throw error
  }
  for (const { rest } of texts.values()) if (rest !== '') yield rest
}
