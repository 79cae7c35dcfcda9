import { expect } from 'vitest'
import type { DamagedRepositoryReport } from '../../../src/admin/api.ts'
import type { MirrorProcess } from '../mirror-process.ts'
import { askAll, type ExpectedAnswer, readCounts, readExpected } from './fixture.ts'

export const expected = await readExpected()

/** Expects the recorded answers to all requests but those that differ. */
export async function expectAnswers(
  url: string,
  answers: Readonly<Record<string, ExpectedAnswer>>,
  differs = /^$/,
): Promise<void> {
  const same = Object.entries(answers).filter(([request]) => !differs.test(request))
  expect(same.length).toBeGreaterThan(0)
  const requests = same.map(([request]) => request)
  expect(await askAll(url, requests)).toEqual(Object.fromEntries(same))
}

/** Expects that a server, which uses the account of alice, has everything that the release had. */
export async function expectAll(mirror: MirrorProcess): Promise<void> {
  await expect.poll(() => readCounts(mirror)).toEqual(expected.status)
  await expectAnswers(mirror.url, expected.cache.alice)
  await expectAnswers(mirror.registryUrl!, expected.registry)
}

export async function damagedOf(mirror: MirrorProcess): Promise<DamagedRepositoryReport[]> {
  return (await mirror.status()).registry.damaged ?? []
}
