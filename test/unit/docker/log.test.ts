import { expect, test } from 'vitest'
import { readLogLines } from '../../../src/docker/connection.ts'

const never = new AbortController().signal

function frame(stream: number, text: string): Buffer {
  const header = Buffer.from([stream, 0, 0, 0, 0, 0, 0, 0])
  header.writeUInt32BE(Buffer.byteLength(text), 4)
  return Buffer.concat([header, Buffer.from(text)])
}

async function* inPieces(bytes: Buffer, size: number) {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
}

async function linesOf(bytes: Buffer, size: number): Promise<string[]> {
  const lines: string[] = []
  for await (const line of readLogLines(inPieces(bytes, size), never)) lines.push(line)
  return lines
}

test.each([1, 7, 10_000])('lines of a log are complete when it arrives %i bytes at a time', async (size) => {
  const log = [frame(2, 'one\nt'), frame(1, 'from the other\n'), frame(2, 'wö\n'), frame(2, 'three')]
  expect(await linesOf(Buffer.concat(log), size)).toEqual(['one', 'from the other', 'twö', 'three'])
})

test('a log ends quietly when the signal aborts, and fails when it is cut otherwise', async () => {
  async function* broken() {
    yield frame(1, 'one\n')
    throw new Error('aborted')
  }
  const read = async (signal: AbortSignal) => {
    const lines: string[] = []
    for await (const line of readLogLines(broken(), signal)) lines.push(line)
    return lines
  }
  expect(await read(AbortSignal.abort())).toEqual(['one'])
  await expect(read(never)).rejects.toThrow('aborted')
})
