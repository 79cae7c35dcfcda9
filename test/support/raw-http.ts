import { connect } from 'node:net'

/**
 * Sends raw bytes and collects the response until the server closes the connection or the time is over. `closed`: true when
 * the server closed it.
 */
export function rawHttp(
  baseUrl: string,
  bytes: string | Buffer,
  milliseconds = 2000,
): Promise<{ readonly text: string; readonly statuses: number[]; readonly closed: boolean }> {
  const { hostname, port } = new URL(baseUrl)
  return new Promise((resolve) => {
    const socket = connect(Number(port), hostname, () => socket.write(bytes))
    const chunks: Buffer[] = []
    let closed = true
    const timer = setTimeout(() => {
      closed = false
      socket.destroy()
    }, milliseconds)
    socket.on('data', (chunk: Buffer) => void chunks.push(chunk))
    socket.on('error', () => {})
    socket.once('end', () => socket.end())
    socket.once('close', () => {
      clearTimeout(timer)
      const text = Buffer.concat(chunks).toString('latin1')
      const statuses = [...text.matchAll(/HTTP\/1\.1 (\d{3}) /g)].map(([, status]) => Number(status))
      resolve({ text, statuses, closed })
    })
  })
}

/** Makes a GET request of exactly this path, with `Connection: close`. */
export function rawGet(path: string, extra = ''): string {
  return `GET ${path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n${extra}\r\n`
}
