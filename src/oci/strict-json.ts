const deepest = 64

/**
 * Whether a JSON text that parses means the same to every parser: no key twice in one object (some take the first, some
 * the last), and no nesting that a recursive one would drown in. https://www.rfc-editor.org/rfc/rfc8259#section-4
 */
export function isUnambiguousJson(text: string): boolean {
  /** Keys seen, one set for each open object; undefined for an open list. */
  const open: (Set<string> | undefined)[] = []
  const token = /"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\]:]/gs
  let lastText: string | undefined
  for (let match = token.exec(text); match; match = token.exec(text)) {
    const [found] = match
    switch (found) {
      case '{':
      case '[':
        open.push(found === '{' ? new Set() : undefined)
        if (open.length > deepest) return false
        break
      case '}':
      case ']':
        open.pop()
        break
      case ':': {
        // Only a key comes right before a colon; escapes make two spellings of one key.
        const key = JSON.parse(lastText!) as string
        const keys = open.at(-1)!
        if (keys.has(key)) return false
        keys.add(key)
        break
      }
      default:
        lastText = found
    }
  }
  return true
}
