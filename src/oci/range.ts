/** First and last byte, both included, within a body. */
export interface ByteRange {
  readonly start: number
  readonly end: number
}

/**
 * The one range a request asks for. `undefined`: send the whole body (no header, not bytes, several ranges, bad syntax,
 * all of which RFC 9110 §14.2 lets a server ignore). `unsatisfiable`: answer 416.
 */
export function parseRange(header: string | undefined, size: number): ByteRange | 'unsatisfiable' | undefined {
  if (header === undefined) return undefined
  const match = /^bytes=(\d*)-(\d*)$/.exec(header.replaceAll(' ', ''))
  if (!match) return undefined
  const [, first, last] = match
  if (first === '' && last === '') return undefined
  if (first === '') {
    const length = Math.min(Number(last), size)
    return length === 0 ? 'unsatisfiable' : { start: size - length, end: size - 1 }
  }
  const start = Number(first)
  const end = last === '' ? size - 1 : Math.min(Number(last), size - 1)
  return start >= size || (last !== '' && Number(last) < start) ? 'unsatisfiable' : { start, end }
}
