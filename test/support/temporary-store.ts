import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemClock } from '../../src/lib/time.ts'
import { silentLogger } from '../../src/lib/logger.ts'
import { openStore, type Store } from '../../src/store/open-store.ts'

/** Opens a store in a new folder, and removes it when the body has run. */
export async function withStore<T>(body: (store: Store) => Promise<T>): Promise<T> {
  const root = await mkdtemp(join(tmpdir(), 'mirror-store-'))
  const store = await openStore({ root, verifyReads: 'auto', minFree: 0, logger: silentLogger, clock: systemClock })
  try {
    return await body(store)
  } finally {
    await store.close()
    await rm(root, { recursive: true, force: true })
  }
}
