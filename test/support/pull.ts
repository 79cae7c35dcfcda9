import { open } from './get.ts'

export interface Pull {
  readonly status: number
  /** Bytes that came and were right. */
  readonly bytes: number
  /** Whether all of the content came, and nothing else. */
  readonly right: boolean
  /** `performance.now()` of the first byte and of the end. */
  readonly firstByteAt: number | undefined
  readonly endedAt: number
}

/** Gets a blob and compares it on the way, keeping nothing: for many clients and large blobs. */
export async function pull(baseUrl: string, path: string, content: Buffer): Promise<Pull> {
  const response = await open(baseUrl, path)
  let bytes = 0
  let same = true
  let firstByteAt: number | undefined
  try {
    for await (const chunk of response as AsyncIterable<Buffer>) {
      firstByteAt ??= performance.now()
      same &&= chunk.equals(content.subarray(bytes, bytes + chunk.length))
      bytes += chunk.length
    }
  } catch {
    // Cut short: `right` says so.
  }
  const right = same && response.complete && response.statusCode === 200 && bytes === content.length
  return { status: response.statusCode!, bytes, right, firstByteAt, endedAt: performance.now() }
}
