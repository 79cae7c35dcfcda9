import { createServer, request as httpRequest, type IncomingMessage, type Server as HttpServer } from 'node:http'
import { connect, createServer as createTcpServer, type AddressInfo, type Server, type Socket } from 'node:net'
import { onTestFinished } from 'vitest'

/** A proxy on loopback that forwards every request to one address of this machine. */
export interface TestProxy {
  /** Host and port: `127.0.0.1:40000`. */
  readonly host: string
  /** Its requests, in order. */
  readonly log: string[]
}

export interface TestProxyOptions {
  /** The target of every request: `127.0.0.1:40000`. */
  readonly to: string
  /** The required `user:password`. */
  readonly login?: string
  /** Refuses every request with this HTTP status or SOCKS reply. */
  readonly refuse?: number
}

/** Serves a forward proxy, with absolute URLs and CONNECT. */
export async function serveHttpProxy({ to, login, refuse }: TestProxyOptions): Promise<TestProxy> {
  const log: string[] = []
  const refusal = ({ headers }: IncomingMessage) => {
    const given = headers['proxy-authorization']
    const isKnown = login === undefined || given === `Basic ${Buffer.from(login).toString('base64')}`
    return refuse ?? (isKnown ? undefined : 407)
  }
  const server = createServer((request, response) => {
    log.push(`${request.method} ${request.url}`)
    const status = refusal(request)
    if (status !== undefined) return response.writeHead(status, { 'content-length': 0 }).end()
    const { pathname } = new URL(request.url!)
    const onward = httpRequest(`http://${to}${pathname}`, { method: request.method }, (answer) => {
      response.writeHead(answer.statusCode!, answer.headers)
      answer.pipe(response)
    })
    onward.on('error', () => response.writeHead(502, { 'content-length': 0 }).end())
    onward.end()
  })
  server.on('connect', (request, socket: Socket) => {
    log.push(`CONNECT ${request.url}`)
    const status = refusal(request)
    if (status !== undefined) return socket.end(`HTTP/1.1 ${status} No\r\ncontent-length: 0\r\n\r\n`)
    join(socket, to, () => socket.write('HTTP/1.1 200 OK\r\n\r\n'))
  })
  return { host: await listen(server), log }
}

/** Serves SOCKS 5 (RFC 1928, RFC 1929), 4 and 4a. Logs entries such as `socks5 name host:port`. */
export async function serveSocksProxy({ to: target, login, refuse = 0 }: TestProxyOptions): Promise<TestProxy> {
  const log: string[] = []
  const server = createTcpServer((socket) => void answer(socket).catch(() => socket.destroy()))

  async function answer(socket: Socket): Promise<void> {
    const read = reader(socket)
    if ((await read(1))[0] === 4) return answer4(socket, read)
    await read((await read(1))[0]!)
    socket.write(Buffer.from([5, login === undefined ? 0 : 2]))
    if (login !== undefined) {
      await read(1)
      const user = await read((await read(1))[0]!)
      const password = await read((await read(1))[0]!)
      const isKnown = `${user.toString()}:${password.toString()}` === login
      socket.write(Buffer.from([1, isKnown ? 0 : 1]))
      if (!isKnown) return void socket.end()
    }
    await read(3)
    const [kind] = await read(1)
    const bytes = await read(kind === 1 ? 4 : kind === 4 ? 16 : (await read(1))[0]!)
    const to = (await read(2)).readUInt16BE()
    const host = kind === 1 ? bytes.join('.') : kind === 4 ? `[${bytes.toString('hex')}]` : bytes.toString()
    log.push(`socks5 ${kind === 3 ? 'name' : 'address'} ${host}:${to}`)
    if (refuse !== 0) return void socket.end(Buffer.from([5, refuse, 0, 1, 0, 0, 0, 0, 0, 0]))
    join(socket, target, () => socket.write(Buffer.from([5, 0, 0, 1, 0, 0, 0, 0, 0, 0])))
  }

  async function answer4(socket: Socket, read: (bytes: number) => Promise<Buffer>): Promise<void> {
    await read(1)
    const to = (await read(2)).readUInt16BE()
    const address = await read(4)
    const text = async () => {
      let found = ''
      for (let next = (await read(1))[0]!; next !== 0; next = (await read(1))[0]!) found += String.fromCharCode(next)
      return found
    }
    await text()
    const isName = address[0] === 0 && address[1] === 0 && address[2] === 0
    log.push(isName ? `socks4 name ${await text()}:${to}` : `socks4 address ${address.join('.')}:${to}`)
    join(socket, target, () => socket.write(Buffer.from([0, 90, 0, 0, 0, 0, 0, 0])))
  }

  return { host: await listen(server), log }
}

function reader(socket: Socket): (bytes: number) => Promise<Buffer> {
  return async (bytes) => {
    for (;;) {
      if (bytes === 0) return Buffer.alloc(0)
      const found = socket.read(bytes) as Buffer | null
      if (found) return found
      await new Promise((resolve, reject) => {
        socket.once('readable', resolve)
        socket.once('close', () => reject(new Error('closed')))
      })
    }
  }
}

function join(socket: Socket, to: string, onConnect: () => void): void {
  const [host, port] = to.split(':')
  const onward = connect(Number(port), host, () => {
    onConnect()
    onward.pipe(socket).pipe(onward)
  })
  onward.on('error', () => socket.destroy())
  socket.on('error', () => onward.destroy())
  socket.on('close', () => onward.destroy())
}

async function listen(server: Server | HttpServer): Promise<string> {
  const sockets = new Set<Socket>()
  server.on('connection', (socket: Socket) => {
    sockets.add(socket)
    socket.on('error', () => {})
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => {
    server.close()
    for (const socket of sockets) socket.destroy()
  })
  return `127.0.0.1:${(server.address() as AddressInfo).port}`
}
