import { expect, test } from 'vitest'
import { computeDigest } from '../../src/oci/reference.ts'
import { mediaType } from '../../src/oci/content.ts'
import { get } from '../support/get.ts'
import { startTestRegistry } from '../support/registry.ts'
import { Content } from './support/content.ts'
import { contentSets } from './support/content-sets.ts'
import { pushBlob } from './support/push-blob.ts'
import { deleteContent, listReferrers, listTags, pushContent, readContent } from './support/walk-content.ts'

// Follows TestAll of the suite's development version, without its blob tests.
// https://github.com/opencontainers/distribution-spec/tree/main/conformance

const repository = 'conformance/repo1'

test('the registry answers /v2/ with 200 (ping)', async () => {
  const { url } = await startTestRegistry()
  expect((await get(url, '/v2/')).status).toBe(200)
})

test('an empty registry has no tags and no referrers (empty)', async () => {
  const { url } = await startTestRegistry()
  expect([200, 404]).toContain((await get(url, `/v2/${repository}/tags/list`)).status)
  const answer = await get(url, `/v2/${repository}/referrers/${computeDigest(Buffer.from('x'))}`)
  expect(answer).toMatchObject({ status: 200, headers: { 'content-type': mediaType.ociIndex } })
  const index = { schemaVersion: 2, mediaType: mediaType.ociIndex, manifests: [] }
  expect(JSON.parse(answer.body.toString())).toEqual(index)
})

test.each(Object.entries(contentSets))(
  'the registry takes, lists, serves and deletes content of the suite: %s',
  async (_name, makeContent) => {
    const place = { url: (await startTestRegistry()).url, repository }
    const content = makeContent()
    await pushContent(place, content)
    if (content.tags.size > 0) await listTags(place, content.tags.keys())
    await readContent(place, content)
    await listReferrers(place, content)
    await deleteContent(place, content)
  },
)

test('a manifest with two more blanks has another digest and is refused (Bad Digest Image)', async () => {
  const { url } = await startTestRegistry()
  const content = new Content()
  const { digest } = content.image()
  for (const [blob, bytes] of content.blobs) await pushBlob('post only', { url, repository, digest: blob, bytes })
  const { bytes, mediaType: type } = content.manifests[0]!
  const answer = await get(url, `/v2/${repository}/manifests/${digest}`, {
    method: 'PUT',
    headers: { 'content-type': type },
    body: Buffer.concat([bytes, Buffer.from('  ')]),
  })
  expect(answer.status).toBe(400)
  expect((await get(url, `/v2/${repository}/manifests/${digest}`)).status).toBe(404)
})

test.each([
  ['by-digest', computeDigest(Buffer.from('missing')) as string, [404]],
  ['by-tag', 'missing-tag', [404]],
  ['invalid-digest-format/manifest-get', 'sha256:baddigeststring', [400, 404]],
])('a missing manifest is an absence (missing-manifest/%s)', async (_name, reference, expected) => {
  const { url } = await startTestRegistry()
  expect(expected).toContain((await get(url, `/v2/${repository}/manifests/${reference}`)).status)
})

test('a push of a manifest by a malformed digest is refused (invalid-digest-format/manifest-put)', async () => {
  const { url } = await startTestRegistry()
  const content = new Content()
  content.image({ layers: [300] })
  for (const [digest, bytes] of content.blobs) await pushBlob('post only', { url, repository, digest, bytes })
  const answer = await get(url, `/v2/${repository}/manifests/sha256:baddigeststring`, {
    method: 'PUT',
    headers: { 'content-type': mediaType.ociManifest },
    body: content.manifests[0]!.bytes,
  })
  expect(answer.status).toBe(400)
})
