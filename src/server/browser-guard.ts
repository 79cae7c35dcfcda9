import type { IncomingMessage } from 'node:http'
import { OciError } from '../oci/errors.ts'

type Asking = Pick<IncomingMessage, 'headers' | 'method'>

/** How browsers ask for a page to show, and for what no client of a registry speaks. */
const modesOfBrowsers = new Set(['navigate', 'nested-navigate', 'websocket', 'webtransport'])

/**
 * Throws an OciError 403 for a request of a browser to a listener that has no pages. Only what a page of this listener fetches
 * passes. Other requests say by which site they were made, by what they want to show, or by their mode that a browser makes them
 * (https://www.w3.org/TR/fetch-metadata/); `Sec-Fetch-Site: none` stays when a site that the user went to redirects to us.
 * Node's own fetch sends `Sec-Fetch-Mode: cors` alone.
 */
export function refuseBrowsers(request: Asking): void {
  refuseOtherSites(request)
  const {
    'sec-fetch-site': site,
    'sec-fetch-mode': mode = '',
    'sec-fetch-dest': destination = 'empty',
  } = request.headers
  const isOther = site !== undefined && site !== 'same-origin'
  if (isOther || modesOfBrowsers.has(mode) || destination !== 'empty')
    throw new OciError('DENIED', 403, 'There is no page for browsers here, only a registry for its clients.')
}

/**
 * Throws an OciError 403 for a request that a page of another origin makes. Browsers say where a request comes from
 * (https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header): `none` is the address bar, which only reads, `same-origin` a
 * page of this listener. `same-site` is refused like `cross-site`, because any port of this machine is the same site. To an
 * address that is neither loopback nor HTTPS browsers send no such header, but `Origin` with what a script asks for. Registry
 * clients send neither.
 */
export function refuseOtherSites({ headers, method }: Asking): void {
  const site = headers['sec-fetch-site']
  const { origin, host } = headers
  const isAddressBar = site === 'none' && (method === 'GET' || method === 'HEAD')
  const isOtherSite = site !== undefined && site !== 'same-origin' && !isAddressBar
  const isOtherOrigin = origin !== undefined && origin !== `http://${host}` && origin !== `https://${host}`
  if (isOtherSite || isOtherOrigin)
    throw new OciError('DENIED', 403, 'A page of another site may not ask for anything here.')
}
