import { expect } from 'vitest'
import { computeDigest, type Digest } from '../../src/oci/reference.ts'
import { get, type Answer } from './get.ts'
import type { TestImage } from './images.ts'

const octets = { 'content-type': 'application/octet-stream' }

/** Pushes a blob in one request, and expects the registry to accept it. */
export async function pushBlob(
  url: string,
  repository: string,
  body: Buffer,
  digest: Digest = computeDigest(body),
): Promise<Digest> {
  const path = `/v2/${repository}/blobs/uploads/?digest=${digest}`
  expect((await get(url, path, { method: 'POST', headers: octets, body })).status).toBe(201)
  return digest
}

/** Sends a manifest and returns the registry's response. */
export function putManifest(
  url: string,
  repository: string,
  reference: string,
  { bytes, mediaType }: Pick<TestImage, 'bytes' | 'mediaType'>,
): Promise<Answer> {
  const headers = { 'content-type': mediaType }
  return get(url, `/v2/${repository}/manifests/${reference}`, { method: 'PUT', body: bytes, headers })
}

/** Pushes the blobs, the children and the manifest itself. */
export async function pushImage(url: string, repository: string, reference: string, image: TestImage): Promise<Answer> {
  for (const blob of image.blobs.values()) await pushBlob(url, repository, blob)
  for (const [digest, child] of [...image.manifests].toReversed())
    if (digest !== image.digest) expect((await putManifest(url, repository, digest, child)).status).toBe(201)
  const answer = await putManifest(url, repository, reference, image)
  expect(answer.status).toBe(201)
  return answer
}
