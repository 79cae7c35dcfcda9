import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { createAdminClient } from '../../../src/admin/client.ts'

let folder: string
const ends: (() => void)[] = []
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'mirror-admin-'))
})
afterEach(async () => {
  for (const end of ends.splice(0)) end()
  await rm(folder, { recursive: true })
})

async function clientOf(handle: (request: IncomingMessage, response: ServerResponse) => void, timeoutMs = 5000) {
  const server = createServer(handle)
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  ends.push(() => server.close().closeAllConnections())
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  return createAdminClient({ url, tokenFile: join(folder, 'token'), timeoutMs })
}

describe('the admin client', () => {
  test('sends the token of the state folder', async () => {
    await writeFile(join(folder, 'token'), 'secret\n')
    const client = await clientOf(({ method, url, headers }, response) => {
      response.end(
        JSON.stringify({ images: [`${method} ${url} ${headers.authorization}`], blobs: 0, bytes: 0, unknown: [] }),
      )
    })
    expect((await client.cache.remove({ names: [], dryRun: true })).images).toEqual([
      'POST /api/cache/rm Bearer secret',
    ])
  })

  test('sends its request as JSON', async () => {
    const client = await clientOf((request, response) => void request.pipe(response))
    expect(await client.cache.remove({ names: ['a', 'é'], dryRun: true })).toEqual({ names: ['a', 'é'], dryRun: true })
  })

  test('reads progress line by line, however the network splits the lines', async () => {
    const client = await clientOf((_request, response) => {
      response.write('{"checked":1}\n{"che')
      setTimeout(() => response.end('cked":2,"done":true}\n'), 20)
    })
    const steps = []
    for await (const step of client.cache.verify({ quarantine: true }, new AbortController().signal)) steps.push(step)
    expect(steps).toEqual([{ checked: 1 }, { checked: 2, done: true }])
  })

  test('fails with exit code 4 when no mirror listens', async () => {
    const client = createAdminClient({ url: 'http://127.0.0.1:1', tokenFile: join(folder, 'token'), timeoutMs: 1000 })
    await expect(client.getStatus()).rejects.toMatchObject({ name: 'MirrorError', exit: 4 })
  })

  test('waits for a long operation while the mirror answers health checks', async () => {
    let requests = 0
    let finish = () => {}
    const client = await clientOf(({ url }, response) => {
      if (url !== '/healthz')
        return void (finish = () => response.end('{"images":[],"blobs":1,"bytes":2,"unknown":[]}'))
      // Answers 503 every second time, because a mirror that cannot fetch still runs its jobs.
      response.writeHead((requests += 1) % 2 === 0 ? 200 : 503).end('{}')
      if (requests === 2) finish()
    }, 1500)
    await expect(client.registry.gc({ dryRun: false, grace: 0, untagged: true })).resolves.toMatchObject({ blobs: 1 })
    expect(requests).toBe(2)
  })

  test('gives up a long operation when the mirror does not answer a health check', async () => {
    const client = await clientOf(() => {}, 100)
    const collected = client.registry.gc({ dryRun: false, grace: 0, untagged: true })
    await expect(collected).rejects.toMatchObject({ name: 'MirrorError', exit: 4 })
  })

  test('fails with exit code 4 when the mirror sends no answer', async () => {
    const client = await clientOf(() => {}, 100)
    await expect(client.getStatus()).rejects.toMatchObject({ name: 'MirrorError', exit: 4 })
  })

  test('fails with exit code 4 when the mirror stops in the middle of its answer', async () => {
    const silent = await clientOf((_request, response) => void response.write('{"vers'), 100)
    await expect(silent.getStatus()).rejects.toMatchObject({ name: 'MirrorError', exit: 4 })
    const broken = await clientOf((_request, response) => {
      response.write('{"vers')
      setTimeout(() => response.destroy(), 20)
    })
    await expect(broken.getStatus()).rejects.toMatchObject({ name: 'MirrorError', exit: 4 })
  })

  test('names the file of a refused token, and not the token', async () => {
    await writeFile(join(folder, 'token'), 'secret')
    const client = await clientOf((_request, response) => void response.writeHead(401).end('{}'))
    const error = await client.stop().catch((error: unknown) => error as Error)
    expect(error).toMatchObject({ name: 'MirrorError', message: expect.stringContaining(join(folder, 'token')) })
    expect(String(error)).not.toContain('secret')
  })

  test('quotes a mirror without free file descriptors, with next steps', async () => {
    const message = 'The mirror has too many files open.'
    const body = JSON.stringify({ errors: [{ code: 'UNAVAILABLE', message }] })
    const client = await clientOf((_request, response) => void response.writeHead(503).end(body))
    const error = await client.getStatus().catch((error: unknown) => error as Error)
    expect(error).toMatchObject({ name: 'MirrorError', hints: ['Run the command again in a moment', 'mirror logs'] })
    expect((error as Error).message).toMatch(
      /^The mirror on http:\S+ answered 503: The mirror has too many files open\.$/,
    )
  })

  test('recognizes a mirror of an older version, which has no such path, and names the command that replaces it', async () => {
    const message = 'The admin listener has nothing at this path.'
    const body = JSON.stringify({ errors: [{ code: 'UNKNOWN', message }] })
    const client = await clientOf((_request, response) => void response.writeHead(404).end(body))
    const error = await client.createTicket().catch((error: unknown) => error as Error)
    expect(error).toMatchObject({ name: 'MirrorError', hints: [expect.stringContaining('mirror up')] })
    expect((error as Error).message).toContain('is of an older version')
  })

  test('ends a verification when the signal aborts', async () => {
    const client = await clientOf((_request, response) => void response.write('{"checked":1}\n'))
    const interrupt = new AbortController()
    const read = async () => {
      for await (const step of client.cache.verify({ quarantine: false }, interrupt.signal)) {
        expect(step.checked).toBe(1)
        interrupt.abort()
      }
    }
    await expect(read()).rejects.toThrow()
  })
})
