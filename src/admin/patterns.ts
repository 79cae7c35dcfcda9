import type { ListedImage } from './api.ts'

/** Checks whether a name is a pattern: `*` and `?` are in no valid name. */
export function isPattern(text: string): boolean {
  return /[*?]/.test(text)
}

/**
 * Finds the names that a pattern matches: images, or whole repositories when the pattern has neither tag nor digest. `*` matches
 * characters within a segment of the path, within a tag or within a digest, `?` matches one of them, and `**` matches any number of
 * segments. A pattern with a tag matches no image that only has a digest, and the other way round.
 */
export function findMatches(pattern: string, images: readonly ListedImage[]): string[] {
  const wanted = splitImage(pattern)
  const isRepository = toMatcher(wanted.repository, '/')
  const isSuffix = wanted.suffix === undefined ? undefined : toMatcher(wanted.suffix, '')
  const found = new Set<string>()
  for (const { name } of images) {
    const { repository, separator, suffix = '' } = splitImage(name)
    if (!isRepository(repository)) continue
    if (!isSuffix) found.add(repository)
    else if (separator === wanted.separator && isSuffix(suffix)) found.add(name)
  }
  return [...found]
}

/** Splits an image into its repository, and its tag or digest. The port of a registry stays in the repository. */
export function splitImage(image: string): {
  readonly repository: string
  readonly separator?: ':' | '@'
  readonly suffix?: string
} {
  const at = image.indexOf('@')
  if (at !== -1) return { repository: image.slice(0, at), separator: '@', suffix: image.slice(at + 1) }
  const colon = image.indexOf(':', image.lastIndexOf('/') + 1)
  if (colon === -1) return { repository: image }
  return { repository: image.slice(0, colon), separator: ':', suffix: image.slice(colon + 1) }
}

/**
 * Creates a function that checks whether a pattern matches a whole text, in a time proportional to the product of their lengths: a
 * regular expression with many wildcards may take minutes. `boundary`: the character that only `**` matches; empty for none.
 */
function toMatcher(pattern: string, boundary: '/' | ''): (text: string) => boolean {
  const tokens = pattern.match(/\*{2,}\/?|[^]/gu) ?? []
  return (text) => {
    const characters = Array.from(text)
    // Holds for each position whether the tokens so far match the text before it.
    let before = characters.map(() => false)
    before.unshift(true)
    for (const token of tokens) {
      const after = before.map(() => false)
      let hasStarted = false
      for (let at = 0; at < after.length; at += 1) {
        const last = characters[at - 1]
        const isInside = at > 0 && last !== boundary
        if (token === '*') after[at] = before[at]! || (isInside && after[at - 1]!)
        else if (token === '?') after[at] = isInside && before[at - 1]!
        else if (!token.startsWith('**')) after[at] = at > 0 && last === token && before[at - 1]!
        else if (token.endsWith('/')) after[at] = before[at]! || (hasStarted && last === '/')
        else after[at] = before[at]! || hasStarted
        hasStarted ||= before[at]!
      }
      before = after
    }
    return before.at(-1)!
  }
}
