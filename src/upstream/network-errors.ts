import { getCode, isConnectionFailure } from '../lib/errors.ts'
import { findProcessFaultCode } from '../lib/system-errors.ts'
import { type Outage, TransientError } from './retry.ts'
import { UpstreamError } from './upstream.ts'

const connectFailures = new Map([
  ['ECONNREFUSED', 'refused the connection'],
  ['EHOSTUNREACH', 'cannot be reached'],
  ['ENETUNREACH', 'cannot be reached'],
  ['EADDRNOTAVAIL', 'cannot be reached'],
])

const unresolvedCodes = new Set(['ENOTFOUND', 'EAI_AGAIN'])

const timeouts = new Map<string, { readonly why: string; readonly outage: Outage }>([
  ['UND_ERR_CONNECT_TIMEOUT', { why: 'did not accept the connection in time', outage: 'unreachable' }],
  ['ETIMEDOUT', { why: 'did not accept the connection in time', outage: 'unreachable' }],
  ['UND_ERR_HEADERS_TIMEOUT', { why: 'did not answer in time', outage: 'silent' }],
])

/** Certificates that no CA setting makes valid. */
const certificateFaults = new Map([
  ['CERT_HAS_EXPIRED', 'presented a certificate that has expired'],
  ['CERT_NOT_YET_VALID', 'presented a certificate that is not valid yet; check the clock of this machine'],
  ['CERT_REVOKED', 'presented a certificate that was revoked'],
  ['ERR_TLS_CERT_ALTNAME_INVALID', 'presented a certificate for another host name'],
  ['HOSTNAME_MISMATCH', 'presented a certificate for another host name'],
])

const trustCode = /^(CERT_|UNABLE_TO_|SELF_SIGNED_|DEPTH_ZERO_|INVALID_CA$|ERR_SSL_CERTIFICATE_VERIFY_FAILED$)/

const tlsCode = /^(ERR_SSL_|EPROTO$)/

/** Matches how OpenSSL reports the plain text of an HTTP server, in a code or, with EPROTO, in a message. */
const plainTextInsteadOfTls = /wrong[ _]version[ _]number|packet[ _]length[ _]too[ _]long/i

/** Describes a request that got no response. */
interface FailedRequest {
  /** Names the upstream. */
  readonly host: string
  /** Names the host that the request goes to, with its port. */
  readonly target: string
  /** Is true if a redirect led to another origin. */
  readonly isRedirected: boolean
  /** Names the proxy that the request goes through. */
  readonly via?: string | undefined
}

/** Converts a failure before the response to an error. A failure of storage does not count as an outage of the registry. */
export function toRequestError({ host, target, isRedirected, via }: FailedRequest, error: unknown): Error {
  if (error instanceof UpstreamError || isBug(error)) return error
  const code = getCode(error) ?? ''
  const name = target === host ? host : `${host} (${target})`
  const where = via === undefined ? name : `${name}, through the proxy ${via},`
  const refusedBy = via === undefined ? undefined : toProxyError(via, name, isRedirected, error)
  if (refusedBy) return refusedBy
  const own = findProcessFaultCode(error)
  if (own !== undefined)
    return new TransientError('unavailable', 503, `The mirror could not send a request to ${name} (${own}).`, {
      cause: error,
    })
  const isUnresolved = unresolvedCodes.has(code)
  const why = isUnresolved ? describeUnresolved(error) : connectFailures.get(code)
  const breaksCircuit = !isRedirected
  if (why) {
    const options = { breaksCircuit, outage: 'unreachable', cause: error } as const
    // The reason names the host that could not be resolved.
    const who = isUnresolved && via === undefined ? host : where
    return new TransientError('unavailable', 502, `${who} ${why}.`, options)
  }
  const late = timeouts.get(code)
  if (late) {
    const options = { breaksCircuit, outage: late.outage, cause: error }
    return new TransientError('unavailable', 504, `${where} ${late.why}.`, options)
  }
  const tls = describeTlsFailure(code, error)
  if (tls !== undefined) {
    const next = {
      trust: `; set upstreams."${host}".ca to trust your own CA.`,
      plain: isRedirected || via !== undefined ? '.' : '. If it speaks plain HTTP, its URL must begin with http://.',
      other: '.',
    }
    return new UpstreamError('unavailable', 502, `${where} ${tls.why} (${code})${next[tls.kind]}`, { cause: error })
  }
  return new TransientError('unavailable', 502, `${where} broke the connection (${code || 'no reason given'}).`, {
    cause: error,
  })
}

/** Describes a failure of TLS; undefined for any other failure. Only a failure of trust is one that a CA setting fixes. */
function describeTlsFailure(
  code: string,
  error: unknown,
): { readonly why: string; readonly kind: 'trust' | 'plain' | 'other' } | undefined {
  const fault = certificateFaults.get(code)
  if (fault !== undefined) return { why: fault, kind: 'other' }
  if (trustCode.test(code)) return { why: 'presented a certificate that is not trusted', kind: 'trust' }
  if (!tlsCode.test(code)) return undefined
  const text = `${code} ${error instanceof Error ? error.message : ''}`
  if (plainTextInsteadOfTls.test(text)) return { why: 'does not speak TLS', kind: 'plain' }
  return { why: 'failed the TLS handshake', kind: 'other' }
}

/** Names the hostname that failed, because it may be the upstream's or the proxy's. */
function describeUnresolved(error: unknown): string {
  const hostname = error instanceof Error && 'hostname' in error ? `the name ${String(error.hostname)}` : 'its name'
  return `cannot be reached: ${hostname} could not be resolved (offline, or DNS)`
}

/** Converts a proxy's refusal to connect to an error; undefined for another failure. undici reports the status only in the message. */
function toProxyError(via: string, name: string, isRedirected: boolean, error: unknown): UpstreamError | undefined {
  const status = /^Proxy (?:response|Authentication Required) \((\d{3})\)/.exec(
    error instanceof Error ? error.message : '',
  )?.[1]
  if (status === undefined) return undefined
  const why =
    status === '407' ? 'requires a user name and password, or rejected the given ones' : `refuses to connect to ${name}`
  const message = `The proxy ${via} ${why} (${status}).`
  if (Number(status) < 500) return new UpstreamError('unavailable', 502, message, { cause: error })
  return new TransientError('unavailable', 502, message, {
    breaksCircuit: !isRedirected,
    outage: 'unreachable',
    cause: error,
  })
}

/** Converts a failure within a body to an error, which does not count as an outage of the upstream (decision D6). */
export function toBodyError(host: string, error: unknown): Error {
  if (error instanceof UpstreamError || isBug(error)) return error
  const code = getCode(error) ?? ''
  const stalled = code === 'UND_ERR_BODY_TIMEOUT'
  const message = stalled
    ? `${host} stopped sending.`
    : `${host} closed the connection in the middle of the body (${code || 'no reason given'}).`
  return new TransientError('unavailable', stalled ? 504 : 502, message, { cause: error })
}

/** Checks whether an error is a bug: Node reports bad arguments with an `ERR_*` code, and other bugs have no code. */
function isBug(error: unknown): error is Error {
  const code = getCode(error)
  return code === undefined ? error instanceof TypeError : code.startsWith('ERR_') && !isConnectionFailure(error)
}
