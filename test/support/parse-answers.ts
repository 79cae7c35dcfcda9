/** A response on a connection, as a client reads it. */
export interface RawAnswer {
  readonly status: number
  /** Headers by lower-case name. */
  readonly headers: Readonly<Record<string, string>>
  readonly body: Buffer
  /** True when a client considers the response complete. */
  readonly complete: boolean
}

/**
 * Parses all bytes that a server sent on a connection as responses to GET requests. A body without a length ends with
 * the connection (RFC 9112 §6.3).
 */
export function parseAnswers(text: string): RawAnswer[] {
  const answers: RawAnswer[] = []
  for (let rest = text; rest !== '';) {
    const headEnd = rest.indexOf('\r\n\r\n')
    if (headEnd === -1) break
    const [first = '', ...lines] = rest.slice(0, headEnd).split('\r\n')
    const status = Number(/^HTTP\/1\.1 (\d{3}) /.exec(first)?.[1])
    if (Number.isNaN(status)) throw new Error(`this is no answer: ${JSON.stringify(first.slice(0, 80))}`)
    const headers = Object.fromEntries(
      lines.map((line) => [line.slice(0, line.indexOf(':')).toLowerCase(), line.slice(line.indexOf(':') + 1).trim()]),
    )
    rest = rest.slice(headEnd + 4)
    const read = readBody(rest, status, headers)
    answers.push({ status, headers, body: Buffer.from(read.body, 'latin1'), complete: read.complete })
    rest = rest.slice(read.length)
  }
  return answers
}

function readBody(
  text: string,
  status: number,
  headers: Readonly<Record<string, string>>,
): { readonly body: string; readonly complete: boolean; readonly length: number } {
  if (status === 304 || status === 204) return { body: '', complete: true, length: 0 }
  if (headers['transfer-encoding'] === 'chunked') {
    let body = ''
    for (let at = 0; ;) {
      const lineEnd = text.indexOf('\r\n', at)
      if (lineEnd === -1) return { body, complete: false, length: text.length }
      const size = Number.parseInt(text.slice(at, lineEnd), 16)
      const start = lineEnd + 2
      if (text.length < start + size + 2)
        return { body: body + text.slice(start), complete: false, length: text.length }
      body += text.slice(start, start + size)
      at = start + size + 2
      if (size === 0) return { body, complete: true, length: at }
    }
  }
  const length = headers['content-length'] === undefined ? text.length : Number(headers['content-length'])
  return { body: text.slice(0, length), complete: text.length >= length, length: Math.min(length, text.length) }
}
