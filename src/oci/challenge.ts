/** One authentication challenge of a `WWW-Authenticate` header; the scheme in lower case. */
export interface Challenge {
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
