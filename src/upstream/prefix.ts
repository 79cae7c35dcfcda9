/** How an upstream spells repositories that it keeps below a path of its own. */
export interface Prefix {
  /** The upstream's spelling of a name that clients use. */
  add(name: string): string
  /** What the upstream says about a repository, in its clients' spelling. */
  hide(text: string, name: string): string
}

/** Without a path both spellings are the same. */
export function createPrefix(path: string | undefined): Prefix {
  if (path === undefined) return { add: (name) => name, hide: (text) => text }
  // Other repositories are named too, but within a URL a path of the same name may be anything.
  const others = new RegExp(`(?<![\\w./-])${path.replaceAll('.', '\\.')}/(?=[a-z0-9])`, 'g')
  return {
    add: (name) => `${path}/${name}`,
    hide: (text, name) => text.replaceAll(`${path}/${name}`, name).replaceAll(others, ''),
  }
}
