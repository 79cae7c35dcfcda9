import { describe, expect, onTestFinished, test } from 'vitest'
import type { LiveEvents, LiveSummary, RequestReport } from '../../src/admin/activity.ts'
import { type Headers, sameOrigin, startSession } from '../support/dashboard.ts'
import { expectError } from '../support/expect-content.ts'
import { get, open } from '../support/get.ts'
import { startTestMirror } from '../support/mirror.ts'
import { outsideAddress } from '../support/outside-address.ts'
import { app, startScene } from '../support/scene.ts'

/** Listens to the events of a mirror as its page does. */
async function listenTo(adminUrl: string, headers: Headers = {}) {
  const response = await open(adminUrl, '/api/events', { headers: { ...sameOrigin, ...headers } })
  expect(response.statusCode).toBe(200)
  const events: { name: string; data: unknown }[] = []
  let rest = ''
  response.setEncoding('utf8').on('data', (text: string) => {
    const blocks = (rest + text).split('\n\n')
    rest = blocks.pop()!
    for (const block of blocks) {
      const [, name, data] = /^event: (\w+)\ndata: (.*)$/.exec(block) ?? []
      if (name !== undefined) events.push({ name, data: JSON.parse(data!) })
    }
  })
  response.on('error', () => {})
  onTestFinished(() => void response.destroy())
  const find = <Name extends keyof LiveEvents>(name: Name) =>
    events.filter((event) => event.name === name).map(({ data }) => data as LiveEvents[Name])
  return { response, find }
}

describe('a page that listens to a mirror', () => {
  test('sees each request within a second, and the numbers of the status', async () => {
    const { mirror, layer } = await startScene()
    const { find } = await listenTo(mirror.adminUrl)
    await expect.poll(() => find('summary').length).toBe(1)
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(`${app}/blobs/${layer}`)
    await mirror.untilStored(2)
    await mirror.get(`${app}/blobs/${layer}`)
    const list = () => find('requests').flatMap(({ requests }): readonly RequestReport[] => requests)
    await expect.poll(() => list().length, { timeout: 1000 }).toBe(3)
    expect(list().map(({ kind, status, cache }) => [kind, status, cache])).toEqual([
      ['manifest', 200, 'miss'],
      ['blob', 200, 'miss'],
      ['blob', 200, 'hit'],
    ])
    const status = await mirror.status()
    const numbers = { cache: status.cache, upstreams: status.upstreams, offline: false }
    // A summary may have been on its way before the last request was counted.
    await expect.poll(() => find('summary').at(-1), { timeout: 5000 }).toMatchObject(numbers)
    const summary: LiveSummary = find('summary').at(-1)!
    expect(summary.storage).toMatchObject({ bytes: status.storage.bytes, blobs: status.storage.blobs })
    expect(summary.today).toMatchObject({ hits: 1, misses: 2 })
    expect(find('changed').flatMap(({ what }) => what)).toContain('images')
  })

  test('sees the download of a blob while it arrives', async () => {
    const { mirror, upstream, layer } = await startScene()
    const { find } = await listenTo(mirror.adminUrl)
    await mirror.get(`${app}/manifests/v1`)
    upstream.on({ path: new RegExp(`/blobs/${layer}`) }, async () => {
      await expect.poll(() => find('downloads').at(-1)?.length, { timeout: 3000 }).toBe(1)
    })
    const pulled = mirror.get(`${app}/blobs/${layer}`)
    await expect.poll(() => find('downloads').at(-1)?.[0]?.digest, { timeout: 3000 }).toBe(layer)
    await pulled
    await expect.poll(() => find('downloads').at(-1), { timeout: 3000 }).toEqual([])
  })

  test('is told when another page, or a command, has changed something', async () => {
    const { mirror } = await startScene()
    const { find } = await listenTo(mirror.adminUrl)
    const { headers } = await startSession(mirror)
    const switched = await get(mirror.adminUrl, '/api/offline', { method: 'POST', headers, body: '{"offline":true}' })
    expect(switched.status).toBe(200)
    await expect.poll(() => find('changed').flatMap(({ what }) => what), { timeout: 4000 }).toEqual(['offline'])
    expect(find('summary').at(-1)!.offline).toBe(true)
    await mirror.post('/api/cache/prune', { dryRun: true })
    await mirror.post('/api/cache/prune', {})
    await expect
      .poll(() => find('changed').flatMap(({ what }) => what), { timeout: 4000 })
      .toEqual(['offline', 'images'])
  })

  test('does not delay the end of the mirror', async () => {
    const { mirror } = await startScene()
    const { response } = await listenTo(mirror.adminUrl)
    const closed = new Promise((resolve) => response.once('close', resolve))
    const from = performance.now()
    await mirror.close()
    await closed
    expect(performance.now() - from).toBeLessThan(5000)
  })
})

describe.skipIf(outsideAddress === undefined)('a page that listens from where reading needs a session', () => {
  test('hears nothing more as soon as its session has ended, and the other pages go on', async () => {
    const mirror = await startTestMirror({ adminHost: outsideAddress! })
    const [first, second] = [await startSession(mirror), await startSession(mirror)]
    const [ending, staying] = await Promise.all(
      [first, second].map(({ headers }) => listenTo(mirror.adminUrl, { cookie: headers.cookie })),
    )
    await expect.poll(() => [ending, staying].map((page) => page!.find('summary').length > 0)).toEqual([true, true])
    const closed = new Promise((resolve) => ending!.response.once('close', resolve))
    await get(mirror.adminUrl, '/api/session', { method: 'DELETE', headers: first.headers })
    await mirror.post('/api/offline', { offline: true })
    await closed
    expect(ending!.find('changed')).toEqual([])
    await expect.poll(() => staying!.find('changed').flatMap(({ what }) => what)).toEqual(['offline'])
    expectError(await get(mirror.adminUrl, '/api/events', { headers: { cookie: first.headers.cookie } }), 401)
  })
})
