import { expect } from 'vitest'
import type { Digest } from '../../../src/oci/reference.ts'
import { mediaType } from '../../../src/oci/content.ts'
import { get, type Answer } from '../../support/get.ts'
import type { Content, ContentDescriptor, ContentManifest } from './content.ts'
import { locationOf, pushBlob, waysToPush } from './push-blob.ts'

/** Place is a repository of a registry. */
export interface Place {
  readonly url: string
  readonly repository: string
}

const accept = { accept: `${mediaType.ociIndex}, ${mediaType.ociManifest}` }

/** Pushes as the suite's TestPush: blobs in all ways in turn, manifests by digest, then by tag. */
export async function pushContent(place: Place, content: Content): Promise<void> {
  for (const [at, [digest, bytes]] of [...content.blobs].entries())
    await pushBlob(waysToPush[at % waysToPush.length]!, { ...place, digest, bytes })
  const tagged = new Set<string>()
  for (const manifest of content.manifests) {
    const tags = manifest.tagsByParameter ? tagsOf(content, manifest.digest) : []
    const query = tags.length === 0 ? '' : `?${tags.map((tag) => `tag=${tag}`).join('&')}`
    const answer = await pushManifest(place, manifest, `${manifest.digest}${query}`)
    const said = String(answer.headers['oci-tag'] ?? '').split(',')
    expect(said.map((tag) => tag.trim())).toEqual(expect.arrayContaining(tags))
    for (const tag of tags) tagged.add(tag)
  }
  for (const [tag, digest] of content.tags)
    if (!tagged.has(tag)) await pushManifest(place, manifestOf(content, digest), tag)
}

/** Lists tags as the suite's TestList: all tags are there, and `last` returns only the tags after it. */
export async function listTags({ url, repository }: Place, tags: Iterable<string>): Promise<void> {
  const list = async (query: string) => {
    const answer = await get(url, `/v2/${repository}/tags/list${query}`)
    expect(answer.status).toBe(200)
    return (JSON.parse(answer.body.toString()) as { tags: string[] }).tags
  }
  const all = await list('')
  expect(all).toEqual(expect.arrayContaining([...tags]))
  const sorted = all.toSorted()
  if (sorted.length < 2) return
  const half = Math.floor(sorted.length / 2)
  expect((await list(`?last=${sorted[half - 1]}`)).toSorted()).toEqual(sorted.slice(half))
}

/** Reads as the suite's TestHead and TestPull: by tag and by digest, with the right headers, and no body for a HEAD. */
export async function readContent(place: Place, content: Content): Promise<void> {
  const { url, repository } = place
  for (const method of ['HEAD', 'GET']) {
    const names = [...content.tags, ...content.manifests.map(({ digest }) => [digest, digest] as const)]
    for (const [reference, digest] of names) {
      const answer = await get(url, `/v2/${repository}/manifests/${reference}`, { method, headers: accept })
      expectManifest(answer, manifestOf(content, digest), method)
    }
    for (const [digest, bytes] of content.blobs) {
      const answer = await get(url, `/v2/${repository}/blobs/${digest}`, { method })
      expect(answer).toMatchObject({ status: 200, headers: headersOf(digest, bytes) })
      expect(answer.body.equals(method === 'HEAD' ? Buffer.alloc(0) : bytes)).toBe(true)
    }
  }
}

/** Lists referrers as the suite's TestReferrers: all of them, with and without a filter for the type. */
export async function listReferrers({ url, repository }: Place, content: Content): Promise<void> {
  for (const [subject, referrers] of content.referrers) {
    const path = `/v2/${repository}/referrers/${subject}`
    expect(await referrersAt(url, path, undefined)).toEqual(inAnyOrder(referrers))
    for (const artifactType of new Set(referrers.map((each) => each.artifactType))) {
      if (artifactType === undefined) continue
      const some = referrers.filter((each) => each.artifactType === artifactType)
      const query = `?artifactType=${encodeURIComponent(artifactType)}`
      expect(await referrersAt(url, path + query, 'artifactType')).toEqual(inAnyOrder(some))
    }
  }
}

/** Deletes as the suite's TestDelete: tags, manifests from the topmost down, then blobs; each one is gone at once. */
export async function deleteContent({ url, repository }: Place, content: Content): Promise<void> {
  const paths = [
    ...Array.from(content.tags.keys(), (tag) => `manifests/${tag}`),
    ...content.manifests.map(({ digest }) => `manifests/${digest}`).toReversed(),
    ...Array.from(content.blobs.keys(), (digest) => `blobs/${digest}`),
  ]
  for (const path of paths) {
    expect((await get(url, `/v2/${repository}/${path}`, { method: 'DELETE' })).status, path).toBe(202)
    expect((await get(url, `/v2/${repository}/${path}`, { method: 'HEAD' })).status, path).toBe(404)
  }
}

async function pushManifest({ url, repository }: Place, manifest: ContentManifest, reference: string): Promise<Answer> {
  const answer = await get(url, `/v2/${repository}/manifests/${reference}`, {
    method: 'PUT',
    headers: { 'content-type': manifest.mediaType },
    body: manifest.bytes,
  })
  expect(answer.status, answer.body.toString()).toBe(201)
  expect(answer.headers['docker-content-digest']).toBe(manifest.digest)
  expect(answer.headers['oci-subject']).toBe(manifest.subject)
  expectManifest(await get(url, locationOf(answer, url), { headers: accept }), manifest, 'GET')
  return answer
}

function expectManifest(answer: Answer, { digest, mediaType: type, bytes }: ContentManifest, method: string): void {
  expect(answer).toMatchObject({ status: 200, headers: { ...headersOf(digest, bytes), 'content-type': type } })
  expect(answer.body.equals(method === 'HEAD' ? Buffer.alloc(0) : bytes)).toBe(true)
}

function headersOf(digest: Digest, bytes: Buffer): Record<string, string> {
  return { 'content-length': String(bytes.length), 'docker-content-digest': digest }
}

async function referrersAt(url: string, path: string, filters: string | undefined): Promise<ContentDescriptor[]> {
  const answer = await get(url, path)
  expect(answer).toMatchObject({ status: 200, headers: { 'content-type': mediaType.ociIndex } })
  expect(answer.headers['oci-filters-applied']).toBe(filters)
  const index = JSON.parse(answer.body.toString()) as { manifests: ContentDescriptor[] }
  expect(index).toMatchObject({ schemaVersion: 2, mediaType: mediaType.ociIndex })
  return index.manifests.toSorted((a, b) => (a.digest < b.digest ? -1 : 1))
}

function inAnyOrder(descriptors: readonly ContentDescriptor[]): ContentDescriptor[] {
  return descriptors.toSorted((a, b) => (a.digest < b.digest ? -1 : 1))
}

function tagsOf({ tags }: Content, digest: Digest): string[] {
  return [...tags].filter(([, other]) => other === digest).map(([tag]) => tag)
}

function manifestOf({ manifests }: Content, digest: Digest): ContentManifest {
  return manifests.find((manifest) => manifest.digest === digest)!
}
