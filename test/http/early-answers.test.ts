import { writeFile } from 'node:fs/promises'
import { connect, createServer, Socket, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { connect as connectTls } from 'node:tls'
import { hash } from 'bcryptjs'
import { describe, expect, onTestFinished, test } from 'vitest'
import { OciError } from '../../src/oci/errors.ts'
import { ConnectionBudget } from '../../src/server/connection-budget.ts'
import { discardInput, type DiscardLimits } from '../../src/server/connection.ts'
import { listen, type ListenOptions } from '../../src/server/listen.ts'
import { sendError } from '../../src/server/respond.ts'
import { get } from '../support/get.ts'
import { temporaryHome } from '../support/mirror.ts'
import { parseAnswers } from '../support/parse-answers.ts'
import { rawHttp } from '../support/raw-http.ts'
import { startTestRegistry } from '../support/registry.ts'
import { startScene } from '../support/scene.ts'
import { writeSlowly } from '../support/slow-writer.ts'
import { testCertificate } from '../support/upstream/certificate.ts'

const MiB = 1024 * 1024

/** Starts a server that reads no body. It answers 503 with `Retry-After`, or the status in the path. */
async function serveEarly(options: Partial<ListenOptions> = {}) {
  const asked: string[] = []
  const listener = await listen({ host: '127.0.0.1', port: 0, ...options }, (request, response) => {
    asked.push(request.url!)
    const status = Number(request.url!.slice(1)) || 503
    sendError(request, response, new OciError('UNKNOWN', status, 'Not now.', { 'retry-after': '1' }))
  })
  onTestFinished(() => listener.close(0))
  return { ...listener, asked }
}

const headOf = (line: string, ...headers: string[]) =>
  `${[line, 'Host: localhost', ...headers].map((part) => `${part}\r\n`).join('')}\r\n`

function expectWhole(text: string, status: number): void {
  const answers = parseAnswers(text)
  expect(answers.map((answer) => [answer.status, answer.complete])).toEqual([[status, true]])
  expect(answers[0]!.body.toString()).toMatch(/^\{"errors":\[\{"code":/)
}

/** endings are the ways in which a connection ends with its answer. */
const endings: [string, string, string[]][] = [
  ['asks for Connection: close', 'HTTP/1.1', ['Connection: close', `Content-Length: ${8 * MiB}`]],
  ['speaks HTTP/1.0', 'HTTP/1.0', [`Content-Length: ${8 * MiB}`]],
  ['announces more than is dropped', 'HTTP/1.1', [`Content-Length: ${500 * MiB}`]],
]

describe.each(endings)('a client that %s and sends 8 MiB slowly', (_, version, headers) => {
  test.each([401, 413, 429, 503])('reads the whole %i that was sent before its body arrived', async (status) => {
    const { url } = await serveEarly()
    const head = headOf(`PUT /${status} ${version}`, ...headers)
    const text = await writeSlowly(url, head, { bytes: 8 * MiB, milliseconds: 1000 })
    expectWhole(text, status)
    expect(text).toMatch(/^connection: close\r$/im)
  })
})

describe('a client of the registry that asks for Connection: close and sends 8 MiB slowly', () => {
  const slow = { bytes: 8 * MiB, milliseconds: 1000 }

  test('reads the reason for which it may not push', async () => {
    const home = await temporaryHome()
    const htpasswd = join(home, 'htpasswd')
    await writeFile(htpasswd, `dev:${await hash('secret', 4)}\n`)
    const { url } = await startTestRegistry({ home, registry: { auth: { htpasswd } } })
    const head = headOf('PUT /v2/app/manifests/v1 HTTP/1.1', 'Connection: close', `Content-Length: ${8 * MiB}`)
    expectWhole(await writeSlowly(url, head, slow), 401)
  })

  test('reads that its manifest is too large, of a known length and of an unknown one', async () => {
    const { url } = await startTestRegistry()
    const put = 'PUT /v2/app/manifests/v1 HTTP/1.1'
    const known = headOf(put, 'Connection: close', `Content-Length: ${8 * MiB}`)
    expectWhole(await writeSlowly(url, known, slow), 413)
    const unknown = headOf(put, 'Connection: close', 'Transfer-Encoding: chunked')
    expectWhole(await writeSlowly(url, `${unknown}${(8 * MiB).toString(16)}\r\n`, slow), 413)
  })

  test('reads that the cache accepts no pushes', async () => {
    const { mirror } = await startScene()
    const head = headOf('PUT /v2/app/manifests/v1 HTTP/1.1', `Content-Length: ${8 * MiB}`)
    expectWhole(await writeSlowly(mirror.url, head, slow), 405)
  })

  test('reads the answer of the admin listener', async () => {
    const { mirror } = await startScene()
    const head = headOf('POST /api/stop HTTP/1.1', 'Connection: close', `Content-Length: ${8 * MiB}`)
    expectWhole(await writeSlowly(mirror.adminUrl, head, slow), 401)
  })
})

test('over TLS, too, the whole answer is read by a client that still sends', async () => {
  const { cert, key } = testCertificate
  const { url, port } = await serveEarly({ tls: { cert, key } })
  const socket = connectTls({ port, host: '127.0.0.1', ca: cert, checkServerIdentity: () => undefined })
  const head = headOf('PUT /413 HTTP/1.1', 'Connection: close', `Content-Length: ${8 * MiB}`)
  expectWhole(await writeSlowly(url, head, { bytes: 8 * MiB, milliseconds: 1000, socket }), 413)
})

test('a head that is too large or malformed is answered before the connection is closed, while its client still sends', async () => {
  const { url } = await serveEarly()
  const slow = { bytes: 4 * MiB, milliseconds: 500 }
  expectWhole(await writeSlowly(url, 'GET / HTTP/1.1\r\nHost: localhost\r\nX: ', slow), 431)
  expectWhole(await writeSlowly(url, 'no HTTP\r\n\r\n', slow), 400)
})

describe('a connection that is kept alive', () => {
  test('accepts its next request after the body of the one that was answered early, however slowly it arrives', async () => {
    const { port } = await serveEarly()
    const socket = connect(port, '127.0.0.1')
    onTestFinished(() => void socket.destroy())
    socket.write(headOf('PUT /413 HTTP/1.1', `Content-Length: ${4 * MiB}`))
    // Takes longer than a client may be silent.
    for (let piece = 0; piece < 16; piece++) {
      socket.write(Buffer.alloc((4 * MiB) / 16))
      await sleep(450)
    }
    let text = ''
    socket.on('data', (chunk: Buffer) => (text += chunk.toString()))
    socket.write(headOf('GET /404 HTTP/1.1', 'Connection: close'))
    await new Promise((resolve) => socket.once('close', resolve))
    expect(parseAnswers(text).map(({ status }) => status)).toEqual([413, 404])
  }, 20_000)

  test('has one response per request, also where the rest of the body is not HTTP', async () => {
    const { port } = await serveEarly()
    const socket = connect(port, '127.0.0.1')
    onTestFinished(() => void socket.destroy())
    let text = ''
    socket.on('data', (chunk: Buffer) => (text += chunk.toString()))
    socket.write(`${headOf('PUT /413 HTTP/1.1', 'Transfer-Encoding: chunked')}5\r\nhello\r\n`)
    await expect.poll(() => text).toContain('}]}')
    socket.write('no chunk\r\n')
    await new Promise((resolve) => socket.once('close', resolve))
    expectWhole(text, 413)
  })

  test('accepts no request behind its last one', async () => {
    const { port, asked } = await serveEarly()
    const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
    onTestFinished(() => void socket.destroy())
    let text = ''
    socket.on('data', (chunk: Buffer) => (text += chunk.toString()))
    socket.write(headOf('PUT /413 HTTP/1.1', 'Connection: close', 'Content-Length: 100'))
    await expect.poll(() => text).toContain('}]}')
    socket.write(`${'x'.repeat(100)}${headOf('DELETE /behind HTTP/1.1')}`)
    await sleep(200)
    expectWhole(text, 413)
    expect(asked).toEqual(['/413'])
  })
})

describe('a client that has its response and still sends', () => {
  test('yields to another client after a second, and is not answered twice', async () => {
    const connections = new ConnectionBudget({ limits: { clients: 1, admin: 1 }, refusals: 2 })
    const { url, port } = await serveEarly({ connections })
    const socket = connect(port, '127.0.0.1').on('error', () => {})
    onTestFinished(() => void socket.destroy())
    let text = ''
    socket.on('data', (chunk: Buffer) => (text += chunk.toString()))
    socket.write(headOf('PUT /413 HTTP/1.1', `Content-Length: ${8 * MiB}`))
    const sending = setInterval(() => void socket.write('x'), 20)
    onTestFinished(() => clearInterval(sending))
    await sleep(300)
    expect(connections.count('clients')).toBe(1)
    expect((await get(url, '/404')).status).toBe(503)
    await sleep(1000)
    expect((await get(url, '/404')).status).toBe(404)
    await new Promise((resolve) => (socket.destroyed ? resolve(undefined) : socket.once('close', resolve)))
    expectWhole(text, 413)
  })

  test('is not answered twice when a part of its body is unread at that moment', async () => {
    const connections = new ConnectionBudget({ limits: { clients: 1, admin: 1 }, refusals: 2 })
    const { port } = await serveEarly({ connections })
    const socket = connect(port, '127.0.0.1').on('error', () => {})
    onTestFinished(() => void socket.destroy())
    let text = ''
    socket.on('data', (chunk: Buffer) => (text += chunk.toString()))
    socket.write(headOf('PUT /413 HTTP/1.1', `Content-Length: ${8 * MiB}`))
    await sleep(1100)
    let isServed = false
    socket.write('x')
    connections.admit(new Socket(), { share: 'clients', isSecure: true }, () => (isServed = true))
    expect(isServed).toBe(true)
    await new Promise((resolve) => socket.once('close', resolve))
    expectWhole(text, 413)
  })

  test('may finish while the server stops', async () => {
    const listener = await serveEarly()
    const head = headOf('PUT /413 HTTP/1.1', 'Connection: close', `Content-Length: ${8 * MiB}`)
    const answer = writeSlowly(listener.url, head, { bytes: 8 * MiB, milliseconds: 1500 })
    await expect.poll(() => listener.asked).toHaveLength(1)
    const closed = listener.close(10_000)
    expectWhole(await answer, 413)
    await closed
  })
})

describe('beyond the limit of connections', () => {
  const upload = headOf('PUT /201 HTTP/1.1', 'Connection: close', `Content-Length: ${8 * MiB}`)
  const full = () => new ConnectionBudget({ limits: { clients: 0, admin: 0 }, refusals: 2 })

  test('a client that sends 8 MiB slowly reads the whole 503', async () => {
    const { url, asked } = await serveEarly({ connections: full() })
    const text = await writeSlowly(url, upload, { bytes: 8 * MiB, milliseconds: 1000 })
    expectWhole(text, 503)
    expect(text).toMatch(/^retry-after: 1\r$/im)
    expect(asked).toEqual([])
  })

  test('only a limited number of clients read their 503 slowly, and the oldest is disconnected first', async () => {
    const { port } = await serveEarly({ connections: full() })
    const sockets: Socket[] = []
    for (let client = 0; client < 5; client++) {
      const socket = connect(port, '127.0.0.1').on('error', () => {})
      onTestFinished(() => void socket.destroy())
      sockets.push(socket)
      socket.write(upload)
      await sleep(50)
    }
    // Tells closed connections from those that still accept input: a client of a closed one sees its end.
    const isOpen = (socket: Socket) =>
      new Promise<boolean>((resolve) => {
        socket.once('close', () => resolve(false))
        setTimeout(() => resolve(true), 500)
        socket.write('x'.repeat(1000))
        setTimeout(() => socket.write('x'), 100)
      })
    expect(await Promise.all(sockets.map(isOpen))).toEqual([false, false, false, true, true])
  })

  test('a client that has sent its whole request is not waited for', async () => {
    const { url } = await serveEarly({ connections: full() })
    const { text, closed } = await rawHttp(url, headOf('GET / HTTP/1.1'))
    expectWhole(text, 503)
    expect(closed).toBe(true)
  })
})

describe('input of a client after its response is dropped', () => {
  /** Opens a connection whose input the server drops; returns the time that it stayed open, ms. */
  async function open(limits: Partial<DiscardLimits>, send: (socket: Socket) => void) {
    const server = createServer((socket) => {
      socket.on('error', () => {})
      discardInput(socket, { bytes: MiB, total: 5000, silence: 5000, ...limits })
    })
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
    onTestFinished(() => void server.close())
    const socket = connect((server.address() as AddressInfo).port, '127.0.0.1').on('error', () => {})
    onTestFinished(() => void socket.destroy())
    const begun = performance.now()
    socket.resume()
    send(socket)
    await new Promise((resolve) => socket.once('close', resolve))
    return performance.now() - begun
  }

  const drip = (socket: Socket) => {
    const timer = setInterval(() => void socket.write('x'), 20)
    socket.once('close', () => clearInterval(timer))
  }

  test('up to a number of bytes', async () => {
    expect(await open({}, (socket) => void socket.write(Buffer.alloc(2 * MiB)))).toBeLessThan(3000)
  })

  test('while it arrives, until none has arrived for a while', async () => {
    expect(await open({ silence: 200 }, () => {})).toBeLessThan(3000)
  })

  test('for a limited time', async () => {
    const duration = await open({ silence: 200, total: 600 }, drip)
    expect(duration).toBeGreaterThan(500)
    expect(duration).toBeLessThan(3000)
  })

  test('until the client has sent everything', async () => {
    expect(await open({}, (socket) => void socket.end('the last bytes'))).toBeLessThan(3000)
  })
})
