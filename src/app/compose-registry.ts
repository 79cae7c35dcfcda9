import { join } from 'node:path'
import type { Config } from '../config/config.ts'
import type { MirrorPaths } from '../config/paths.ts'
import type { Logger } from '../lib/logger.ts'
import { systemClock } from '../lib/time.ts'
import { LocalRegistry } from '../registry/local-registry.ts'
import { createRegistryKeeper, type RegistryKeeper } from '../registry/maintenance.ts'
import { openPushedStore, type PushedStore } from '../registry/repositories.ts'
import { type MakeRoom, UploadSessions } from '../registry/uploads.ts'
import { type BasicAuth, createBasicAuth } from '../server/basic-auth.ts'
import type { StoreOptions } from '../store/open-store.ts'
import { createScrub } from '../store/verify.ts'

/** The parts of a running registry for pushed images. */
export interface RegistryParts {
  readonly store: PushedStore
  readonly sessions: UploadSessions
  readonly registry: LocalRegistry
  readonly keeper: RegistryKeeper
  /** Undefined when everybody may do everything. */
  readonly authorize: BasicAuth['authorize'] | undefined
  /** Why it serves nobody, one sentence each; empty when it does. */
  troubles(): Promise<string[]>
  /** Listeners are to be closed before. */
  close(): Promise<void>
}

const uploadIdleMs = 3_600_000

/** Plugs the registry together. `mostUploads`: uploads under way, each of which may hold a file open. Throws MirrorError for a bad password file. */
export async function composeRegistry(
  config: Config,
  paths: MirrorPaths,
  logger: Logger,
  makeRoom: MakeRoom,
  lock: Pick<StoreOptions, 'instance' | 'onLost'>,
  mostUploads: number,
): Promise<RegistryParts> {
  const clock = systemClock
  const { auth } = config.registry
  const passwords = auth && (await createBasicAuth(auth.htpasswd, { logger, clock }))
  const store = await openPushedStore({
    root: registryRoot(paths),
    minFree: config.cache.minFree,
    logger,
    clock,
    ...lock,
  }).catch(async (error: unknown) => {
    await passwords?.close()
    throw error
  })
  const limit = mostUploads
  const sessions = new UploadSessions({ blobs: store.blobs, clock, limit, idle: uploadIdleMs, logger })
  const keeper = createRegistryKeeper({ store, clock, logger })
  const scrub = createScrub({ store, clock, logger })
  return {
    store,
    sessions,
    registry: new LocalRegistry({ store, sessions, makeRoom, clock }),
    keeper,
    authorize: passwords?.authorize,
    async troubles() {
      const trouble = (await passwords?.trouble())?.replace('The', 'the')
      return trouble === undefined ? [] : [`Nobody can log in to the registry, because ${trouble}`]
    },
    async close() {
      await passwords?.close()
      await sessions.close()
      await keeper.close()
      await scrub.close()
      await store.close()
    },
  }
}

/** The registry's folder below the data folder. */
export function registryRoot({ dataDir }: MirrorPaths): string {
  return join(dataDir, 'registry')
}
