import { codeOf, isConnectionFailure } from '../lib/errors.ts'
import { ownFailureCode } from '../lib/system-errors.ts'
import { TransientError, type Outage } from './transient-error.ts'
import { UpstreamError } from './upstream.ts'

const refused = new Map([
  ['ECONNREFUSED', 'refused the connection'],
  ['EHOSTUNREACH', 'cannot be reached'],
  ['ENETUNREACH', 'cannot be reached'],
  ['EADDRNOTAVAIL', 'cannot be reached'],
])
const unresolved = new Set(['ENOTFOUND', 'EAI_AGAIN'])
const timedOut = new Map<string, { readonly why: string; readonly outage: Outage }>([
  ['UND_ERR_CONNECT_TIMEOUT', { why: 'did not accept the connection in time', outage: 'unreachable' }],
  ['ETIMEDOUT', { why: 'did not accept the connection in time', outage: 'unreachable' }],
  ['UND_ERR_HEADERS_TIMEOUT', { why: 'did not answer in time', outage: 'silent' }],
])
const certificate =
  /^(CERT_|ERR_TLS_CERT|UNABLE_TO_|SELF_SIGNED_|DEPTH_ZERO_|ERR_SSL_|EPROTO$|HOSTNAME_MISMATCH$|INVALID_CA$)/

export interface Hop {
  /** The upstream. */
  readonly host: string
  /** The host that was asked on its behalf, with its port. */
  readonly target: string
  /** Whether it is of another origin than the one that was asked first. */
  readonly foreign: boolean
  /** The proxy that it was asked through. */
  readonly via?: string | undefined
}

/** What went wrong before an answer came. Storage that cannot be reached says nothing on whether the registry is up. */
export function requestFailure({ host, target, foreign, via }: Hop, error: unknown): Error {
  if (error instanceof UpstreamError || isBug(error)) return error
  const code = codeOf(error) ?? ''
  const name = target === host ? host : `${host} (${target})`
  const where = via === undefined ? name : `${name}, asked through the proxy ${via},`
  const refusedBy = via === undefined ? undefined : proxyRefusal(via, name, foreign, error)
  if (refusedBy) return refusedBy
  const own = ownFailureCode(error)
  if (own !== undefined)
    return new TransientError('unavailable', 503, `The mirror itself could not ask ${name} (${own}).`, { cause: error })
  const why = unresolved.has(code) ? whyUnresolved(error) : refused.get(code)
  const breaksCircuit = !foreign
  if (why) {
    const options = { breaksCircuit, outage: 'unreachable', cause: error } as const
    return new TransientError('unavailable', 502, `${where} ${why}.`, options)
  }
  const late = timedOut.get(code)
  if (late) {
    const options = { breaksCircuit, outage: late.outage, cause: error }
    return new TransientError('unavailable', 504, `${where} ${late.why}.`, options)
  }
  if (certificate.test(code)) {
    const message = `${where} could not prove who it is (${code}); a CA of your own goes to upstreams."${host}".ca.`
    return new UpstreamError('unavailable', 502, message, { cause: error })
  }
  return new TransientError('unavailable', 502, `${where} broke the connection (${code || 'no reason given'}).`, {
    cause: error,
  })
}

/** It may be the name of the upstream, or of the proxy. */
function whyUnresolved(error: unknown): string {
  const hostname = error instanceof Error && 'hostname' in error ? `the name ${String(error.hostname)}` : 'its name'
  return `cannot be reached: ${hostname} could not be resolved (offline, or DNS)`
}

/** What a proxy said that would not make a connection; undefined for another failure. undici has its status in a text only. */
function proxyRefusal(via: string, name: string, foreign: boolean, error: unknown): UpstreamError | undefined {
  const status = /^Proxy (?:response|Authentication Required) \((\d{3})\)/.exec(
    error instanceof Error ? error.message : '',
  )?.[1]
  if (status === undefined) return undefined
  const why = status === '407' ? 'wants a user name and a password, or other ones' : `makes no connection to ${name}`
  const message = `The proxy ${via} ${why} (${status}).`
  if (Number(status) < 500) return new UpstreamError('unavailable', 502, message, { cause: error })
  return new TransientError('unavailable', 502, message, {
    breaksCircuit: !foreign,
    outage: 'unreachable',
    cause: error,
  })
}

/** What went wrong within a body. It says nothing on whether the upstream is up (decision D6). */
export function bodyFailure(host: string, error: unknown): Error {
  if (error instanceof UpstreamError || isBug(error)) return error
  const code = codeOf(error) ?? ''
  const stalled = code === 'UND_ERR_BODY_TIMEOUT'
  const message = stalled ? `${host} stopped sending.` : `${host} broke off in mid-body (${code || 'no reason given'}).`
  return new TransientError('unavailable', stalled ? 504 : 502, message, { cause: error })
}

/** Node refuses arguments with an `ERR_*`, and the rest of our own mistakes have no code at all. */
function isBug(error: unknown): error is Error {
  const code = codeOf(error)
  return code === undefined ? error instanceof TypeError : code.startsWith('ERR_') && !isConnectionFailure(error)
}
