import { readFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, test } from 'vitest'
import { descriptorsOf } from '../support/descriptors.ts'
import { startMirrorProcess } from '../support/mirror-process.ts'
import { rawHttp } from '../support/raw-http.ts'

const paths = [
  '/api/cache/rm',
  '/api/cache/prune',
  '/api/cache/verify',
  '/api/registry/rm',
  '/api/registry/gc',
  '/api/registry/prune',
  '/api/canary/end',
]

async function startAdmin() {
  const mirror = await startMirrorProcess({ upstreams: {}, registry: true, cache: { timeouts: { idle: '1s' } } })
  const token = (await readFile(join(mirror.home, 'state', 'token'), 'utf8')).trim()
  const head = (path: string, extra: string) =>
    `POST ${path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${token}\r\n${extra}\r\n\r\n`
  return { mirror, head }
}

describe('a request to the admin listener', () => {
  test('whose body never arrives is ended after the idle time, whatever its path', async () => {
    const { mirror, head } = await startAdmin()
    const ask = (path: string, extra: string, body: string) =>
      rawHttp(mirror.adminUrl, head(path, extra) + body, 20_000)
    const answers = await Promise.all(
      paths.flatMap((path) => [
        ask(path, 'Content-Length: 100', '{'),
        ask(path, 'Transfer-Encoding: chunked', '1\r\n{\r\n'),
        ask(path, 'Content-Length: 100', ''),
      ]),
    )
    for (const { closed } of answers) expect(closed).toBe(true)
    expect(mirror.log()).not.toContain('"level":"error"')
    expect((await mirror.status()).running).toBe(true)
  })

  test('that its client aborts is not logged as an error', async () => {
    const { mirror, head } = await startAdmin()
    const { hostname, port } = new URL(mirror.adminUrl)
    const isLinux = process.platform === 'linux'
    const before = isLinux ? descriptorsOf(mirror.pid) : 0
    for (const path of paths) {
      for (const end of ['destroy', 'resetAndDestroy'] as const) {
        const socket = connect(Number(port), hostname)
        socket.on('error', () => {})
        await new Promise<void>((resolve) => socket.write(`${head(path, 'Content-Length: 100')}{`, () => resolve()))
        await sleep(20)
        socket[end]()
      }
    }
    // Waits until the server has closed all of them.
    if (isLinux) await expect.poll(() => descriptorsOf(mirror.pid)).toBeLessThanOrEqual(before + 1)
    expect((await mirror.status()).running).toBe(true)
    expect(mirror.log()).not.toContain('"level":"error"')
  })
})
