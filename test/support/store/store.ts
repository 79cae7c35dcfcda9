import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'
import { systemClock } from '../../../src/lib/time.ts'
import { silentLogger } from '../../../src/lib/logger.ts'
import { computeDigest, type Digest } from '../../../src/oci/reference.ts'
import type { MetadataStore } from '../../../src/metadata/metadata-store.ts'
import { openMetadata } from '../../../src/metadata/open-metadata.ts'
import { openStore, type Store, type StoreOptions } from '../../../src/store/open-store.ts'

export type TestStore = Store<MetadataStore>

/** Creates a folder; removes it when the test ends. */
export async function temporaryFolder(): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'mirror-store-'))
  onTestFinished(() => rm(folder, { recursive: true, force: true }))
  return folder
}

/** Opens a store; closes it when the test ends. */
export async function openTestStore(root: string, options: Partial<StoreOptions> = {}): Promise<TestStore> {
  const defaults = { verifyReads: 'auto' as const, minFree: 0, logger: silentLogger, clock: systemClock }
  const all = { root, ...defaults, ...options }
  const store = await openStore(all, (layout) => openMetadata({ ...layout.metadataFiles, ...all }))
  onTestFinished(() => store.close())
  return store
}

export function bytesOf(text: string): Uint8Array {
  return Buffer.from(text)
}

/** Stores a text as a blob. */
export async function putText(store: Pick<TestStore, 'blobs'>, text: string): Promise<Digest> {
  const digest = computeDigest(bytesOf(text))
  await store.blobs.put(digest, bytesOf(text))
  return digest
}

/** Reads a blob as text; undefined when it is absent. */
export async function openText(
  store: Pick<TestStore, 'blobs'>,
  digest: Digest,
  size?: number,
): Promise<string | undefined> {
  const blob = await store.blobs.open(digest, size)
  if (!blob) return undefined
  const buffer = Buffer.alloc(blob.size)
  await blob.read(buffer, 0)
  await blob.close()
  return buffer.toString()
}
