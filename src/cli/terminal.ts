import type { Coat } from './paint.ts'

/** A word of a line, with its colour. */
export interface Word {
  readonly text: string
  readonly coat?: Coat
}

/**
 * The columns of a stream that is a terminal and knows them (one made by `script` may not); undefined for any other, which takes
 * lines of any length.
 */
export function columnsOf(stream: { isTTY?: boolean; columns?: number | undefined }): number | undefined {
  return stream.isTTY === true && stream.columns !== undefined && stream.columns > 0 ? stream.columns : undefined
}

/** Puts words into lines of at most so many columns; lines after the first are indented. Without a limit it is one line. */
export function wrapWords(words: readonly Word[], columns: number | undefined, indent: number): string {
  const width = columns === undefined ? Infinity : Math.max(columns, indent + 10)
  const lines: string[] = []
  let line = ''
  let used = 0
  const shown = words.filter(({ text }) => text !== '')
  for (const { text, coat = plain } of shown) {
    // On a line of its own it would have no more room than behind what is not longer than the indent.
    if (used >= Math.max(1, indent) && used + 1 + text.trimEnd().length > width) {
      lines.push(line)
      line = ''
      used = 0
    }
    const isFirst = used === 0
    let rest = isFirst && lines.length > 0 ? text.trimStart() : text
    if (!isFirst) line += ' '
    else if (lines.length > 0) line = ' '.repeat(indent)
    used = isFirst ? line.length : used + 1
    // A word that no line can take is cut.
    while (used + rest.trimEnd().length > width) {
      const fits = rest.slice(0, width - used + 1)
      // One with spaces in it between two of its words.
      const space = fits.trim().includes(' ') ? fits.lastIndexOf(' ') : -1
      const end = space > 0 ? space : width - used
      lines.push(line + coat(rest.slice(0, end)))
      rest = rest.slice(space > 0 ? end + 1 : end)
      line = ' '.repeat(indent)
      used = indent
    }
    line += coat(rest)
    used += rest.length
  }
  lines.push(line)
  return lines.map((text) => text.replaceAll('\u00a0', ' ').trimEnd()).join('\n')
}

/**
 * Lines of at most `width` characters that begin with `indent`, those after the first with `hanging`. Words stay whole, one that
 * is longer than a line too; a number stays with its unit, and a no-break space joins what else has to stay on one line.
 */
export function wrapText(text: string, width: number, indent = '', hanging = indent): string[] {
  const lines: string[] = []
  let line = ''
  for (const word of splitWords(text)) {
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

/**
 * Wraps the lines of a text that are too long for a terminal; further lines are indented by two more. A command stays on one
 * line, so that it can be copied: what a line begins with in lower case or with a variable, or what follows a colon. A note
 * `   (in parentheses)` after it is prose. Without a limit the text stays as it is.
 */
export function fitText(text: string, columns: number | undefined): string {
  if (columns === undefined) return text
  const fit = (line: string) => {
    if (line.length <= columns) return line
    const [, indent = '', rest = ''] = /^( *)(.*)$/.exec(line)!
    const [, head = '', note = ''] = /^(.*?)(?: {3}(\(.*\)))?$/.exec(rest)!
    const start = commandStart.exec(head)?.index ?? head.length
    const command = head.slice(start).replaceAll(' ', '\u00a0')
    return wrapText(`${head.slice(0, start)}${command} ${note}`, columns, indent, `${indent}  `).join('\n')
  }
  return text.split('\n').map(fit).join('\n')
}

// `mirror: …` and `cache.maxSize: …` begin a message.
const commandStart =
  /^(?!\S+: |mirror (?:is|\())(?=[a-z-]|\w+=)|(?<=: +)(?=(?:sudo|env|docker|mirror|df|npx) |[A-Z_]+=\S)/

/** The words of a text, with a no-break space between a number and its unit. */
export function splitWords(text: string): string[] {
  const together = text.replaceAll(/(?<=\d) (?=(?:ms|s|min|h|d|(?:[KMGT]i?|k)?B|%)(?!\w))/g, '\u00a0')
  return together.split(' ').filter((part) => part !== '')
}

/** Cuts the middle out of a text that is too long: both ends of an image's name matter, and the last one more. */
export function shortenMiddle(text: string, most: number): string {
  if (text.length <= most) return text
  const end = Math.ceil(((most - 1) * 2) / 3)
  return `${text.slice(0, Math.max(0, most - 1 - end))}…${text.slice(text.length - end)}`
}

/** The name with the first digits of its digest, which tell it from others. */
export function shortDigest(name: string): string {
  return name.replace(/@(sha\d+):([0-9a-f]{12})[0-9a-f]+/, '@$1:$2…')
}

const plain: Coat = (text) => text
