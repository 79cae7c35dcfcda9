import { expect } from 'vitest'
import type { Digest } from '../../../src/oci/reference.ts'
import { get, type Answer } from '../../support/get.ts'

/** waysToPush are the suite's ways to push a blob. */
export const waysToPush = ['post only', 'post+put', 'chunked', 'stream'] as const
export type WayToPush = (typeof waysToPush)[number]

export interface BlobPush {
  /** The URL of the registry. */
  readonly url: string
  readonly repository: string
  readonly digest: Digest
  readonly bytes: Buffer
  /** True when the PUT sends the last chunk. */
  readonly putLastChunk?: boolean
  /** True when a later chunk is sent before each chunk. */
  readonly outOfOrder?: boolean
  /** True when the bytes do not match the digest. */
  readonly badDigest?: boolean
}

const leastChunk = 1024
const type = { 'content-type': 'application/octet-stream' }

/** Pushes a blob in one of the ways, and checks every answer as the suite does. */
export async function pushBlob(way: WayToPush, push: BlobPush): Promise<void> {
  const last = await send[way](push)
  if (push.badDigest) return expect(last.status).toBe(400) as never
  expect(last.status).toBe(201)
  await expectAtLocation(last, push)
}

/** Checks that a blob's 201 has its digest and a Location that serves it. */
export async function expectAtLocation(answer: Answer, { url, digest, bytes }: BlobPush): Promise<void> {
  expect(answer.headers['docker-content-digest']).toBe(digest)
  const got = await get(url, locationOf(answer, url))
  expect(got.status).toBe(200)
  expect(got.body.equals(bytes)).toBe(true)
}

/** Returns the path of an answer's Location, which may be relative. */
export function locationOf({ headers }: Answer, url: string, query: Record<string, string> = {}): string {
  expect(headers.location).toEqual(expect.stringMatching(/./))
  const location = new URL(headers.location!, url)
  for (const [name, value] of Object.entries(query)) location.searchParams.set(name, value)
  return location.pathname + location.search
}

const send: Record<WayToPush, (push: BlobPush) => Promise<Answer>> = {
  'post only': ({ url, repository, digest, bytes }) =>
    get(url, `/v2/${repository}/blobs/uploads/?digest=${encodeURIComponent(digest)}`, {
      method: 'POST',
      headers: { ...type, 'content-length': String(bytes.length) },
      body: bytes,
    }),

  async 'post+put'({ url, repository, digest, bytes }) {
    const begun = await begin(url, repository)
    const headers = { ...type, 'content-length': String(bytes.length) }
    return get(url, locationOf(begun, url, { digest }), { method: 'PUT', headers, body: bytes })
  },

  async stream({ url, repository, digest, bytes }) {
    const begun = await begin(url, repository)
    const headers = { ...type, 'transfer-encoding': 'chunked' }
    const sent = await get(url, locationOf(begun, url), { method: 'PATCH', headers, body: bytes })
    expect(sent.status).toBe(202)
    return finish(url, sent, digest)
  },

  async chunked(push) {
    const { url, repository, digest, bytes, putLastChunk = false, outOfOrder = false } = push
    let last = await begin(url, repository)
    const wanted = Number(last.headers['oci-chunk-min-length'] ?? 0)
    const size = Math.min(bytes.length, Math.max(leastChunk, wanted, Math.floor(bytes.length / 3) + 1))
    for (let at = 0; at < bytes.length; at += size) {
      if (outOfOrder) last = await expectOutOfOrder(push, last, at, size)
      const isLast = putLastChunk && at + size >= bytes.length
      const target = locationOf(last, url, isLast ? { digest } : {})
      last = await sendChunk(isLast ? 'PUT' : 'PATCH', url, target, bytes, at, size)
      if (isLast) return last
      expect(last.status).toBe(202)
    }
    return finish(url, last, digest)
  },
}

async function begin(url: string, repository: string): Promise<Answer> {
  const answer = await get(url, `/v2/${repository}/blobs/uploads/`, {
    method: 'POST',
    headers: { 'content-length': '0' },
  })
  expect(answer.status).toBe(202)
  return answer
}

function finish(url: string, last: Answer, digest: Digest): Promise<Answer> {
  return get(url, locationOf(last, url, { digest }), { method: 'PUT', headers: { ...type, 'content-length': '0' } })
}

function sendChunk(method: string, url: string, target: string, bytes: Buffer, at: number, size: number) {
  const body = bytes.subarray(at, at + size)
  const range = { 'content-range': `${at}-${at + body.length - 1}`, 'content-length': String(body.length) }
  return get(url, target, { method, headers: { ...type, ...range }, body })
}

/** Sends a later or the first chunk, which gets 416; a GET returns the right offset. */
async function expectOutOfOrder(push: BlobPush, last: Answer, at: number, size: number): Promise<Answer> {
  const { url, bytes, digest, putLastChunk } = push
  const badStart = at + size >= bytes.length ? 0 : at + size
  const isPut = putLastChunk === true && badStart + size >= bytes.length
  const target = locationOf(last, url, isPut ? { digest } : {})
  const refused = await sendChunk(isPut ? 'PUT' : 'PATCH', url, target, bytes, badStart, size)
  expect(refused.status).toBe(416)
  const state = await get(url, locationOf(refused, url))
  expect(state.status).toBe(204)
  expect(state.headers.range).toBe(`0-${Math.max(0, at - 1)}`)
  return state
}
