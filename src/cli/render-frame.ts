import { stripVTControlCharacters } from 'node:util'

/**
 * What puts a text in place of the one that a terminal shows, without clearing it in between: nothing flickers, and nothing goes to
 * the scrollback. Of a text that is higher than the terminal the top is shown.
 */
export function renderFrame(text: string, columns: number, rows: number): string {
  const shown: string[] = []
  let used = 0
  for (const line of text.split('\n')) {
    const { length } = stripVTControlCharacters(line)
    used += Math.max(1, Math.ceil(length / columns))
    if (used > rows) break
    // Behind a full row the cursor still stands on its last character.
    shown.push(length > 0 && length % columns === 0 ? line : `${line}\x1b[K`)
  }
  return `\x1b[H${shown.join('\r\n')}${used < rows ? '\r\n\x1b[J' : ''}`
}
