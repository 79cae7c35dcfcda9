import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer, type IncomingMessage, type RequestListener } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import { expect, onTestFinished, test } from 'vitest'
import { createAdminClient, openTunnel } from '../../../src/admin/client.ts'
import { openEngineAt } from '../../../src/docker/dockerode-engine.ts'

/** Opens an engine that answers a ping, and every other request by `answer`. */
async function openWith(answer: RequestListener, upgrade?: (request: IncomingMessage, socket: Duplex) => void) {
  const folder = await mkdtemp(join(tmpdir(), 'mirror-engine-'))
  const path = join(folder, 'docker.sock')
  const server = createServer((request, response) =>
    request.url === '/_ping' ? response.end('OK') : answer(request, response),
  )
  if (upgrade) server.on('upgrade', upgrade)
  await new Promise<void>((resolve) => server.listen(path, resolve))
  onTestFinished(async () => {
    server.closeAllConnections()
    await new Promise<void>((resolve) => void server.close(() => resolve()))
    await rm(folder, { recursive: true })
  })
  return openEngineAt({ kind: 'socket', path })
}

const content = async function* () {
  yield Buffer.from('tar')
}

test.each<[string, RequestListener]>([
  ['hangs up', (request) => request.socket.destroy()],
  [
    'hangs up in the middle of its answer',
    (request, response) => {
      request.resume()
      response.write('{"status":"working"}\n', () => setTimeout(() => response.destroy(), 5))
    },
  ],
])('an engine that %s is a MirrorError with exit code 4', async (_, answer) => {
  const engine = await openWith(answer)
  await expect(engine.images.import('made:1', {}, content())).rejects.toMatchObject({
    name: 'MirrorError',
    exit: 4,
    message: expect.stringMatching(/^The Docker engine has stopped answering: .*\.$/),
  })
})

test('a refusal of the engine is a DockerError with its message', async () => {
  const engine = await openWith((_, response) => {
    response.writeHead(500, { 'content-type': 'application/json' }).end('{"message":"no space left on device.\\n"}')
  })
  const refused = { name: 'DockerError', status: 500, message: 'no space left on device' }
  await expect(engine.containers.start('mirror')).rejects.toMatchObject(refused)
  await expect(engine.networks.connect('kind', 'mirror', ['mirror'])).rejects.toMatchObject(refused)
  await expect(engine.containers.unpack('mirror', '/data', Buffer.from('tar'))).rejects.toMatchObject(refused)
})

/** Opens an engine with one program, whose part `talk` plays: it gets the input, and answers in frames. */
function openWithProgram(respond: (input: string, send: (of: 1 | 2, text: string) => void, socket: Duplex) => void) {
  const commands: object[] = []
  const opened = openWith(
    (request, response) => {
      let body = ''
      request.setEncoding('utf8').on('data', (text: string) => (body += text))
      request.on('end', () => {
        commands.push({ path: request.url, ...(JSON.parse(body) as object) })
        response.writeHead(201, { 'content-type': 'application/json' }).end('{"Id":"7"}')
      })
    },
    (_, socket) => {
      onTestFinished(() => void socket.destroy())
      socket.write('HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n')
      const send = (of: 1 | 2, text: string) => {
        const header = Buffer.alloc(8)
        header[0] = of
        header.writeUInt32BE(Buffer.byteLength(text), 4)
        socket.write(Buffer.concat([header, Buffer.from(text)]))
      }
      socket.on('data', (bytes: Buffer) => respond(bytes.toString(), send, socket))
    },
  )
  return opened.then((engine) => {
    const connect = () => openTunnel(engine, 'mirror', 5056)
    const admin = (tokenFile = '/nowhere/token', timeoutMs = 5000) =>
      createAdminClient({
        url: 'http://127.0.0.1:45056',
        tokenFile,
        timeoutMs,
        tunnel: { name: 'ssh://there', connect },
      })
    return { admin, commands }
  })
}

test('a program in the container connects to the mirror there, without secrets in its arguments', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'mirror-token-'))
  onTestFinished(() => rm(folder, { recursive: true }))
  await writeFile(join(folder, 'token'), 'secret\n')
  let isOver = false
  const { admin, commands } = await openWithProgram((input, send, socket) => {
    if (!input.includes('\r\n\r\n')) return
    socket.once('end', () => socket.end()).once('close', () => (isOver = true))
    const body = JSON.stringify([{ name: input }])
    send(1, `HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n`)
    send(1, body)
  })
  const [image] = await admin(join(folder, 'token')).registry.list()
  expect(image!.name).toMatch(/^GET \/api\/registry HTTP\/1\.1\r\n/)
  expect(image!.name).toContain('authorization: Bearer secret')
  expect(image!.name).toContain('Host: 127.0.0.1:45056')
  const streams = { AttachStdin: true, AttachStdout: true, AttachStderr: true, Tty: false }
  expect(commands).toMatchObject([
    {
      ...streams,
      path: '/containers/mirror/exec',
      Cmd: ['/usr/local/bin/node', '-e', expect.stringContaining('5056')],
    },
  ])
  expect(JSON.stringify(commands)).not.toContain('secret')
  await expect.poll(() => isOver).toBe(true)
})

test('progress streams through the program, and an abort closes the connection', async () => {
  let isHungUp = false
  const { admin } = await openWithProgram((_, send, socket) => {
    socket.once('end', () => (isHungUp = true))
    send(1, 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nf\r\n{"checked":1}\n\n\r\n')
  })
  const interrupt = new AbortController()
  const read = async () => {
    for await (const step of admin().cache.verify({ quarantine: false }, interrupt.signal)) {
      expect(step.checked).toBe(1)
      interrupt.abort()
    }
  }
  await expect(read()).rejects.toThrow()
  await expect.poll(() => isHungUp).toBe(true)
})

test.each<[string, Parameters<typeof openWithProgram>[0], string]>([
  [
    'no program listens',
    (_, send, socket) => {
      send(2, 'connect ECONNREFUSED 127.0.0.1:5056\n')
      socket.end()
    },
    'connect ECONNREFUSED 127.0.0.1:5056',
  ],
  ['the program hangs up', (_, _say, socket) => void socket.end(), 'socket hang up'],
  ['no answer comes', () => {}, 'it was silent for 0.1 s'],
])('the error says that the mirror does not answer when %s', async (_, respond, why) => {
  const { admin } = await openWithProgram(respond)
  await expect(admin(undefined, 100).getStatus()).rejects.toMatchObject({
    name: 'MirrorError',
    exit: 4,
    message: `The mirror does not answer on http://127.0.0.1:45056 of ssh://there: ${why}.`,
  })
})

test('a container that does not run is an error with the message of the engine', async () => {
  const engine = await openWith((_, response) => {
    const refusal = { message: 'container mirror is not running' }
    response.writeHead(409, { 'content-type': 'application/json' }).end(JSON.stringify(refusal))
  })
  await expect(openTunnel(engine, 'mirror', 5056)).rejects.toMatchObject({
    name: 'MirrorError',
    exit: 4,
    message: 'The mirror in the container cannot be reached: container mirror is not running.',
  })
})
