import type { IncomingMessage } from 'node:http'
import { Agent, request } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'

export interface ComingAndGoing {
  /** Complete and correct responses. */
  whole: number
  /** Responses with a wrong byte, complete or not. */
  wrong: number
  /** Responses that broke off although the client had not left. */
  broken: number
  /** Clients that left before the end. */
  left: number
}

export interface Visit {
  readonly path: string
  readonly content: Buffer
}

/**
 * Runs so many clients at once, for so long. Each sends one request after the other, on new or kept connections; half of the
 * requests end early at a random byte: with a close, with a reset, or after a pause without reading.
 */
export async function comeAndGo(
  baseUrl: string,
  visits: readonly Visit[],
  options: { readonly clients: number; readonly milliseconds: number },
): Promise<ComingAndGoing> {
  const seen: ComingAndGoing = { whole: 0, wrong: 0, broken: 0, left: 0 }
  const agent = new Agent({ keepAlive: true, maxSockets: options.clients })
  const until = performance.now() + options.milliseconds
  const client = async () => {
    while (performance.now() < until) {
      await visit(baseUrl, visits[Math.floor(Math.random() * visits.length)]!, agent, seen)
    }
  }
  await Promise.all(Array.from({ length: options.clients }, client))
  agent.destroy()
  return seen
}

async function visit(baseUrl: string, { path, content }: Visit, agent: Agent, seen: ComingAndGoing): Promise<void> {
  const first = Math.random() < 0.3 ? Math.floor(Math.random() * content.length) : 0
  const headers = first === 0 ? {} : { range: `bytes=${first}-` }
  const { hostname, port } = new URL(baseUrl)
  const asked = request({ hostname, port, path, headers, agent: Math.random() < 0.5 ? agent : false }).end()
  const leaves = Math.random() < 0.5 ? Math.floor(Math.random() * content.length) : Infinity
  let at = first
  let same = true
  try {
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      asked.once('response', resolve).once('error', reject)
    })
    for await (const chunk of response as AsyncIterable<Buffer>) {
      same &&= chunk.equals(content.subarray(at, at + chunk.length))
      at += chunk.length
      if (at - first < leaves) continue
      if (Math.random() < 0.2) await sleep(Math.random() * 200)
      if (Math.random() < 0.5) response.socket.resetAndDestroy()
      break
    }
    if (at - first >= leaves) seen.left += 1
    else if (same && response.complete && at === content.length) seen.whole += 1
    else seen.broken += 1
  } catch {
    if (at - first >= leaves) seen.left += 1
    else seen.broken += 1
  } finally {
    asked.destroy()
    if (!same) seen.wrong += 1
  }
}
