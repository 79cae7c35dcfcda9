/** A stretch of a TOML file: the line that names a table, and the lines up to the next one. */
export interface TomlSection {
  /** Undefined for what stands before the first table. */
  readonly heading: string | undefined
  readonly lines: string[]
}

/**
 * Cuts a TOML text at the lines that name tables; joined with line ends it is the text again. Lines within texts and lists of
 * several lines may be taken for such: whoever changes something has to read the result again.
 */
export function tomlSections(text: string): TomlSection[] {
  const sections: TomlSection[] = [{ heading: undefined, lines: [] }]
  for (const line of text.split('\n')) {
    if (/^\s*\[/.test(line)) sections.push({ heading: line, lines: [] })
    else sections.at(-1)!.lines.push(line)
  }
  return sections
}

export function joinSections(sections: readonly TomlSection[]): string {
  return sections.flatMap(({ heading, lines }) => (heading === undefined ? lines : [heading, ...lines])).join('\n')
}
