import { randomBytes } from 'node:crypto'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { openSecret } from '../admin/api.ts'
import { loadPromClient } from '../admin/status.ts'
import { Evictor } from '../cache/evictor.ts'
import { openCacheMetadata } from '../cache/grants.ts'
import { PullThrough } from '../cache/pull-through.ts'
import { Stats } from '../cache/stats.ts'
import type { Config } from '../config/config.ts'
import { getCacheRoot, type MirrorPaths, getRegistryRoot } from '../config/paths.ts'
import { loadDockerode } from '../docker/dockerode.ts'
import { resolveNetworkNames } from '../docker/engine.ts'
import { Slots } from '../lib/async.ts'
import { createBufferRelease } from '../lib/body-memory.ts'
import { getErrno } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { loadCommandRunner } from '../lib/process.ts'
import { ProcessHealth } from '../lib/system-errors.ts'
import { createWriteBehind, logFailure, systemClock } from '../lib/time.ts'
import { LocalRegistry } from '../registry/local-registry.ts'
import { createRegistryMaintenance } from '../registry/maintenance.ts'
import { openPushedStore } from '../registry/repositories.ts'
import { type MakeRoom, UploadSessions } from '../registry/uploads.ts'
import { createBasicAuth } from '../server/basic-auth.ts'
import { ConnectionBudget } from '../server/connection-budget.ts'
import { chooseSendBlob } from '../server/send/sendfile.ts'
import { createHashPool } from '../store/hashing.ts'
import { openStore, type StoreOptions } from '../store/open-store.ts'
import { createScrub } from '../store/verify.ts'
import { createIdentify } from '../upstream/identity.ts'
import { ProbeImages } from '../upstream/probe-image.ts'
import { loadSocks } from '../upstream/proxy.ts'
import { loadUndici } from '../upstream/undici.ts'
import { planDescriptors, planMetadataMemory, spareMemory } from './limits.ts'
import { createUpstreamDirectory } from './upstreams.ts'

/** Holds the parts of a running server. */
export type Parts = Awaited<ReturnType<typeof compose>>

const statsSaveMs = 10_000
/** Limits a blob whose size is in no manifest and no response of its upstream, bytes. No layer is as large. */
const maxUnsizedBytes = 64 * 1024 ** 3

/** Creates the parts of the server and connects them: no other file knows all of them. */
export async function compose(
  config: Config,
  paths: MirrorPaths,
  version: string,
  logger: Logger,
  lock: Pick<StoreOptions, 'instance' | 'onLost'> = {},
  env: Readonly<Record<string, string | undefined>> = process.env,
) {
  await preload()
  const clock = systemClock
  const descriptors = planDescriptors({ listening: countListeners(config) })
  const { cache: settings } = config
  const blobs = await chooseSendBlob({
    idle: settings.timeouts.idle,
    plain: config.tls === undefined,
    env,
  })
  logger.debug({ sendBlob: blobs.kind }, 'chose how blobs are sent')
  const ownTroubles = new ProcessHealth(clock)
  const probeImages = new ProbeImages(
    () => clock.monotonic(),
    () => randomBytes(16).toString('hex'),
  )
  const userAgent = `mirror/${version}`
  // The hashes are among the cached content, their key is not.
  const identify = createIdentify(Buffer.from(await openSecret(join(paths.stateDir, 'identity-key')), 'hex'))
  const upstreams = createUpstreamDirectory({
    config,
    probeImages,
    env,
    identify,
    userAgent,
    requests: new Slots(descriptors.requests),
    clock,
    logger,
    ownTroubles,
  })
  const store = await openStore(
    {
      root: getCacheRoot(paths),
      verifyReads: settings.verifyReads,
      minFree: settings.minFree,
      logger,
      clock,
      ...lock,
    },
    (layout) => openCacheMetadata(layout.metadataFiles, { logger, clock, maxWeight: planMetadataMemory() }),
  )

  const statsFile = join(paths.stateDir, 'stats.json')
  const stats = new Stats(clock.wall())
  await stats.load(statsFile)
  const saving = createWriteBehind({
    write: () => stats.save(statsFile),
    logger,
    failure: 'could not save the statistics',
    everyMs: statsSaveMs,
  })

  const evictor = new Evictor({
    store,
    limits: { maxSize: settings.maxSize, maxAge: settings.maxAge, minFree: settings.minFree },
    isInUse: (digest) => cache.isDownloading(digest),
    logger,
    clock,
  })
  const hashes = createHashPool(availableParallelism(), {
    maxThreads: descriptors.hashThreads,
    watcher: ownTroubles.watch('hash'),
  })
  const scrub = createScrub({ store, logger, clock })
  const stopSparing =
    blobs.trimMemory &&
    spareMemory({ trim: blobs.trimMemory, onFailure: logFailure(logger, 'could not give memory back') })
  const cache: PullThrough = new PullThrough({
    resolveUpstream: upstreams.route,
    blobs: store.blobs,
    metadata: store.metadata,
    hashes,
    downloadSlots: new Slots(descriptors.fills),
    maxUnsizedBytes: Math.min(settings.maxSize || Infinity, maxUnsizedBytes),
    release: createBufferRelease(),
    ranges: {
      // Each range has a connection of its own.
      perBlob: Math.min(settings.prefetch.rangesPerBlob, Math.ceil(descriptors.requests / 16)),
      bytes: settings.prefetch.rangeBytes,
      minSize: settings.prefetch.rangeMinSize,
    },
    prefetchLayers: settings.prefetch.layers,
    stats,
    policy: {
      freshness: { default: settings.tagFreshness, byHost: toFreshnessByHost(config.upstreams) },
      stale: settings.stale,
      offline: settings.offline,
      revalidateTimeoutMs: settings.timeouts.revalidate,
    },
    runningTime: store.runningClock.now,
    makeRoom: async (bytes) => {
      try {
        await evictor.evict({ dryRun: false, neededBytes: bytes })
      } catch (error) {
        if (getErrno(error) === undefined) throw error
        // The writer that needs the room fails with the disk's own error.
        logger.error({ error: String(error) }, 'could not make room')
      }
    },
    onStored: evictor.schedule,
    clock,
    logger,
  })

  const closeCache = async () => {
    stopSparing?.()
    await cache.close()
    await hashes.close()
    await upstreams.close()
    await scrub.close()
    await evictor.close()
    await saving.close()
    await store.close()
  }
  const makeRoom = async (bytes: number) => void (await evictor.evict({ dryRun: false, neededBytes: bytes }))
  let pushed: RegistryParts | undefined
  try {
    await hashes.start()
    if (config.registry.enabled)
      pushed = await composeRegistry(config, paths, logger, makeRoom, lock, descriptors.uploads)
  } catch (error) {
    await closeCache()
    throw error
  }

  return {
    store,
    upstreams,
    probeImages,
    cache,
    evictor,
    stats,
    /** Is undefined when the registry is switched off. */
    pushed,
    blobs,
    ownTroubles,
    /** Limits the connections of all listeners. */
    connections: new ConnectionBudget({
      limits: { clients: descriptors.clients, admin: descriptors.admin },
      refusals: descriptors.refusals,
      logger,
    }),
    /** Ends the work in the background and writes all state to disk. Call it after the listeners are closed. */
    async close(): Promise<void> {
      await pushed?.close()
      await closeCache()
    },
  }
}

/** Maps each upstream with a freshness of its own to it, ms. */
function toFreshnessByHost(upstreams: Config['upstreams']): ReadonlyMap<string, number> {
  const found = new Map<string, number>()
  for (const [host, { tagFreshness }] of Object.entries(upstreams))
    if (tagFreshness !== undefined) found.set(host, tagFreshness)
  return found
}

/** Counts the sockets that listen: on the addresses of the configuration, and on two gateways (IPv4 and IPv6) of each network. */
function countListeners({ cache, registry, admin, networks }: Config): number {
  const named = cache.listen.length + registry.listen.length + admin.listen.length
  return named + resolveNetworkNames(networks, process.env).length * 4
}

/** Holds the parts of a running registry for pushed images. */
export type RegistryParts = Awaited<ReturnType<typeof composeRegistry>>

const uploadIdleMs = 3_600_000

/**
 * Creates the parts of the push registry. `maxUploads`: uploads at a time; each may have a file open. Throws MirrorError for a bad
 * password file.
 */
async function composeRegistry(
  config: Config,
  paths: MirrorPaths,
  logger: Logger,
  makeRoom: MakeRoom,
  lock: Pick<StoreOptions, 'instance' | 'onLost'>,
  maxUploads: number,
) {
  const clock = systemClock
  const { auth } = config.registry
  const passwords = auth && (await createBasicAuth(auth.htpasswd, { logger, clock }))
  const store = await openPushedStore({
    root: getRegistryRoot(paths),
    minFree: config.cache.minFree,
    logger,
    clock,
    ...lock,
  }).catch(async (error: unknown) => {
    await passwords?.close()
    throw error
  })
  const sessions = new UploadSessions({
    blobs: store.blobs,
    clock,
    maxSessions: maxUploads,
    idleTimeoutMs: uploadIdleMs,
    logger,
  })
  const maintenance = createRegistryMaintenance({ store, clock, logger })
  const scrub = createScrub({ store, clock, logger })
  return {
    store,
    sessions,
    registry: new LocalRegistry({ store, sessions, makeRoom, clock }),
    maintenance,
    /** Is undefined for a registry without passwords. */
    authorize: passwords?.authorize,
    /** Lists the reasons why it serves no client, one sentence each; empty when it serves. */
    async troubles(): Promise<string[]> {
      const trouble = (await passwords?.getProblem())?.replace('The', 'the')
      return trouble === undefined ? [] : [`Nobody can log in to the registry, because ${trouble}`]
    },
    /** Closes the registry. Call it after the listeners are closed. */
    async close(): Promise<void> {
      await passwords?.close()
      await sessions.close()
      await maintenance.close()
      await scrub.close()
      await store.close()
    },
  }
}

/**
 * Loads every module that a server uses after its start: `npm install` may replace or remove the package's folder while the server
 * runs. The other commands load these modules at first use. A module that the start itself loads is not in this list.
 * test/cli/preload.test.ts compares the list with the imports.
 */
async function preload(): Promise<void> {
  // One after the other: an import opens all of its files at once, which a small limit on open files does not allow.
  await loadUndici()
  await loadSocks()
  await loadCommandRunner()
  await loadPromClient()
  await loadDockerode()
}
