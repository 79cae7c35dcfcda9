import { mkdtemp, rm } from 'node:fs/promises'
import { createServer, type RequestListener } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { openContainerEngine } from '../../../src/runtime/dockerode-container-engine.ts'

/** An engine that answers a ping, and whatever is said here to everything else. */
async function openWith(answer: RequestListener) {
  const folder = await mkdtemp(join(tmpdir(), 'mirror-engine-'))
  const path = join(folder, 'docker.sock')
  const server = createServer((request, response) =>
    request.url === '/_ping' ? response.end('OK') : answer(request, response),
  )
  await new Promise<void>((resolve) => server.listen(path, resolve))
  onTestFinished(async () => {
    server.closeAllConnections()
    await new Promise<void>((resolve) => void server.close(() => resolve()))
    await rm(folder, { recursive: true })
  })
  return openContainerEngine({ kind: 'socket', path })
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
])('an engine that %s is one that is missing, with a sentence', async (_, answer) => {
  const engine = await openWith(answer)
  await expect(engine.images.import('made:1', {}, content())).rejects.toMatchObject({
    name: 'MirrorError',
    exit: 4,
    message: expect.stringMatching(/^The Docker engine has stopped answering: .*\.$/),
  })
})

test('what an engine refuses is told in its own words', async () => {
  const engine = await openWith((_, response) => {
    response.writeHead(500, { 'content-type': 'application/json' }).end('{"message":"no space left on device.\\n"}')
  })
  const refused = { name: 'DockerError', status: 500, message: 'no space left on device' }
  await expect(engine.containers.start('mirror')).rejects.toMatchObject(refused)
  await expect(engine.networks.connect('kind', 'mirror', 'mirror')).rejects.toMatchObject(refused)
  await expect(engine.containers.unpack('mirror', '/data', Buffer.from('tar'))).rejects.toMatchObject(refused)
})
