/** First and last byte, both included, within a body. */
export interface ByteRange {
  readonly start: number
  readonly end: number
}

/**
 * The one range a request asks for. `undefined`: send the whole body (no header, not bytes, several ranges, bad syntax,
 * all of which RFC 9110 §14.2 lets a server ignore). `unsatisfiable`: answer 416.
 */
export function parseRange(header: string | undefined, size: number): ByteRange | 'unsatisfiable' | undefined {
  if (header === undefined) return undefined
  const match = /^bytes=(\d*)-(\d*)$/.exec(header.replaceAll(' ', ''))
  if (!match) return undefined
  const [, first, last] = match
  if (first === '' && last === '') return undefined
  if (first === '') {
    const length = Math.min(Number(last), size)
    return length === 0 ? 'unsatisfiable' : { start: size - length, end: size - 1 }
  }
  const start = Number(first)
  const end = last === '' ? size - 1 : Math.min(Number(last), size - 1)
  return start >= size || (last !== '' && Number(last) < start) ? 'unsatisfiable' : { start, end }
}

/** One authentication challenge of a `WWW-Authenticate` header; the scheme in lower case. */
interface Challenge {
  readonly scheme: string
  readonly parameters: ReadonlyMap<string, string>
}

const token = /[!#$%&'*+.^_`|~0-9A-Za-z-]+/y
const parameter = /\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*/y

/** All challenges of one or more header values, in order. RFC 9110 §11.6.1. */
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

/** Where a list begins, as the query says it: in any parameter but the length of a page. */
function normalizePosition(query: string): string {
  const parameters = new URLSearchParams(query)
  parameters.delete('n')
  parameters.sort()
  return parameters.toString()
}

/** Whether two queries mean the same page of a list: then the one cannot be what comes after the other. */
export function isSamePage(a: string, b: string): boolean {
  return normalizePosition(a) === normalizePosition(b)
}

/** A query without `ns`, which names the registry to a mirror and means nothing to the registry itself. Otherwise as it came. */
export function removeNamespace(query: string): string {
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
      // Of several only the first counts.
      if (name === 'rel') relation ??= match[2] ?? match[3] ?? ''
      // A link between two other pages.
      if (name === 'anchor') isOfThis = false
    }
    if (isOfThis && relation?.toLowerCase().split(/\s+/).includes('next')) return uri
  }
  return undefined
}
