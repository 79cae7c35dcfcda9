import { open } from './get.ts'

export interface Pull {
  readonly status: number
  /** Received bytes. */
  readonly bytes: number
  /** True when exactly the content was received. */
  readonly right: boolean
  /** `performance.now()` of the first byte and of the end. */
  readonly firstByteAt: number | undefined
  readonly endedAt: number
}

/** Gets a blob and compares it chunk by chunk without keeping it, for many clients and large blobs. */
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
    // Ignore the error, because `right` is false then.
  }
  const right = same && response.complete && response.statusCode === 200 && bytes === content.length
  return { status: response.statusCode!, bytes, right, firstByteAt, endedAt: performance.now() }
}
