/** The first line of every file that is ours alone; to be read by people, and by us when we come back. */
export const writtenByMirror = '# Written by mirror. To take it back: mirror configure --undo\n'

export function isWrittenByMirror(text: string): boolean {
  return text.includes(writtenByMirror.trimEnd())
}
