import { describe, expect, test } from 'vitest'
import { createAdminClient } from '../../src/admin/client.ts'
import type { RequestReport } from '../../src/stats/requests.ts'
import { expectError } from '../support/expect-content.ts'
import { get } from '../support/get.ts'
import { makeImage } from '../support/images.ts'
import { startTestRegistry } from '../support/registry.ts'
import { app, startScene } from '../support/scene.ts'

async function list(adminUrl: string, query = ''): Promise<RequestReport[]> {
  return JSON.parse((await get(adminUrl, `/api/requests${query}`)).body.toString()) as RequestReport[]
}

describe('GET /api/requests', () => {
  test('lists the requests of the cache with the newest first, without pings', async () => {
    const { mirror, image, layer } = await startScene({ cache: { tagFreshness: 60_000 } })
    await mirror.get('/v2/')
    const headers = { 'user-agent': 'containerd/2.1.9' }
    const tag = await mirror.get(`${app}/manifests/v1`, { headers })
    const hit = await mirror.get(`${app}/manifests/v1`, { headers })
    const blob = await mirror.get(`${app}/blobs/${layer}`)
    const absent = await mirror.get(`${app}/manifests/absent`)
    await expect.poll(async () => (await list(mirror.adminUrl)).length).toBe(4)
    const common = { listener: 'cache', method: 'GET', repository: 'docker.io/library/app', client: '127.0.0.1' }
    expect(await list(mirror.adminUrl)).toMatchObject([
      { ...common, id: absent.headers['x-request-id'], kind: 'manifest', reference: 'absent', status: 404 },
      { ...common, id: blob.headers['x-request-id'], kind: 'blob', reference: layer, cache: 'miss' },
      { ...common, id: hit.headers['x-request-id'], cache: 'hit', bytes: image.bytes.length },
      { ...common, id: tag.headers['x-request-id'], cache: 'miss', reference: 'v1', agent: 'containerd/2.1.9' },
    ])
  })

  test('selects those of an image by each form of its name, and limits their number', async () => {
    const { mirror, layer } = await startScene()
    await mirror.get(`${app}/manifests/v1`)
    await mirror.get(`${app}/manifests/absent`)
    await mirror.get(`${app}/blobs/${layer}`)
    await expect.poll(async () => (await list(mirror.adminUrl)).length).toBe(3)
    const references = async (query: string) => (await list(mirror.adminUrl, query)).map(({ reference }) => reference)
    const address = new URL(mirror.url).host
    for (const name of ['app:v1', 'docker.io/library/app:v1', `${address}/library/app:v1`])
      expect(await references(`?image=${encodeURIComponent(name)}`)).toEqual([layer, 'v1'])
    expect(await references('?image=app')).toEqual([layer, 'absent', 'v1'])
    expect(await references(`?image=app@${layer}`)).toEqual([layer])
    expect(await references(`?image=${layer}`)).toEqual([layer])
    expect(await references('?image=ghcr.io/app')).toEqual([])
    expect(await references('?limit=1')).toEqual([layer])
  })

  test('lists pushes and pulls of the registry by the names that images have there', async () => {
    const registry = await startTestRegistry()
    await registry.push('team/app', 'v1', makeImage())
    await registry.get('/v2/team/app/manifests/v1')
    const client = createAdminClient({
      url: (await registry.status()).endpoints.admin[0]!,
      tokenFile: '',
      timeoutMs: 5000,
    })
    await expect
      .poll(async () => (await client.listRequests({ image: 'team/app:v1', limit: 1 })).map(({ method }) => method))
      .toEqual(['GET'])
    const all = await client.listRequests({ limit: 100 })
    expect(all.map(({ listener, repository }) => `${listener} ${repository}`)).toContain('registry team/app')
    expect(all.find(({ method, kind }) => method === 'PUT' && kind === 'manifest')?.status).toBe(201)
  })

  test.each(['0', '-1', 'x', '1e3', ''])('refuses the limit %j', async (limit) => {
    const { mirror } = await startScene()
    expectError(await get(mirror.adminUrl, `/api/requests?limit=${limit}`), 400)
  })
})
