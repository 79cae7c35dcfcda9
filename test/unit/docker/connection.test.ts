import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { Agent, createServer, get, type IncomingMessage, type RequestListener } from 'node:http'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import { expect, onTestFinished, test, vi } from 'vitest'
import { openEngineAt } from '../../../src/docker/dockerode-engine.ts'
import { createDeferred } from '../../../src/lib/async.ts'
import { readProcessStat } from '../../../src/lib/process.ts'
import { SshConnection } from '../../../src/docker/connection.ts'
import {
  makeFailingSshProgram,
  makeProxiedSshProgram,
  makeSshProgram,
  type SshProgram,
} from '../../support/ssh-program.ts'

async function startEngine(answer: RequestListener): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'mirror-engine-'))
  const path = join(folder, 'docker.sock')
  const server = createServer(answer)
  await new Promise<void>((resolve) => server.listen(path, resolve))
  onTestFinished(async () => {
    server.closeAllConnections()
    await new Promise<void>((resolve) => void server.close(() => resolve()))
    await rm(folder, { recursive: true })
  })
  return path
}

function findFirst({ folder }: Pick<SshProgram, 'folder'>) {
  vi.stubEnv('PATH', `${folder}${delimiter}${process.env['PATH']}`)
  onTestFinished(() => void vi.unstubAllEnvs())
}

const endpoint = { kind: 'ssh', host: 'there', user: 'me', port: 2222 } as const
const answer: RequestListener = (request, response) => {
  if (request.url === '/_ping') return response.end('OK')
  response.setHeader('content-type', 'application/json')
  return response.end(JSON.stringify({ Name: 'data', Labels: { path: request.url } }))
}

test('an engine behind ssh is reached like docker reaches it, with one login for consecutive requests', async () => {
  const ssh = await makeSshProgram(await startEngine(answer))
  findFirst(ssh)
  const engine = await openEngineAt(endpoint)
  expect(await engine.volumes.find('one')).toEqual({ labels: { path: '/volumes/one' } })
  expect(await engine.volumes.find('two')).toEqual({ labels: { path: '/volumes/two' } })
  expect(await ssh.runs()).toEqual([
    ['-o', 'ConnectTimeout=30', '-T', '-l', 'me', '-p', '2222', '--', 'there', 'docker', 'system', 'dial-stdio'],
  ])
})

test('an error of ssh, or of docker there, is the reason in the message', async () => {
  findFirst(await makeFailingSshProgram('Welcome to there.\n\nme@there: Permission denied (publickey).', 255))
  await expect(openEngineAt(endpoint)).rejects.toMatchObject({
    name: 'MirrorError',
    exit: 4,
    message: expect.stringMatching(
      /^No Docker engine answers at ssh:\/\/me@there:2222: .*Permission denied \(publickey\)\.$/,
    ),
    hints: ['ssh -l me -p 2222 -- there docker info   (shows the reason)'],
  })
})

test('an engine behind ssh without the ssh program is an error that says so', async () => {
  vi.stubEnv('PATH', '/nowhere')
  onTestFinished(() => void vi.unstubAllEnvs())
  await expect(openEngineAt(endpoint)).rejects.toMatchObject({
    name: 'MirrorError',
    exit: 4,
    message: 'The Docker engine at ssh://me@there:2222 needs ssh, which is not installed.',
  })
})

test('an ssh connection transfers large content in both directions with back pressure', async () => {
  const content = Buffer.alloc(3_000_000, 'content')
  const { folder } = await makeSshProgram(
    await startEngine((request, response) => {
      setTimeout(() => request.pipe(response), 20)
    }),
  )
  const connection = new SshConnection(endpoint, {
    ...process.env,
    PATH: `${folder}${delimiter}${process.env['PATH']}`,
  })
  connection.write(`POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: ${content.length}\r\n\r\n`)
  connection.write(content)
  const chunks: Buffer[] = []
  for await (const chunk of connection) chunks.push(chunk as Buffer)
  const answered = Buffer.concat(chunks).toString()
  expect(answered).toContain('HTTP/1.1 200')
  expect(answered.split('content').length).toBeGreaterThan(content.length / 8)
})

test('the agent ends an idle ssh connection', async () => {
  const { folder } = await makeSshProgram(await startEngine(answer))
  const env = { ...process.env, PATH: `${folder}${delimiter}${process.env['PATH']}` }
  const agent = Object.assign(new Agent({ keepAlive: true, timeout: 20 }), {
    createConnection: () => new SshConnection(endpoint, env),
  })
  const request = get('http://docker/_ping', { agent })
  const [response] = (await once(request, 'response')) as [IncomingMessage]
  const connection = request.socket as unknown as SshConnection
  expect(await response.setEncoding('utf8').toArray()).toEqual(['OK'])
  if (!connection.destroyed) await once(connection, 'close')
})

test('a destroyed connection ends its ssh', async () => {
  let isHungUp = false
  const requested = createDeferred()
  const { folder } = await makeSshProgram(
    await startEngine((request) => {
      request.socket.once('close', () => (isHungUp = true))
      requested.resolve()
    }),
  )
  const connection = new SshConnection(endpoint, {
    ...process.env,
    PATH: `${folder}${delimiter}${process.env['PATH']}`,
  })
  connection.write('GET / HTTP/1.1\r\nHost: x\r\n\r\n')
  await requested.promise
  connection.destroy()
  await once(connection, 'close')
  await expect.poll(() => isHungUp).toBe(true)
})

test('a destroyed connection ends the programs that its ssh started', async () => {
  const { folder, proxyPid } = await makeProxiedSshProgram()
  const connection = new SshConnection(endpoint, {
    ...process.env,
    PATH: `${folder}${delimiter}${process.env['PATH']}`,
  })
  await expect.poll(() => proxyPid().catch(() => 0)).toBeGreaterThan(0)
  connection.destroy()
  await once(connection, 'close')
  const proxy = await proxyPid()
  // Accepts a zombie, which remains in a system without an init that reaps orphans.
  await expect.poll(async () => (await readProcessStat(proxy))?.ended ?? true).toBe(true)
})
