import type { IncomingMessage } from 'node:http'
import { OciError } from '../oci/errors.ts'

/**
 * Throws an OciError 403 for a request that a page of another origin makes. Browsers say where a request comes from
 * (https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header): `none` is the address bar, `same-origin` a page of this listener.
 * `same-site` is refused like `cross-site`, because any port of this machine is the same site. To an address that is neither
 * loopback nor HTTPS browsers send no such header, but `Origin` with what a script asks for. Registry clients send neither.
 */
export function refuseOtherSites({ headers }: Pick<IncomingMessage, 'headers'>): void {
  const site = headers['sec-fetch-site']
  const { origin, host } = headers
  const isOtherSite = site !== undefined && site !== 'same-origin' && site !== 'none'
  const isOtherOrigin = origin !== undefined && origin !== `http://${host}` && origin !== `https://${host}`
  if (isOtherSite || isOtherOrigin)
    throw new OciError('DENIED', 403, 'A page of another site may not ask for anything here.')
}
