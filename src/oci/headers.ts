/** Where a list begins, as the query says it: in any parameter but the length of a page. */
function positionOf(query: string): string {
  const parameters = new URLSearchParams(query)
  parameters.delete('n')
  parameters.sort()
  return parameters.toString()
}

/** Whether two queries mean the same page of a list: then the one cannot be what comes after the other. */
export function isSamePage(a: string, b: string): boolean {
  return positionOf(a) === positionOf(b)
}

/** A query without `ns`, which names the registry to a mirror and means nothing to the registry itself. Otherwise as it came. */
export function withoutNamespace(query: string): string {
  return query
    .split('&')
    .filter((parameter) => !new URLSearchParams(parameter).has('ns'))
    .join('&')
}

/**
 * The query of the next page that a `Link` header names, without `ns`; undefined when there is none. A registry may name the page
 * by a token of its own, and write its URL in any form: only the query counts, because the path is the one that was asked for.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-tags, RFC 8288 §3
 */
export function nextPageOf(link: string | undefined): string | undefined {
  const target = link === undefined ? undefined : targetOfNext(link)
  const base = 'http://registry.invalid/'
  if (target === undefined || !URL.canParse(target, base)) return undefined
  const query = withoutNamespace(new URL(target, base).search.slice(1))
  return query === '' ? undefined : query
}

function targetOfNext(header: string): string | undefined {
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
      // Of several only the first counts.
      if (name === 'rel') relation ??= match[2] ?? match[3] ?? ''
      // A link between two other pages.
      if (name === 'anchor') isOfThis = false
    }
    if (isOfThis && relation?.toLowerCase().split(/\s+/).includes('next')) return uri
  }
  return undefined
}
