import { describe, expect, test } from 'vitest'
import { expectContent, expectError } from '../support/expect-content.ts'
import { makeImage } from '../support/images.ts'
import { startTestMirror } from '../support/mirror.ts'
import { startUpstream } from '../support/upstream.ts'

const hub = makeImage({ seed: 1 })
const ghcr = makeImage({ seed: 2 })

async function startTwo() {
  const docker = await startUpstream({ images: { 'library/app': { v1: hub }, 'team/app': { v1: hub } } })
  const other = await startUpstream({
    images: { 'library/app': { v1: ghcr }, app: { v1: ghcr }, 'team/app': { v1: ghcr }, 'gcr.io/app': { v1: ghcr } },
  })
  const upstreams = {
    'docker.io': docker.url,
    'ghcr.io': other.url,
    'localhost:5000': other.url,
    'registry.corp.example': other.url,
    'registry.corp.example:8443': other.url,
  }
  return { docker, other, mirror: await startTestMirror({ upstreams }) }
}

describe('the upstream of a request', () => {
  test.each([
    ['?ns=', '/v2/team/app/manifests/v1?ns=ghcr.io', 'ghcr.io', 'team/app'],
    ['?ns= in capitals', '/v2/team/app/manifests/v1?ns=GHCR.IO', 'ghcr.io', 'team/app'],
    ['?ns= with the registry in front too', '/v2/ghcr.io/team/app/manifests/v1?ns=ghcr.io', 'ghcr.io', 'team/app'],
    ['?ns= before a dotted first segment', '/v2/gcr.io/app/manifests/v1?ns=ghcr.io', 'ghcr.io', 'gcr.io/app'],
    ['a first segment with a dot', '/v2/ghcr.io/team/app/manifests/v1', 'ghcr.io', 'team/app'],
    ['a first segment with a port', '/v2/localhost:5000/team/app/manifests/v1', 'localhost:5000', 'team/app'],
    [
      'a port after an underscore',
      '/v2/registry.corp.example_8443/team/app/manifests/v1',
      'registry.corp.example:8443',
      'team/app',
    ],
    ['upstream/ in front', '/v2/upstream/ghcr.io/team/app/manifests/v1', 'ghcr.io', 'team/app'],
    ['the registry before v2', '/ghcr.io/v2/team/app/manifests/v1', 'ghcr.io', 'team/app'],
    ['nothing', '/v2/team/app/manifests/v1', 'docker.io', 'team/app'],
    ['nothing, and a single segment', '/v2/app/manifests/v1', 'docker.io', 'library/app'],
    ['docker.io and a single segment', '/v2/docker.io/app/manifests/v1', 'docker.io', 'library/app'],
    ['?ns=docker.io and a single segment', '/v2/app/manifests/v1?ns=docker.io', 'docker.io', 'library/app'],
    ['a single segment elsewhere', '/v2/ghcr.io/app/manifests/v1', 'ghcr.io', 'app'],
  ])('%s: %s', async (_, path, registry, name) => {
    const { docker, other, mirror } = await startTwo()
    const answer = await mirror.get(path)
    expectContent(answer, registry === 'docker.io' ? hub.digest : ghcr.digest)
    expect(answer.headers['oci-namespace']).toBe(registry)
    const asked = registry === 'docker.io' ? docker : other
    expect(asked.requests.map(({ path: seen }) => seen)).toEqual([`/v2/${name}/manifests/v1`])
  })

  test('has one cache for all shapes of URLs', async () => {
    const { other, mirror } = await startTwo()
    const [layer] = ghcr.layers
    await mirror.get('/v2/ghcr.io/team/app/manifests/v1')
    for (const path of [
      `/v2/team/app/blobs/${layer}?ns=ghcr.io`,
      `/v2/ghcr.io/team/app/blobs/${layer}`,
      `/v2/upstream/ghcr.io/team/app/blobs/${layer}`,
      `/ghcr.io/v2/team/app/blobs/${layer}`,
    ]) {
      expectContent(await mirror.get(path), layer!)
    }
    expect(other.count({ path: /\/blobs\// })).toBe(1)
  })

  test('is optional for /v2/, which answers in every shape', async () => {
    const { mirror } = await startTwo()
    for (const path of ['/v2/', '/v2', '/v2/?ns=ghcr.io', '/ghcr.io/v2/']) {
      const answer = await mirror.get(path)
      expect(answer).toMatchObject({ status: 200, headers: { 'docker-distribution-api-version': 'registry/2.0' } })
    }
  })
})

describe('a registry that is not allowed', () => {
  test.each([
    ['?ns= of a stranger', '/v2/team/app/manifests/v1?ns=evil.example', 404],
    ['a stranger in front', '/v2/evil.example/team/app/manifests/v1', 404],
    ['a stranger after upstream/', '/v2/upstream/evil.example/team/app/manifests/v1', 404],
    ['a stranger before v2', '/evil.example/v2/team/app/manifests/v1', 404],
    ['a metadata address', '/v2/team/app/manifests/v1?ns=169.254.169.254', 404],
    ['a loopback port', '/v2/team/app/manifests/v1?ns=127.0.0.1:1', 404],
    ['localhost', '/v2/localhost/app/manifests/v1', 404],
    ['*.pkg.dev without ns', '/v2/europe-docker.pkg.dev/p/app/manifests/v1', 404],
    ['user info', '/v2/team/app/manifests/v1?ns=a@ghcr.io', 400],
    ['a path', '/v2/team/app/manifests/v1?ns=docker.io/../x', 400],
    ['a scheme', '/v2/team/app/manifests/v1?ns=http://ghcr.io', 400],
    ['ns twice', '/v2/team/app/manifests/v1?ns=ghcr.io&ns=docker.io', 400],
    ['ns twice, the same', '/v2/team/app/manifests/v1?ns=ghcr.io&ns=ghcr.io', 400],
    ['300 characters', `/v2/team/app/manifests/v1?ns=${'a'.repeat(296)}.com`, 400],
    ['port 0', '/v2/team/app/manifests/v1?ns=ghcr.io:0', 400],
    ['port 65536', '/v2/team/app/manifests/v1?ns=ghcr.io:65536', 400],
    ['white space', '/v2/team/app/manifests/v1?ns=ghcr.io%20', 400],
    ['a line break', '/v2/team/app/manifests/v1?ns=ghcr.io%0d%0aX-A:b', 400],
  ])('is refused without a request: %s', async (_, path, status) => {
    const { docker, other, mirror } = await startTwo()
    const answer = await mirror.get(path)
    expectError(answer, status)
    expect(answer.headers['x-a']).toBeUndefined()
    expect(docker.requests.length + other.requests.length).toBe(0)
  })

  test('is named in the error, with the setting that allows it', async () => {
    const { mirror } = await startTwo()
    const { body } = await mirror.get('/v2/evil.example/team/app/manifests/v1')
    expect(body.toString()).toContain('evil.example')
    expect(body.toString()).toContain('upstreams')
  })
})

const list = (body: Buffer) => (JSON.parse(body.toString()) as { repositories: string[] }).repositories

describe('the catalog', () => {
  test('lists cached repositories, with the registry in the name, and ns filters them', async () => {
    const { mirror } = await startTwo()
    expect(list((await mirror.get('/v2/_catalog')).body)).toEqual([])
    await mirror.get('/v2/app/manifests/v1')
    await mirror.get('/v2/ghcr.io/team/app/manifests/v1')
    await mirror.get('/v2/ghcr.io/absent/app/manifests/v1')
    expect(list((await mirror.get('/v2/_catalog')).body)).toEqual(['docker.io/library/app', 'ghcr.io/team/app'])
    expect(list((await mirror.get('/v2/_catalog?ns=ghcr.io')).body)).toEqual(['ghcr.io/team/app'])
  })

  test('is divided into pages', async () => {
    const { mirror } = await startTwo()
    await mirror.get('/v2/app/manifests/v1')
    await mirror.get('/v2/ghcr.io/team/app/manifests/v1')
    const first = await mirror.get('/v2/_catalog?n=1')
    expect(list(first.body)).toEqual(['docker.io/library/app'])
    const next = /^<([^>]+)>; ?rel="?next"?$/.exec(first.headers['link'] as string)?.[1]
    const second = await mirror.get(next!)
    expect(list(second.body)).toEqual(['ghcr.io/team/app'])
    expect(second.headers['link']).toBeUndefined()
    for (const n of ['-1', 'x', '1.5']) expectError(await mirror.get(`/v2/_catalog?n=${n}`), 400)
    expect(list((await mirror.get('/v2/_catalog?n=0')).body)).toEqual([])
    expect(list((await mirror.get('/v2/_catalog?n=1000000000')).body)).toHaveLength(2)
  })
})
