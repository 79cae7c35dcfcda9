/** The first line of every file that is ours alone; to be read by people, and by us when we come back. */
export const writtenByMirror = '# Written by mirror. To take it back: mirror configure --undo\n'

/** For files that are made anew each time. */
export const ownFileHeader = `${writtenByMirror}# Changes are lost when it is written again: make them in a file of your own.\n`

/** The text without those lines, whatever line ends an editor has given them since. */
export function withoutOwnHeader(text: string): string {
  const ours = new Set(ownFileHeader.split('\n').filter(Boolean))
  const lines = text.split(/(?<=\n)/)
  return lines.filter((line) => !ours.has(line.replace(/^\uFEFF/, '').trimEnd())).join('')
}

export function isWrittenByMirror(text: string): boolean {
  return text.includes(writtenByMirror.trimEnd())
}
