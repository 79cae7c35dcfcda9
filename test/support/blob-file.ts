import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { getDigestAlgorithm, getDigestHex, type Digest } from '../../src/oci/reference.ts'
import { createStoreLayout } from '../../src/store/layout.ts'
import type { TestMirror } from './mirror.ts'

/** Lists the paths of all files below a mirror's home. */
export async function filesOf({ home }: Pick<TestMirror, 'home'>): Promise<string[]> {
  const entries = await readdir(home, { recursive: true, withFileTypes: true })
  return entries.filter((entry) => entry.isFile()).map((entry) => join(entry.parentPath, entry.name))
}

/** Finds the file of a stored blob. */
export async function blobFile(mirror: Pick<TestMirror, 'home'>, digest: Digest): Promise<string> {
  const name = join('blobs', getDigestAlgorithm(digest), getDigestHex(digest))
  const file = (await filesOf(mirror)).find((path) => path.endsWith(name))
  if (file === undefined) throw new Error(`${digest} is not stored`)
  return file
}

/** Lists the unpublished files of the store. */
export async function temporaryFiles(mirror: Pick<TestMirror, 'home'>): Promise<string[]> {
  const folder = createStoreLayout(join(mirror.home, 'data', 'cache')).temporary
  return (await filesOf(mirror)).filter((file) => file.startsWith(folder))
}
