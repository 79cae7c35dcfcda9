/**
 * Lines of at most `width` characters that begin with `indent`, those after the first with `hanging`. Words stay whole, one that
 * is longer than a line too; a number stays with its unit, and a no-break space joins what else has to
 * stay on one line.
 */
export function wrapText(text: string, width: number, indent = '', hanging = indent): string[] {
  const lines: string[] = []
  let line = ''
  const together = text.replaceAll(/(?<=\d) (?=(?:s|min|h)\b)/g, '\u00a0')
  for (const word of together.split(' ').filter((part) => part !== '')) {
    const start = lines.length === 0 ? indent : hanging
    if (line === '') line = start + word
    else if (line.length + 1 + word.length <= width) line += ` ${word}`
    else {
      lines.push(line)
      line = hanging + word
    }
  }
  if (line !== '') lines.push(line)
  return lines.map((full) => full.replaceAll('\u00a0', ' '))
}

/** How many columns a stream shows: those of the terminal that it is, if that knows its size (one made by `script` may not). */
export function columnsOf(stream: { isTTY?: boolean; columns?: number | undefined }): number {
  return stream.isTTY && stream.columns !== undefined && stream.columns > 0 ? stream.columns : 80
}
