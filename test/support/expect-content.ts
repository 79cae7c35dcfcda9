import { expect } from 'vitest'
import { computeDigest, type Digest } from '../../src/oci/reference.ts'
import type { Answer } from './get.ts'

/** Expects a complete 200 with exactly the content of the digest. */
export function expectContent(answer: Answer, digest: Digest): void {
  expect(answer).toMatchObject({ status: 200, complete: true })
  expect(computeDigest(answer.body)).toBe(digest)
}

/** Expects no complete 2xx: the connection broke off, or the response is an error in the specification's form. */
export function expectNoContent(answer: Answer): void {
  if (answer.status < 300) expect(answer.complete).toBe(false)
  else expectError(answer, answer.status)
}

/** Expects an error with the specification's JSON body. */
export function expectError(answer: Answer, status: number | readonly number[], code?: string): void {
  expect([status].flat()).toContain(answer.status)
  expect(answer.complete).toBe(true)
  expect(answer.headers['content-type']).toBe('application/json')
  const { errors } = JSON.parse(answer.body.toString()) as { errors: { code: string; message: string }[] }
  expect(errors).toEqual([{ code: code ?? expect.any(String), message: expect.any(String) }])
}
