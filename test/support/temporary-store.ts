import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemClock } from '../../src/lib/time.ts'
import { silentLogger } from '../../src/lib/logger.ts'
import { openMetadata } from '../../src/metadata/open-metadata.ts'
import { openStore } from '../../src/store/open-store.ts'
import type { TestStore } from './store/store.ts'

/** Opens a store in a new folder, and removes it when the body has run. */
export async function withStore<T>(body: (store: TestStore) => Promise<T>): Promise<T> {
  const root = await mkdtemp(join(tmpdir(), 'mirror-store-'))
  const options = { root, verifyReads: 'auto', minFree: 0, logger: silentLogger, clock: systemClock } as const
  const store = await openStore(options, (layout) => openMetadata({ ...layout.metadataFiles, ...options }))
  try {
    return await body(store)
  } finally {
    await store.close()
    await rm(root, { recursive: true, force: true })
  }
}
