import { randomBytes } from 'node:crypto'
import { get } from 'node:http'
import type { Duplex } from 'node:stream'
import { parseObject } from '../lib/json.ts'
import { healthProof } from '../server/health-proof.ts'
import { limitSilence } from './limit-silence.ts'

export interface HealthRequest {
  /** The mirror that has to be the one that answers; any when not given. */
  readonly instance?: string
  /** How long it may be silent. */
  readonly timeoutMs?: number
  /** How it is reached, where the address alone does not lead there. */
  readonly connect?: () => Promise<Duplex>
}

/** More than any answer to this question. */
const mostCharacters = 10_000

/** Whether a mirror's admin listener answers there; one that says that it cannot fetch is there all the same. */
export async function isHealthy(
  adminUrl: string,
  { instance, timeoutMs = 2000, connect }: HealthRequest = {},
): Promise<boolean> {
  const challenge = randomBytes(16).toString('hex')
  const url = new URL('/healthz', adminUrl)
  if (instance !== undefined) url.searchParams.set('challenge', challenge)
  const answer = await ask(url, timeoutMs, await connect?.())
  if (answer === undefined || instance === undefined) return answer !== undefined
  return parseObject(answer)?.['proof'] === healthProof(instance, challenge)
}

/** The body of a 200, or of a 503 in which a mirror describes itself; undefined for anything else. */
function ask(url: URL, timeout: number, connection: Duplex | undefined): Promise<string | undefined> {
  const by = connection ? { createConnection: () => connection } : { agent: false as const }
  if (connection) limitSilence(connection, timeout)
  return new Promise((resolve) => {
    const request = get(url, { ...by, timeout }, (response) => {
      let text = ''
      response.setEncoding('utf8').on('data', (part: string) => {
        text += part
        if (text.length > mostCharacters) request.destroy()
      })
      response.once('end', () => {
        const isDegraded = response.statusCode === 503 && parseObject(text)?.['status'] === 'degraded'
        resolve(response.statusCode === 200 || isDegraded ? text : undefined)
      })
    })
    request.once('timeout', () => request.destroy())
    request.once('error', () => resolve(undefined))
    request.once('close', () => resolve(undefined))
  })
}
