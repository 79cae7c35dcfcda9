import { createServer, type AddressInfo, type Socket } from 'node:net'
import { describe, expect, onTestFinished, test } from 'vitest'
import { defaultConfig } from '../../../src/config/config.ts'
import { createUpstreamDirectory, maxPatternUpstreams } from '../../../src/daemon/upstreams.ts'
import { Slots } from '../../../src/lib/async.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { ProcessHealth } from '../../../src/lib/system-errors.ts'
import { systemClock } from '../../../src/lib/time.ts'
import { createIdentify } from '../../../src/upstream/identity.ts'
import { ProbeImages } from '../../../src/upstream/probe-image.ts'
import { commandEnv } from '../../support/command-env.ts'
import { temporaryHome } from '../../support/mirror.ts'

const tag = { kind: 'tag', tag: '1' } as const
const call = { access: 'anonymous', isBestEffort: true } as const

/** Starts a proxy that refuses every connection to a registry, except those to a host that starts with `slow`, which it keeps open. */
async function startProxy() {
  const slow = new Map<string, Socket>()
  const asked: string[] = []
  const proxy = createServer((socket) => {
    socket.on('error', () => {})
    socket.once('data', (data) => {
      const [, host = ''] = /^CONNECT ([^:]+)/.exec(data.toString()) ?? []
      asked.push(host)
      if (host.startsWith('slow')) slow.set(host, socket)
      else socket.end('HTTP/1.1 502 Bad Gateway\r\n\r\n')
    })
  })
  await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => {
    for (const socket of slow.values()) socket.destroy()
    proxy.close()
  })
  return { url: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`, slow, asked }
}

async function openDirectory({ offline = false } = {}) {
  const proxy = await startProxy()
  const { cache, ...rest } = defaultConfig()
  const directory = createUpstreamDirectory({
    config: { ...rest, cache: { ...cache, offline } },
    probeImages: new ProbeImages(
      () => 0,
      () => 'id',
    ),
    env: { ...commandEnv(await temporaryHome()), https_proxy: proxy.url },
    identify: createIdentify(Buffer.from('key')),
    userAgent: 'mirror/test',
    requests: new Slots(100),
    clock: systemClock,
    logger: silentLogger,
    ownTroubles: new ProcessHealth(systemClock),
    history: { recordResponse: () => {} },
  })
  onTestFinished(() => directory.close())
  const find = (registry: string) => directory.route({ registry, name: 'p/r/i', byNamespace: true })!.upstream
  const ask = (registry: string) => find(registry).resolve('p/r/i', tag, call)
  const list = () => Array.from(directory.all(), ({ host }) => host)
  return { proxy, directory, find, ask, list }
}

/** Names hosts that the pattern *.pkg.dev allows. */
const hosts = (count: number) => Array.from({ length: count }, (_, at) => `r${at}.pkg.dev`)

describe('the upstreams of a pattern', () => {
  test('are closed beyond a limit, the least recently used ones first, and a call opens them again', async () => {
    const { ask, list, find } = await openDirectory()
    const first = find('r0.pkg.dev')
    for (const host of hosts(maxPatternUpstreams)) await expect(ask(host)).rejects.toThrow('502')
    await expect(ask('r0.pkg.dev')).rejects.toThrow('502')
    await expect(ask('new.pkg.dev')).rejects.toThrow('502')
    expect(list().toSorted()).toEqual(
      [...hosts(maxPatternUpstreams), 'new.pkg.dev'].filter((host) => host !== 'r1.pkg.dev').toSorted(),
    )
    for (const host of hosts(3 * maxPatternUpstreams)) await expect(ask(host)).rejects.toThrow('502')
    expect(list()).toEqual(hosts(3 * maxPatternUpstreams).slice(-maxPatternUpstreams))
    expect(first.health()).toEqual({ state: 'ok', rateLimit: undefined })
    await expect(first.resolve('p/r/i', tag, call)).rejects.toThrow('502')
    expect(list()).toContain('r0.pkg.dev')
  })

  test('are not closed while a request runs', async () => {
    const { proxy, ask, list } = await openDirectory()
    const running = ask('slow.pkg.dev')
    const failed = expect(running).rejects.toThrow('502')
    await expect.poll(() => proxy.slow.has('slow.pkg.dev')).toBe(true)
    for (const host of hosts(2 * maxPatternUpstreams)) await expect(ask(host)).rejects.toThrow('502')
    expect(list()).toHaveLength(maxPatternUpstreams)
    expect(list()).toContain('slow.pkg.dev')
    proxy.slow.get('slow.pkg.dev')!.end('HTTP/1.1 502 Bad Gateway\r\n\r\n')
    await failed
  })

  test('are as many as run at the same time, and fewer when their requests are over', async () => {
    const { proxy, ask, list } = await openDirectory()
    const slow = hosts(maxPatternUpstreams + 4).map((host) => `slow-${host}`)
    const failed = slow.map((host) => expect(ask(host)).rejects.toThrow('502'))
    await expect.poll(() => proxy.slow.size).toBe(slow.length)
    expect(list()).toHaveLength(slow.length)
    for (const socket of proxy.slow.values()) socket.end('HTTP/1.1 502 Bad Gateway\r\n\r\n')
    await Promise.all(failed)
    expect(list()).toHaveLength(maxPatternUpstreams)
  })

  test('are as few while the mirror is offline', async () => {
    const { ask, list, proxy } = await openDirectory({ offline: true })
    for (const host of hosts(2 * maxPatternUpstreams)) await expect(ask(host)).rejects.toThrow('offline')
    expect(list()).toHaveLength(maxPatternUpstreams)
    expect(proxy.asked).toEqual([])
  })

  test('do not close an upstream that has a name', async () => {
    const { ask, list } = await openDirectory()
    for (const host of ['ghcr.io', ...hosts(2 * maxPatternUpstreams)]) await expect(ask(host)).rejects.toThrow()
    expect(list()[0]).toBe('ghcr.io')
    expect(list()).toHaveLength(maxPatternUpstreams + 1)
  })
})
