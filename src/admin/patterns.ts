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

/** Converts a pattern to a function that checks a whole text. `boundary`: the character that only `**` matches; empty for none. */
function toMatcher(pattern: string, boundary: '/' | ''): (text: string) => boolean {
  const one = boundary === '' ? '.' : '[^/]'
  const expression = pattern.replaceAll(/\*{2,}\/?|\*|\?|[^*?]+/g, (part) => {
    if (part === '**/') return boundary === '' ? '.*' : '(?:.*/)?'
    if (part === '?') return one
    if (part === '*') return `${one}*`
    return part.startsWith('**') ? '.*' : part.replaceAll(/[\\^$.+()[\]{}|]/g, String.raw`\$&`)
  })
  const compiled = new RegExp(`^${expression}$`, 'u')
  return (text) => compiled.test(text)
}
