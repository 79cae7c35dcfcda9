const token = /[!#$%&'*+.^_`|~0-9A-Za-z-]+/y
const parameter = /\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*/y

/** Holds the positions of the first and the last byte, both inclusive. */
export interface ByteRange {
  readonly start: number
  readonly end: number
}

/** Describes one authentication challenge of a `WWW-Authenticate` header; the scheme in lower case. */
interface Challenge {
  readonly scheme: string
  readonly parameters: ReadonlyMap<string, string>
}

/** Parses all challenges of one or more `WWW-Authenticate` values, in order. RFC 9110 §11.6.1 */
export function parseChallenges(header: string): Challenge[] {
  const challenges: Challenge[] = []
  let at = 0
  while (at < header.length) {
    const skipped = /[\s,]*/y
    skipped.lastIndex = at
    skipped.exec(header)
    at = skipped.lastIndex
    token.lastIndex = at
    const scheme = token.exec(header)?.[0]
    if (scheme === undefined) break
    at = token.lastIndex
    const parameters = new Map<string, string>()
    for (;;) {
      parameter.lastIndex = at
      const match = parameter.exec(header)
      if (!match) break
      parameters.set(match[1]!.toLowerCase(), match[2] === undefined ? match[3]! : match[2].replaceAll(/\\(.)/g, '$1'))
      at = parameter.lastIndex
      if (header[at] !== ',') break
      at += 1
    }
    challenges.push({ scheme: scheme.toLowerCase(), parameters })
  }
  return challenges
}

/** Returns the query's position in a list, normalized: all parameters but the page size `n`. */
function normalizePosition(query: string): string {
  const parameters = new URLSearchParams(query)
  parameters.delete('n')
  parameters.sort()
  return parameters.toString()
}

/** Checks whether two queries start at the same position of a list, so that neither can be the page after the other. */
export function isSamePage(a: string, b: string): boolean {
  return normalizePosition(a) === normalizePosition(b)
}

/** Removes `ns` from a query, which names the registry to a mirror and means nothing to the registry. Keeps the rest unchanged. */
export function removeNamespace(query: string): string {
  return query
    .split('&')
    .filter((parameter) => !new URLSearchParams(parameter).has('ns'))
    .join('&')
}

/**
 * Returns the query of the next page from a `Link` header, without `ns`; undefined when there is none. A registry may use its own page
 * tokens and any form of URL. Only the query counts, because the path is that of the request.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-tags, RFC 8288 §3
 */
export function parseNextPage(link: string | undefined): string | undefined {
  const target = link === undefined ? undefined : findNextTarget(link)
  const base = 'http://registry.invalid/'
  if (target === undefined || !URL.canParse(target, base)) return undefined
  const query = removeNamespace(new URL(target, base).search.slice(1))
  return query === '' ? undefined : query
}

function findNextTarget(header: string): string | undefined {
  const target = /<([^>]*)>/y
  const parameter = /\s*;\s*([^\s=;,<"]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;,]*)))?/y
  for (let at = header.indexOf('<'); at !== -1; at = header.indexOf('<', at)) {
    target.lastIndex = at
    const uri = target.exec(header)?.[1]
    if (uri === undefined) return undefined
    at = target.lastIndex
    let relation: string | undefined
    let isOfThis = true
    for (;;) {
      parameter.lastIndex = at
      const match = parameter.exec(header)
      if (!match) break
      at = parameter.lastIndex
      const name = match[1]!.toLowerCase()
      // Use the first `rel` only (RFC 8288 §3.3).
      if (name === 'rel') relation ??= match[2] ?? match[3] ?? ''
      // Skip a link between two other pages.
      if (name === 'anchor') isOfThis = false
    }
    if (isOfThis && relation?.toLowerCase().split(/\s+/).includes('next')) return uri
  }
  return undefined
}
