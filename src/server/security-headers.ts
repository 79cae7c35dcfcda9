import { ServerResponse, type OutgoingHttpHeader, type OutgoingHttpHeaders } from 'node:http'

/**
 * What every answer of every listener says to browsers, which are no clients of a registry: render nothing, run nothing, guess no
 * type, and let no other page embed it. Content comes from upstreams and from pushes, and shares its origin with the admin API.
 */
const securityHeaders: Readonly<Record<string, string>> = {
  'content-security-policy': "sandbox; default-src 'none'",
  'x-content-type-options': 'nosniff',
  'cross-origin-resource-policy': 'same-origin',
  'referrer-policy': 'no-referrer',
}
const entries = Object.entries(securityHeaders)

/** The same as lines of a head, for what is written to a socket without a response. */
export const securityHeaderLines = entries.map(([name, value]) => `${name}: ${value}\r\n`).join('')

/**
 * The response that listeners create: it adds the security headers to every head, whoever writes it, Node itself included. A page
 * that needs another value sets that header itself. `writeHead` completes the headers that it is given.
 */
export class SecureResponse extends ServerResponse {
  override writeHead(
    status: number,
    message?: string | OutgoingHttpHeaders | OutgoingHttpHeader[],
    headers?: OutgoingHttpHeaders | OutgoingHttpHeader[],
  ): this {
    const own = (typeof message === 'string' ? headers : message) ?? {}
    if (Array.isArray(own)) {
      for (const [name, value] of entries) if (!own.includes(name) && !this.hasHeader(name)) own.push(name, value)
    } else for (const [name, value] of entries) if (!(name in own) && !this.hasHeader(name)) own[name] = value
    return typeof message === 'string' ? super.writeHead(status, message, own) : super.writeHead(status, own)
  }
}
