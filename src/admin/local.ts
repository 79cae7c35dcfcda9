import { Evictor } from '../cache/evictor.ts'
import { silentLogger } from '../lib/logger.ts'
import { systemClock } from '../lib/time.ts'
import { createRegistryMaintenance, type RegistryMaintenance } from '../registry/maintenance.ts'
import { openPushedStore, type PushedStore } from '../registry/repositories.ts'
import { openStore, type Store, type StoreOptions } from '../store/open-store.ts'
import { verifyStore } from '../store/verify.ts'
import type { CacheApi, RegistryApi } from './api.ts'
import { listDamagedReports, listImageReports } from './status.ts'

const common = { logger: silentLogger, clock: systemClock }

interface StoredCacheOptions extends Pick<StoreOptions, 'root' | 'verifyReads' | 'minFree'> {
  /** Bytes; 0 = no limit. */
  readonly maxSize: number
  /** Running time ms; 0 = keep. */
  readonly maxAge: number
}

/** Opens the cache of a stopped mirror on the disk. Throws a MirrorError when another process has it. */
export async function openStoredCache({
  maxSize,
  maxAge,
  ...options
}: StoredCacheOptions): Promise<CacheApi & { close(): Promise<void> }> {
  const store = await openStore({ ...options, ...common })
  const limits = { maxSize, maxAge, minFree: options.minFree }
  const evictor = new Evictor({ store, limits, isInUse: () => false, ...common })
  return {
    ...createCacheApi(store, evictor),
    async close() {
      await evictor.close()
      await store.close()
    },
  }
}

/** Opens the registry of a stopped mirror on the disk. Throws a MirrorError when another process has it. */
export async function openStoredRegistry(
  options: Pick<StoreOptions, 'root' | 'minFree'>,
): Promise<RegistryApi & { close(): Promise<void> }> {
  const store = await openPushedStore({ ...options, ...common })
  const maintenance = createRegistryMaintenance({ store, ...common })
  return {
    ...createRegistryApi(store, maintenance),
    async close() {
      await maintenance.close()
      await store.close()
    },
  }
}

/** Implements the operations on cached images with a store of this process. `onRemoved`: content may be gone from the store. */
export function createCacheApi(store: Store, evictor: Evictor, onRemoved: () => void = () => {}): CacheApi {
  return {
    async list() {
      await store.blobs.ready
      return listImageReports({ store })
    },
    async remove({ names, dryRun }) {
      try {
        return await evictor.remove(names, dryRun)
      } finally {
        if (!dryRun) onRemoved()
      }
    },
    prune: ({ dryRun }) => evictor.evict({ dryRun, isManual: true }),
    async *verify({ quarantine }, signal) {
      if (quarantine) await store.blobs.checkWritable()
      for await (const state of verifyStore(store, { quarantine, signal }))
        yield { ...state, damaged: [...state.damaged], done: state.checked === state.total }
      onRemoved()
    },
  }
}

/** Implements the operations on pushed images with a store of this process. */
export function createRegistryApi({ repositories }: PushedStore, maintenance: RegistryMaintenance): RegistryApi {
  return {
    list: async () =>
      (await maintenance.list()).map((image) => ({ ...image, pushedAt: new Date(image.pushedAt).toISOString() })),
    listDamaged: () => Promise.resolve(listDamagedReports({ damaged: repositories.damaged })),
    remove: ({ names, dryRun }) => maintenance.remove(names, dryRun),
    gc: (request) => maintenance.gc(request),
    prune: (request) => maintenance.prune({ ...request, repository: request.repository }),
  }
}
