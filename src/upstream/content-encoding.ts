import { pipeline } from 'node:stream/promises'
import { promisify } from 'node:util'
import { brotliDecompress, createBrotliDecompress, createUnzip, unzip } from 'node:zlib'
import { codeOf } from '../lib/errors.ts'
import type { Answer } from './transport.ts'
import { UpstreamError } from './upstream.ts'

/** The encoding an answer claims in spite of `Accept-Encoding: identity`; some claim it of bytes that were never encoded. */
export function encodingOf(answer: Answer): string | undefined {
  const encoding = answer.header('content-encoding')?.trim().toLowerCase()
  return encoding === undefined || encoding === '' || encoding === 'identity' ? undefined : encoding
}

/** An answer's body without its encoding. Throws an UpstreamError (invalid) for what cannot be decoded. */
export async function* decodeBody(answer: Answer, encoding: string, where: string): AsyncGenerator<Uint8Array> {
  const decoder = isUnzippable(encoding) ? createUnzip() : encoding === 'br' ? createBrotliDecompress() : undefined
  if (!decoder) {
    answer.discard()
    throw undecodable(where, encoding)
  }
  // Its failure is the decoder's, and is met there.
  pipeline(answer.body, decoder).catch(() => {})
  try {
    for await (const chunk of decoder) yield chunk as Uint8Array
  } catch (error) {
    throw isDecoderError(error) ? undecodable(where, encoding) : error
  } finally {
    answer.discard()
  }
}

/** Bytes without their encoding, at most `limit` of them; undefined when there are more. */
export async function decodeBytes(
  bytes: Uint8Array,
  encoding: string,
  limit: number,
  where: string,
): Promise<Uint8Array | undefined> {
  const options = { maxOutputLength: limit }
  try {
    if (isUnzippable(encoding)) return await promisify(unzip)(bytes, options)
    if (encoding === 'br') return await promisify(brotliDecompress)(bytes, options)
  } catch (error) {
    if (codeOf(error) === 'ERR_BUFFER_TOO_LARGE') return undefined
    if (!isDecoderError(error)) throw error
  }
  throw undecodable(where, encoding)
}

function isUnzippable(encoding: string): boolean {
  return encoding === 'gzip' || encoding === 'x-gzip' || encoding === 'deflate'
}

function isDecoderError(error: unknown): boolean {
  return /^(Z_|ERR_)/.test(codeOf(error) ?? '')
}

function undecodable(where: string, encoding: string): UpstreamError {
  const shown = encoding.replaceAll(/[^\w, .-]/g, '?').slice(0, 40)
  return new UpstreamError('invalid', 502, `${where} answered with a body whose encoding (${shown}) makes no sense.`)
}
