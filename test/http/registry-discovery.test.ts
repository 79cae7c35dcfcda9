import { describe, expect, test } from 'vitest'
import { computeDigest, type Digest } from '../../src/oci/reference.ts'
import { mediaType } from '../../src/oci/content.ts'
import { toReferrersTag } from '../../src/oci/lists.ts'
import { expectError } from '../support/expect-content.ts'
import { makeImage, manifestOf, type TestImage } from '../support/images.ts'
import { jsonOf, startTestRegistry, type TestRegistry } from '../support/registry.ts'

const image = makeImage()
const subject = { mediaType: image.mediaType, digest: image.digest, size: image.bytes.length }

interface Index {
  mediaType: string
  schemaVersion: number
  manifests: { digest: string; mediaType: string; size: number; artifactType?: string; annotations?: object }[]
}

function referrer(fields: Record<string, unknown>): TestImage {
  return makeImage({ manifest: { subject, ...fields } })
}

const referrersOf = async (registry: TestRegistry, query = '', digest: string = image.digest) =>
  jsonOf<Index>(await registry.get(`/v2/app/referrers/${digest}${query}`))

async function withTags(count: number): Promise<TestRegistry> {
  const registry = await startTestRegistry()
  await registry.push('app', 't0', image)
  const tags = Array.from({ length: count }, (_, at) => `t${at}`)
  for (let at = 0; at < count; at += 100) {
    const query = tags
      .slice(at, at + 100)
      .map((tag) => `tag=${tag}`)
      .join('&')
    expect((await registry.pushManifest('app', `${image.digest}?${query}`, image)).status).toBe(201)
  }
  return registry
}

describe('Listing tags', () => {
  const list = async (registry: TestRegistry, query: string) => {
    const answer = await registry.get(`/v2/app/tags/list${query}`)
    expect(answer.status).toBe(200)
    return { tags: jsonOf<{ tags: string[] }>(answer).tags, link: answer.headers['link'] }
  }

  test('gives all of them, sorted, without a Link', async () => {
    const registry = await withTags(12)
    const { tags, link } = await list(registry, '')
    expect(tags).toEqual(Array.from({ length: 12 }, (_, at) => `t${at}`).toSorted())
    expect(link).toBeUndefined()
  })

  test('with n, last (exclusive) and Link walks the whole list', async () => {
    const registry = await withTags(12)
    const seen: string[] = []
    let path: string | undefined = '/v2/app/tags/list?n=5'
    while (path !== undefined) {
      const answer = await registry.get(path)
      seen.push(...jsonOf<{ tags: string[] }>(answer).tags)
      path = /^<([^>]+)>; rel="next"$/.exec(String(answer.headers['link'] ?? ''))?.[1]
    }
    expect(seen).toEqual(Array.from({ length: 12 }, (_, at) => `t${at}`).toSorted())
  })

  test.each([
    ['?last=t11', ['t2', 't3', 't4', 't5', 't6', 't7', 't8', 't9']],
    ['?n=2&last=t11', ['t2', 't3']],
    ['?n=2&last=t110', ['t2', 't3']],
    ['?n=5&last=t9', []],
    ['?n=0', []],
  ])('gives the page after `last` with the query %s', async (query, expected) => {
    const { tags, link } = await list(await withTags(12), query)
    expect(tags).toEqual(expected)
    if (expected.length === 0) expect(link).toBeUndefined()
  })

  test.each(['-1', 'x'])('with n=%s is a 400', async (n) => {
    expectError(await (await withTags(1)).get(`/v2/app/tags/list?n=${n}`), 400)
  })

  test('with a huge n gives a page of 1000 and a Link', async () => {
    const { tags, link } = await list(await withTags(1100), '?n=1000000000')
    expect(tags.length).toBe(1000)
    expect(link).toContain('rel="next"')
  })

  test('of an unknown repository is a 404', async () => {
    expectError(await (await startTestRegistry()).get('/v2/none/tags/list'), 404, 'NAME_UNKNOWN')
  })
})

test('the catalog is sorted and paged, and has no repository without a manifest', async () => {
  const registry = await startTestRegistry()
  for (const name of ['c', 'a', 'b/x']) await registry.push(name, 'v1', image)
  await registry.pushBlob('only-blobs', Buffer.from('x'))
  expect(jsonOf(await registry.get('/v2/_catalog'))).toEqual({ repositories: ['a', 'b/x', 'c'] })
  const page = await registry.get('/v2/_catalog?n=1&last=a')
  expect(jsonOf(page)).toEqual({ repositories: ['b/x'] })
  expect(page.headers['link']).toBe('</v2/_catalog?n=1&last=b%2Fx>; rel="next"')
})

describe('Listing referrers', () => {
  test('the push of a manifest with a subject is answered with OCI-Subject, also when the subject does not exist', async () => {
    const registry = await startTestRegistry()
    const answer = await registry.push('app', 'sig', referrer({ artifactType: 'application/x.sig' }))
    expect(answer.headers['oci-subject']).toBe(image.digest)
    expect((await registry.push('app', 'v1', image)).headers['oci-subject']).toBeUndefined()
  })

  test('each entry has type, size, artifactType and annotations', async () => {
    const registry = await startTestRegistry()
    const made = referrer({ artifactType: 'application/x.sbom', annotations: { a: 'b' } })
    await registry.push('app', made.digest, made)
    const answer = await registry.get(`/v2/app/referrers/${image.digest}`)
    expect(answer).toMatchObject({ status: 200, headers: { 'content-type': mediaType.ociIndex } })
    expect(answer.headers['oci-filters-applied']).toBeUndefined()
    expect(jsonOf(answer)).toEqual({
      schemaVersion: 2,
      mediaType: mediaType.ociIndex,
      manifests: [
        {
          mediaType: made.mediaType,
          digest: made.digest,
          size: made.bytes.length,
          artifactType: 'application/x.sbom',
          annotations: { a: 'b' },
        },
      ],
    })
  })

  test('an annotation that is null is left out', async () => {
    const registry = await startTestRegistry()
    await registry.push('app', 'v1', image)
    await registry.push('app', 's1', referrer({ artifactType: 'application/sig', annotations: { a: 'b', c: null } }))
    const { manifests } = await referrersOf(registry)
    expect(manifests).toMatchObject([{ artifactType: 'application/sig' }])
    expect(manifests[0]!.annotations).toEqual({ a: 'b' })
  })

  test('without an artifactType an image gives its config’s type, an index none', async () => {
    const registry = await startTestRegistry()
    const plain = referrer({})
    await registry.push('app', plain.digest, plain)
    const bytes = Buffer.from(
      JSON.stringify({ schemaVersion: 2, mediaType: mediaType.ociIndex, manifests: [], subject }),
    )
    await registry.push('app', 'index', manifestOf(bytes, mediaType.ociIndex))
    const { manifests } = await referrersOf(registry)
    expect(manifests.map(({ mediaType: type, artifactType }) => `${type} ${artifactType}`).toSorted()).toEqual([
      `${mediaType.ociIndex} undefined`,
      `${mediaType.ociManifest} ${mediaType.ociConfig}`,
    ])
  })

  test('artifactType filters, and OCI-Filters-Applied says so', async () => {
    const registry = await startTestRegistry()
    for (const artifactType of ['application/a', 'application/b']) {
      const made = referrer({ artifactType })
      await registry.push('app', made.digest, made)
    }
    const answer = await registry.get(`/v2/app/referrers/${image.digest}?artifactType=application%2Fa`)
    expect(answer.headers['oci-filters-applied']).toBe('artifactType')
    expect(jsonOf<Index>(answer).manifests.map(({ artifactType }) => artifactType)).toEqual(['application/a'])
  })

  test('an unknown digest, and an unknown repository, have an empty list; a bad digest is a 400', async () => {
    const registry = await startTestRegistry()
    const unknown = computeDigest(Buffer.from('x'))
    for (const name of ['app', 'none']) {
      const answer = await registry.get(`/v2/${name}/referrers/${unknown}`)
      expect(answer).toMatchObject({ status: 200, headers: { 'content-type': mediaType.ociIndex } })
      expect(jsonOf<Index>(answer).manifests).toEqual([])
    }
    expectError(await registry.get('/v2/app/referrers/sha256:bad'), 400, 'DIGEST_INVALID')
  })

  test('a long list is divided into pages', async () => {
    const registry = await startTestRegistry()
    const made = Array.from({ length: 5 }, (_, at) => referrer({ annotations: { at: String(at) } }))
    for (const one of made) await registry.push('app', one.digest, one)
    const seen: string[] = []
    let path: string | undefined = `/v2/app/referrers/${image.digest}?n=2`
    while (path !== undefined) {
      const answer = await registry.get(path)
      seen.push(...jsonOf<Index>(answer).manifests.map(({ digest }) => digest))
      path = /^<([^>]+)>; rel="next"$/.exec(String(answer.headers['link'] ?? ''))?.[1]
    }
    expect(seen).toEqual(made.map(({ digest }) => digest as string).toSorted())
  })

  test('no page is larger than clients accept', async () => {
    const registry = await startTestRegistry()
    for (let at = 0; at < 3; at++) {
      const made = referrer({ annotations: { pad: String(at).repeat(2_000_000) } })
      await registry.push('app', made.digest, made)
    }
    const answer = await registry.get(`/v2/app/referrers/${image.digest}`)
    expect(answer.body.length).toBeLessThan(4 * 1024 * 1024)
    expect(answer.headers['link']).toContain('rel="next"')
  }, 30_000)

  test('a deleted referrer is no longer in the list', async () => {
    const registry = await startTestRegistry()
    const made = referrer({})
    await registry.push('app', made.digest, made)
    await registry.ask('DELETE', `/v2/app/manifests/${made.digest}`)
    expect((await referrersOf(registry)).manifests).toEqual([])
  })
})

describe('Referrers tag schema', () => {
  const tag = toReferrersTag(image.digest)
  const listed = async (registry: TestRegistry) =>
    jsonOf<Index>(await registry.get(`/v2/app/manifests/${tag}`)).manifests.map(({ digest }) => digest)

  async function withClientsList(): Promise<{ registry: TestRegistry; first: Digest }> {
    const registry = await startTestRegistry()
    const first = referrer({ annotations: { made: 'by a client' } })
    await registry.push('app', first.digest, first)
    const entry = { mediaType: first.mediaType, digest: first.digest, size: first.bytes.length }
    const index = { schemaVersion: 2, mediaType: mediaType.ociIndex, manifests: [entry] }
    await registry.push('app', tag, manifestOf(Buffer.from(JSON.stringify(index)), mediaType.ociIndex))
    return { registry, first: first.digest }
  }

  test('has no tag where no client made one', async () => {
    const registry = await startTestRegistry()
    const made = referrer({})
    await registry.push('app', made.digest, made)
    expect((await registry.get(`/v2/app/manifests/${tag}`)).status).toBe(404)
  })

  test('keeps a client-made list without entries, as Go writes it, up to date', async () => {
    const registry = await startTestRegistry()
    await registry.push('app', 'v1', image)
    const text = JSON.stringify({ schemaVersion: 2, mediaType: mediaType.ociIndex, manifests: null })
    const tag = toReferrersTag(image.digest)
    const empty = manifestOf(Buffer.from(text), mediaType.ociIndex)
    expect((await registry.pushManifest('app', tag, empty)).status).toBe(201)
    const made = referrer({ artifactType: 'application/sig' })
    await registry.push('app', made.digest, made)
    const { manifests } = jsonOf<Index>(await registry.get(`/v2/app/manifests/${tag}`))
    expect(manifests.map(({ digest }) => digest)).toEqual([made.digest])
  })

  test('keeps a client-made list up to date with pushes and deletes', async () => {
    const { registry, first } = await withClientsList()
    const made = Array.from({ length: 4 }, (_, at) => referrer({ annotations: { at: String(at) } }))
    for (const one of made) for (const blob of one.blobs.values()) await registry.pushBlob('app', blob)
    await Promise.all(made.map((one) => registry.pushManifest('app', one.digest, one)))
    expect((await listed(registry)).toSorted()).toEqual([first, ...made.map(({ digest }) => digest)].toSorted())
    await registry.ask('DELETE', `/v2/app/manifests/${first}`)
    expect((await listed(registry)).toSorted()).toEqual(made.map(({ digest }) => digest as string).toSorted())
    // Checks that replaced lists are removed.
    expect((await registry.status()).registry.manifests).toBe(made.length + 1)
  })
})
