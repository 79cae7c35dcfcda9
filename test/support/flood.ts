import { Agent, request } from 'node:http'

/** The outcome of many concurrent requests. */
export interface FloodResult {
  /** Number of responses by status; `cut`: connections that ended without one, `wrong`: a 200 with other content. */
  readonly statuses: Readonly<Record<string, number>>
  /** Number of 503 and 429 responses without `Retry-After`. */
  readonly withoutRetryAfter: number
}

export interface FloodRequest {
  readonly method: string
  readonly path: string
  readonly headers?: Readonly<Record<string, string>>
  /** The body, in pieces. */
  readonly body?: readonly Buffer[]
  /** The expected body of a 200. */
  readonly content?: Buffer
}

/**
 * Sends requests at once, each on a connection of its own, and reads the responses to their end. Sends all heads before any body.
 * `keepAlive`: false requests `Connection: close`, which clients of registries do not do.
 */
export async function flood(
  url: string,
  requests: readonly FloodRequest[],
  { keepAlive = true }: { readonly keepAlive?: boolean } = {},
): Promise<FloodResult> {
  const statuses: Record<string, number> = {}
  let withoutRetryAfter = 0
  const agent = new Agent({ keepAlive, maxSockets: Infinity })
  const count = (status: string) => (statuses[status] = (statuses[status] ?? 0) + 1)
  const begin: (() => void)[] = []
  const heads: Promise<void>[] = []
  const ends = requests.map(
    ({ method, path, headers, body = [], content }) =>
      new Promise<void>((resolve) => {
        let isAnswered = false
        const length = body.reduce((sum, piece) => sum + piece.length, 0)
        const all = length === 0 ? { ...headers } : { ...headers, 'content-length': length }
        const asked = request(new URL(path, url), { method, headers: all, agent }, (response) => {
          isAnswered = true
          const status = response.statusCode!
          if ((status === 503 || status === 429) && response.headers['retry-after'] === undefined)
            withoutRetryAfter += 1
          let [at, isSame] = [0, true]
          response.on('data', (chunk: Buffer) => {
            isSame &&= content === undefined || chunk.equals(content.subarray(at, at + chunk.length))
            at += chunk.length
          })
          response.on('error', () => {})
          response.on('close', () => {
            const isRight = content === undefined || (isSame && at === content.length && response.complete)
            count(status === 200 && !isRight ? 'wrong' : String(status))
            resolve()
          })
        })
        asked.on('error', () => {
          // Wait for the close event of a response that has begun.
          if (isAnswered) return
          count('cut')
          resolve()
        })
        heads.push(
          new Promise((sent) => {
            asked.once('socket', (socket) => socket.once('connect', () => setImmediate(sent)))
            asked.once('close', sent)
          }),
        )
        asked.flushHeaders()
        begin.push(() => {
          for (const piece of body) asked.write(piece)
          asked.end()
        })
      }),
  )
  await Promise.all(heads)
  for (const each of begin) each()
  await Promise.all(ends)
  agent.destroy()
  return { statuses, withoutRetryAfter }
}
