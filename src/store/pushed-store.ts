import { openStore, type Store, type StoreOptions } from './open-store.ts'
import { PushedRepositories } from '../registry/repositories.ts'

/** What was pushed: a store like the cache's, in a folder of its own that no eviction enters. */
export interface PushedStore extends Pick<Store, 'layout' | 'blobs' | 'runningClock' | 'close'> {
  readonly repositories: PushedRepositories
}

/** Opens it, or makes an empty one. Throws `MirrorError` as `openStore` does. */
export async function openPushedStore(options: Omit<StoreOptions, 'verifyReads'>): Promise<PushedStore> {
  const store = await openStore({ ...options, verifyReads: 'auto' })
  try {
    const repositories = await PushedRepositories.open(store.layout, options.logger)
    const { layout, blobs, runningClock } = store
    return { layout, blobs, runningClock, repositories, close: () => store.close() }
  } catch (error) {
    await store.close()
    throw error
  }
}
