import { request, type IncomingHttpHeaders, type IncomingMessage } from 'node:http'

export interface GetOptions {
  readonly method?: string
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: string | Buffer
  readonly signal?: AbortSignal
  /** Called with the first byte of the body. */
  readonly onFirstByte?: () => void
}

export interface Answer {
  readonly status: number
  readonly headers: IncomingHttpHeaders
  readonly body: Buffer
  /** Whether all of it came: false when the connection was cut short of Content-Length or of the last chunk. */
  readonly complete: boolean
  /** `performance.now()` of the first byte of the body; undefined when it has none. */
  readonly firstByteAt: number | undefined
}

/**
 * Asks on a connection of its own. The path goes out as it is: nothing is normalised or escaped. Rejects when no answer
 * came at all.
 */
export async function get(baseUrl: string, path: string, options: GetOptions = {}): Promise<Answer> {
  const response = await open(baseUrl, path, options)
  const chunks: Buffer[] = []
  let firstByteAt: number | undefined
  try {
    for await (const chunk of response as AsyncIterable<Buffer>) {
      if (firstByteAt === undefined) options.onFirstByte?.()
      firstByteAt ??= performance.now()
      chunks.push(chunk)
    }
  } catch {
    // Cut short: `complete` says so.
  }
  const { statusCode, headers, complete } = response
  return { status: statusCode!, headers, body: Buffer.concat(chunks), complete, firstByteAt }
}

/** The head of an answer; whoever asked reads or destroys the body. */
export function open(baseUrl: string, path: string, options: GetOptions = {}): Promise<IncomingMessage> {
  const { hostname, port } = new URL(baseUrl)
  const { method = 'GET', headers = {}, body, signal } = options
  return new Promise((resolve, reject) => {
    const asked = request(
      { hostname, port, path, method, headers, agent: false, ...(signal ? { signal } : {}) },
      resolve,
    )
    asked.once('error', reject).end(body)
  })
}
