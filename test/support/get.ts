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
  /** False when the connection ended before Content-Length or the last chunk was reached. */
  readonly complete: boolean
  /** `performance.now()` of the first byte of the body; undefined when it has none. */
  readonly firstByteAt: number | undefined
}

/**
 * Sends a request on a connection of its own. The path is sent as it is, neither normalised nor escaped. Rejects when no
 * response arrives.
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
    // Ignore the error, because `complete` is false then.
  }
  const { statusCode, headers, complete } = response
  return { status: statusCode!, headers, body: Buffer.concat(chunks), complete, firstByteAt }
}

/** Sends a request and returns its response; the caller reads or destroys the body. */
export function open(baseUrl: string, path: string, options: GetOptions = {}): Promise<IncomingMessage> {
  const { hostname: bracketed, port } = new URL(baseUrl)
  const hostname = bracketed.replace(/^\[|\]$/g, '')
  const { method = 'GET', headers = {}, body, signal } = options
  return new Promise((resolve, reject) => {
    const asked = request(
      { hostname, port, path, method, headers, agent: false, ...(signal ? { signal } : {}) },
      resolve,
    )
    asked.once('error', reject).end(body)
  })
}
