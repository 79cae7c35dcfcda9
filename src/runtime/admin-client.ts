import { readFile } from 'node:fs/promises'
import { request, type IncomingMessage } from 'node:http'
import { createInterface } from 'node:readline'
import { MirrorError, errnoOf, exitCode } from '../lib/errors.ts'
import type {
  PruneRequest,
  RemovalReport,
  RemoveRequest,
  StatusReport,
  VerifyProgress,
  VerifyRequest,
} from '../server/admin-api.ts'

/** The running mirror, asked over its admin listener. Throws a MirrorError when it does not answer or refuses. */
export interface AdminClient {
  status(): Promise<StatusReport>
  remove(names: RemoveRequest): Promise<RemovalReport>
  prune(how: PruneRequest): Promise<RemovalReport>
  /** Progress until `done`. */
  verify(how: VerifyRequest, signal: AbortSignal): AsyncIterable<VerifyProgress>
  /** Asks it to drain and end. */
  stop(): Promise<void>
}

export interface AdminClientOptions {
  /** `http://127.0.0.1:5056` */
  url: string
  tokenFile: string
  /** How long it may be silent. */
  timeoutMs: number
}

export function createAdminClient({ url, tokenFile, timeoutMs }: AdminClientOptions): AdminClient {
  async function ask(method: string, path: string, body?: object, signal?: AbortSignal): Promise<IncomingMessage> {
    const token = await readToken(tokenFile)
    const sent = request(new URL(path, reachable(url)), {
      method,
      agent: false,
      timeout: timeoutMs,
      ...(signal && { signal }),
      headers: {
        ...(body && { 'content-type': 'application/json' }),
        ...(token !== undefined && { authorization: `Bearer ${token}` }),
      },
    })
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      sent.once('timeout', () => sent.destroy(unreachable(`it was silent for ${timeoutMs / 1000} s`)))
      sent.once('response', resolve)
      sent.once('error', (error) => reject(errnoOf(error) === undefined ? error : unreachable(error.message, error)))
      sent.end(body && JSON.stringify(body))
    })
    // A time-out while the body arrives surfaces where the body is read.
    sent.on('error', (error) => response.destroy(error))
    const status = response.statusCode ?? 0
    if (status >= 200 && status < 300) return response
    throw refused(status, await textOf(response))
  }

  function unreachable(why: string, cause?: unknown): MirrorError {
    return new MirrorError(`The mirror does not answer on ${url}: ${why}.`, {
      exit: exitCode.missing,
      hints: ['mirror logs', 'mirror down && mirror up'],
      cause,
    })
  }

  function refused(status: number, answer: string): MirrorError {
    if (status === 401 || status === 403)
      return new MirrorError(`The mirror on ${url} refuses the token in ${tokenFile}.`, {
        hints: ['mirror down && mirror up   (makes a new token)'],
      })
    return new MirrorError(`The mirror on ${url} answered ${status}: ${answer.trim().slice(0, 500)}`)
  }

  const json = async <T>(response: IncomingMessage) => JSON.parse(await textOf(response)) as T
  return {
    status: async () => json(await ask('GET', '/api/status')),
    remove: async (names) => json(await ask('POST', '/api/cache/rm', names)),
    prune: async (how) => json(await ask('POST', '/api/cache/prune', how)),
    async *verify(how, signal) {
      const response = await ask('POST', '/api/cache/verify', how, signal)
      for await (const line of createInterface({ input: response, crlfDelay: Infinity }))
        if (line !== '') yield JSON.parse(line) as VerifyProgress
    },
    stop: async () => void (await textOf(await ask('POST', '/api/stop'))),
  }
}

async function textOf(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = []
  for await (const chunk of response) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks).toString('utf8')
}

async function readToken(tokenFile: string): Promise<string | undefined> {
  try {
    return (await readFile(tokenFile, 'utf8')).trim() || undefined
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw error
  }
}

/** A listener on every address is asked on the loopback one: others may be behind a firewall, and need the token for reading. */
function reachable(url: string): string {
  return url.replace('//0.0.0.0:', '//127.0.0.1:').replace('//[::]:', '//[::1]:')
}
