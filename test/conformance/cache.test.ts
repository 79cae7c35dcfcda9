import { expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { get } from '../support/get.ts'
import { startTestMirror } from '../support/mirror.ts'
import { startTestRegistry } from '../support/registry.ts'
import { contentSets } from './support/content-sets.ts'
import { listReferrers, listTags, pushContent, readContent } from './support/walk-content.ts'

// Runs the suite's "Read Only Inputs" on the cache: no pushes, and content that an upstream has.
// https://github.com/opencontainers/distribution-spec/tree/main/conformance

const repository = 'conformance/repo1'

async function startCache() {
  const upstream = await startTestRegistry()
  const mirror = await startTestMirror({ upstreams: { 'docker.io': upstream.url, 'registry.example': upstream.url } })
  return { upstream: { url: upstream.url, repository }, mirror }
}

test.each(Object.entries(contentSets))(
  'the cache serves tag list, HEAD, pull and referrers of content of the suite, cold and then warm: %s',
  async (_name, makeContent) => {
    const { upstream, mirror } = await startCache()
    const content = makeContent()
    await pushContent(upstream, content)
    for (const prefix of ['docker.io/', 'registry.example/', '', 'upstream/docker.io/']) {
      const place = { url: mirror.url, repository: `${prefix}${repository}` }
      if (content.tags.size > 0) await listTags(place, content.tags.keys())
      await readContent(place, content)
      await listReferrers(place, content)
    }
  },
)

test.each(['500-1499', '500-', '-500', '2000-5000'])(
  'the cache serves the range %s of a blob, cold and then warm',
  async (range) => {
    const { upstream, mirror } = await startCache()
    const content = contentSets['Artifact']!()
    await pushContent(upstream, content)
    const [digest, bytes] = [...content.blobs].find(([, { length }]) => length === 2048)!
    const [first, last] = { '500-1499': [500, 1499], '500-': [500, 2047], '-500': [1548, 2047] }[range] ?? [2000, 2047]
    for (const _ of ['cold', 'warm']) {
      const headers = { range: `bytes=${range}` }
      const answer = await get(mirror.url, `/v2/docker.io/${repository}/blobs/${digest}`, { headers })
      expect(answer).toMatchObject({ status: 206, headers: { 'content-range': `bytes ${first}-${last}/2048` } })
      expect(answer.body.equals(bytes.subarray(first, last! + 1))).toBe(true)
    }
  },
)

test.each(['500-0', '5000-10000'])('the range %s of a cached blob is a 416', async (range) => {
  const { upstream, mirror } = await startCache()
  const content = contentSets['Artifact']!()
  await pushContent(upstream, content)
  const [digest] = [...content.blobs].find(([, { length }]) => length === 2048)!
  const headers = { range: `bytes=${range}` }
  const answer = await get(mirror.url, `/v2/docker.io/${repository}/blobs/${digest}`, { headers })
  expect(answer).toMatchObject({ status: 416, headers: { 'content-range': 'bytes */2048' } })
  expect(answer.headers['content-length']).toBe(String(answer.body.length))
})

test.each([
  ['manifest by digest', `manifests/${computeDigest(Buffer.from('missing'))}`, [404]],
  ['manifest by tag', 'manifests/missing-tag', [404]],
  ['manifest by a name that no tag has', 'manifests/.INVALID_MANIFEST_NAME', [404]],
  ['manifest by no digest', 'manifests/sha256:baddigeststring', [400, 404]],
  ['blob', `blobs/${computeDigest(Buffer.from('missing'))}`, [404]],
])('a missing %s is an absence, for HEAD and GET', async (_name, path, expected) => {
  const { upstream, mirror } = await startCache()
  await pushContent(upstream, contentSets['Image']!())
  for (const method of ['HEAD', 'GET'])
    expect(expected).toContain((await get(mirror.url, `/v2/docker.io/${repository}/${path}`, { method })).status)
})

test('each request that would change something is refused as unsupported', async () => {
  const { mirror } = await startCache()
  const digest = computeDigest(Buffer.from('x'))
  const asked = [
    ['POST', 'blobs/uploads/'],
    ['PUT', 'manifests/v1'],
    ['DELETE', 'manifests/v1'],
    ['DELETE', `manifests/${digest}`],
    ['DELETE', `blobs/${digest}`],
  ]
  for (const [method, path] of asked)
    expect((await get(mirror.url, `/v2/docker.io/${repository}/${path}`, { method: method! })).status).toBe(405)
})
