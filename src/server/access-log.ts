import type { IncomingMessage } from 'node:http'
import type { Logger } from '../lib/logger.ts'
import { redact } from '../lib/redact.ts'
import type { Provenance } from '../registry/registry.ts'
import { plainAddress } from './host-guard.ts'

export interface Access {
  readonly status: number
  readonly bytes: number
  readonly milliseconds: number
  readonly provenance?: Provenance | undefined
  readonly error?: string | undefined
}

/** One line a request. Pings are no news. */
export function logAccess(logger: Logger, request: IncomingMessage, access: Access): void {
  const fields = {
    method: request.method,
    url: redact(request.url ?? '').slice(0, 1024),
    status: access.status,
    upstream: access.provenance?.registry,
    cache: access.provenance?.outcome,
    bytes: access.bytes,
    ms: Math.round(access.milliseconds),
    client: plainAddress(request.socket.remoteAddress ?? ''),
    agent: request.headers['user-agent']?.slice(0, 200),
    error: access.error,
  }
  if (access.status >= 500) logger.warn(fields, 'request')
  else if (access.provenance || access.status >= 400 || !isReading(request)) logger.info(fields, 'request')
  else logger.debug(fields, 'request')
}

function isReading({ method }: IncomingMessage): boolean {
  return method === 'GET' || method === 'HEAD'
}
