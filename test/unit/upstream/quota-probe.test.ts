import { createServer, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { describe, expect, onTestFinished, test, vi } from 'vitest'
import { defaultConfig } from '../../../src/config/config.ts'
import { createUpstreamDirectory, probeQuotaRegularly } from '../../../src/daemon/upstreams.ts'
import { Slots } from '../../../src/lib/async.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { ProcessHealth } from '../../../src/lib/system-errors.ts'
import { systemClock } from '../../../src/lib/time.ts'
import { mediaType } from '../../../src/oci/content.ts'
import { createIdentify } from '../../../src/upstream/identity.ts'
import { ProbeImages } from '../../../src/upstream/probe-image.ts'
import { isDockerHub, isQuotaOutdated, probeQuota } from '../../../src/upstream/rate-limit.ts'
import { fakeClock, openUpstream } from '../../support/upstream/open-upstream.ts'
import { reply, serve } from '../../support/upstream/serve.ts'

const quota = {
  'ratelimit-limit': '100;w=21600',
  'ratelimit-remaining': '76;w=21600',
  'docker-ratelimit-source': '192.0.2.1',
}
const type = { 'content-type': mediaType.ociManifest }
const tag = { kind: 'tag', tag: 'v1' } as const

/** Serves as Docker Hub: answers each request as `answer` says, after a challenge for a password where `isPrivate`. */
const serveHub = (answer: (response: ServerResponse) => void, isPrivate = false) =>
  serve((request, response) => {
    if (isPrivate && request.headers.authorization === undefined)
      return reply(response, 401, { 'www-authenticate': 'Basic realm="hub"' })
    answer(response)
  })

describe('the request for the quota', () => {
  test('is one HEAD, after which the quota is known', async () => {
    const hub = await serveHub((response) => reply(response, 200, { ...type, ...quota }))
    const upstream = openUpstream(hub.url, { host: 'docker.io' })
    await probeQuota(upstream, silentLogger)
    expect(hub.log).toEqual(['HEAD /v2/ratelimitpreview/test/manifests/latest'])
    expect(upstream.health().rateLimit).toMatchObject({ limit: 100, remaining: 76, source: '192.0.2.1' })
  })

  test.each([500, 503, 404, 429])('is not repeated after a %i, and leaves the upstream healthy', async (status) => {
    const hub = await serveHub((response) => reply(response, status, { 'retry-after': '60' }))
    const upstream = openUpstream(hub.url, { host: 'docker.io' })
    for (let asked = 0; asked < 6; asked++) await probeQuota(upstream, silentLogger)
    expect(hub.log).toHaveLength(6)
    expect(upstream.health()).toEqual({ state: 'ok', rateLimit: undefined })
  })

  test('finds that an account has no limit, and a later answer with headers is preferred', async () => {
    let headers: Record<string, string> = {}
    const hub = await serveHub((response) => reply(response, 200, { ...type, ...headers }), true)
    const clock = fakeClock()
    const upstream = openUpstream(hub.url, {
      host: 'docker.io',
      credentials: { from: 'password-env', username: 'me', passwordEnv: 'PASSWORD' },
      env: { PASSWORD: 'secret' },
      clock,
    })
    await probeQuota(upstream, silentLogger)
    expect(upstream.health().rateLimit).toEqual({ unlimited: true, source: undefined, at: clock.wall() })
    headers = quota
    await upstream.resolve('library/app', tag, { access: 'credentialed' })
    expect(upstream.health().rateLimit).toMatchObject({ limit: 100 })
  })

  test('proves nothing about the limit without a credential, and no other image does', async () => {
    const hub = await serveHub((response) => reply(response, 200, type))
    const upstream = openUpstream(hub.url, { host: 'docker.io' })
    await probeQuota(upstream, silentLogger)
    await upstream.resolve('library/app', tag, { access: 'credentialed' })
    expect(upstream.health().rateLimit).toBeUndefined()
  })

  test.each([
    ['https://registry-1.docker.io', true],
    ['https://registry-1.docker.io/', true],
    ['https://harbor.corp.example', false],
    ['http://127.0.0.1:1', false],
    ['https://registry-1.docker.io.evil.example', false],
  ])('goes to Docker Hub only: %s', (url, expected) => {
    expect(isDockerHub(url)).toBe(expected)
  })

  interface DirectoryOptions {
    readonly offline?: boolean
    readonly env?: Record<string, string>
    readonly wall?: () => number
  }

  /** Creates a directory whose docker.io is at this URL. */
  function openDirectory(url: string, { offline = false, env = {}, wall = systemClock.wall }: DirectoryOptions) {
    const { cache, ...rest } = defaultConfig()
    const upstreams = {
      'docker.io': {
        url,
        credentials: { from: 'anonymous' as const },
        tokenHosts: [],
        ca: undefined,
        tagFreshness: undefined,
      },
    }
    const directory = createUpstreamDirectory({
      config: { ...rest, upstreams, cache: { ...cache, offline } },
      probeImages: new ProbeImages(
        () => 0,
        () => 'id',
      ),
      env,
      identify: createIdentify(Buffer.from('key')),
      userAgent: 'mirror/test',
      requests: new Slots(100),
      clock: { ...systemClock, wall },
      logger: silentLogger,
      ownTroubles: new ProcessHealth(systemClock),
      history: { recordResponse: () => {} },
    })
    onTestFinished(() => directory.close())
    return directory
  }

  test('is not sent to a server that stands in for Docker Hub', async () => {
    const hub = await serveHub((response) => reply(response, 200, { ...type, ...quota }))
    const directory = openDirectory(hub.url, {})
    await directory.probeQuota()
    expect(hub.log).toEqual([])
    expect([...directory.all()]).toEqual([])
  })

  /** Starts a proxy that connects to nobody, so that no test reaches Docker Hub. */
  async function startProxy() {
    const asked: string[] = []
    const proxy = createServer()
    proxy.on('connect', (request, socket) => {
      asked.push(String(request.url))
      socket.end('HTTP/1.1 502 Bad Gateway\r\n\r\n')
    })
    await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve))
    onTestFinished(() => void proxy.close())
    return { asked, env: { https_proxy: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}` } }
  }

  test.each<[string, DirectoryOptions, number]>([
    ['once', {}, 1],
    ['never offline', { offline: true }, 0],
    ['never with MIRROR_NO_QUOTA_PROBE', { env: { MIRROR_NO_QUOTA_PROBE: '1' } }, 0],
  ])('is sent to Docker Hub %s, and its failure adds no upstream to the status', async (_, options, expected) => {
    const { asked, env } = await startProxy()
    const directory = openDirectory('https://registry-1.docker.io', { ...options, env: { ...env, ...options.env } })
    await directory.probeQuota()
    expect(asked).toEqual(Array.from({ length: expected }, () => 'registry-1.docker.io:443'))
    expect([...directory.all()]).toEqual([])
  })

  test('is not sent while the offline switch is on, and is sent when the mirror goes online again', async () => {
    const { asked, env } = await startProxy()
    const directory = openDirectory('https://registry-1.docker.io', { env })
    directory.setOffline(true)
    await directory.probeQuota()
    expect(asked).toEqual([])
    expect(directory.setOffline(false)).toEqual({ active: false, source: 'session' })
    await expect.poll(() => asked).toHaveLength(1)
    // The mirror is online already.
    directory.setOffline(false)
    await directory.probeQuota()
    expect(asked).toHaveLength(2)
  })

  test('is not sent again until the window of the known quota ends', async () => {
    const hub = await serveHub((response) => reply(response, 200, { ...type, ...quota }))
    let now = systemClock.wall()
    // The proxy answers in place of Docker Hub.
    const options = { env: { http_proxy: hub.url }, wall: () => now }
    const directory = openDirectory('http://registry-1.docker.io', options)
    for (let asked = 0; asked < 3; asked++) await directory.probeQuota()
    expect(hub.log).toHaveLength(1)
    expect([...directory.all()].map((upstream) => upstream.health().rateLimit)).toMatchObject([{ remaining: 76 }])
    now += 21_600_000
    await directory.probeQuota()
    expect(hub.log).toHaveLength(2)
  })

  test('is considered shortly after the start and every hour, until the server ends', async () => {
    vi.useFakeTimers()
    onTestFinished(() => void vi.useRealTimers())
    let considered = 0
    const stop = probeQuotaRegularly({ probeQuota: async () => void (considered += 1) }, silentLogger)
    await vi.advanceTimersByTimeAsync(1000)
    expect(considered).toBe(0)
    await vi.advanceTimersByTimeAsync(1000)
    expect(considered).toBe(1)
    await vi.advanceTimersByTimeAsync(2 * 3_600_000)
    expect(considered).toBe(3)
    stop()
    await vi.advanceTimersByTimeAsync(2 * 3_600_000)
    expect(considered).toBe(3)
  })

  const known = { limit: 100, remaining: 3, windowSeconds: 21_600, source: undefined, at: 1_000_000 }
  test.each([
    ['unknown', undefined, 0, true],
    ['younger than its window', known, 21_599_000, false],
    ['as old as its window', known, 21_600_000, true],
    ['full again', { ...known, resetsAt: 1_060_000 }, 60_000, true],
    ['not yet full again', { ...known, resetsAt: 1_060_000 }, 59_000, false],
    ['unlimited for an hour', { unlimited: true, source: undefined, at: 1_000_000 } as const, 3_600_000, false],
    ['unlimited for six hours', { unlimited: true, source: undefined, at: 1_000_000 } as const, 21_600_000, true],
  ])('is needed or not when the quota is %s', (_, rateLimit, ageMs, expected) => {
    expect(isQuotaOutdated(rateLimit, 1_000_000 + ageMs)).toBe(expected)
  })
})
