import { randomBytes } from 'node:crypto'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { openSecret } from '../admin/api.ts'
import { loadPromClient } from '../admin/status.ts'
import { Evictor } from '../cache/evictor.ts'
import { openCacheMetadata } from '../cache/grants.ts'
import { PullThrough } from '../cache/pull-through.ts'
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
import { PastChanges, pastChangesName } from '../metadata/past-changes.ts'
import type { Digest } from '../oci/reference.ts'
import { LocalRegistry } from '../registry/local-registry.ts'
import { createRegistryMaintenance } from '../registry/maintenance.ts'
import { openClaimedPushedStore } from '../registry/repositories.ts'
import { type MakeRoom, UploadSessions } from '../registry/uploads.ts'
import { createBasicAuth } from '../server/basic-auth.ts'
import { ConnectionBudget } from '../server/connection-budget.ts'
import { chooseSendBlob } from '../server/send/sendfile.ts'
import { createHashPool } from '../store/hashing.ts'
import { type ClaimedStore, claimStore, type StoreOptions } from '../store/open-store.ts'
import { createScrub } from '../store/verify.ts'
import { createIdentify } from '../upstream/identity.ts'
import { ProbeImages } from '../upstream/probe-image.ts'
import { loadSocks } from '../upstream/proxy.ts'
import { loadUndici } from '../upstream/undici.ts'
import { openActivity } from './activity.ts'
import { planDescriptors, planMetadataMemory, spareMemory } from './limits.ts'
import { createUpstreamDirectory, probeQuotaRegularly } from './upstreams.ts'

/** Holds the parts of a running server. */
export type Parts = Awaited<ReturnType<typeof compose>>

/** Holds the parts of a registry for pushed images; its store may still be opening. */
export type RegistryParts = NonNullable<Parts['registry']>

export interface ComposeOptions {
  readonly config: Config
  readonly paths: MirrorPaths
  readonly version: string
  readonly logger: Logger
  readonly env: Readonly<Record<string, string | undefined>>
  /** Applies to the locks of the stores. */
  readonly lock: Pick<StoreOptions, 'instance' | 'onLost'>
}

/** Lists the functions that close what is open, in the order in which it was opened. */
type Closing = (() => void | Promise<void>)[]

type Base = Awaited<ReturnType<typeof composeBase>>

const clock = systemClock
const pastChangesSaveMs = 10_000
const uploadIdleMs = 3_600_000
/** Limits a blob whose size is in no manifest and no response of its upstream, bytes. No layer is as large. */
const maxUnsizedBytes = 64 * 1024 ** 3

/**
 * Creates the parts of the server and connects them: no other file knows all of them. Locks the stores, and opens them in the background.
 * Throws a MirrorError for what the user can fix; the parts that need a store reject with it.
 */
export async function compose(options: ComposeOptions) {
  const closing: Closing = []
  let opening: Promise<unknown> | undefined
  const close = async () => {
    await opening
    const failures: unknown[] = []
    for (const end of closing.splice(0).toReversed())
      try {
        await end()
      } catch (error) {
        failures.push(error)
      }
    if (failures.length > 0) throw failures[0]
  }
  try {
    const { config, paths } = options
    const base = await composeBase(options, closing)
    const passwords = config.registry.enabled ? await openPasswords(options, closing) : undefined
    const { verifyReads } = config.cache
    const { pastChanges } = base
    const onDamaged = (digest: Digest) => pastChanges.recordRemoval(digest, 'damaged')
    const claimed = await claim(options, { root: getCacheRoot(paths), verifyReads, onDamaged }, closing)
    const claimedRegistry = config.registry.enabled
      ? await claim(options, { root: getRegistryRoot(paths), verifyReads: 'auto' }, closing)
      : undefined
    const cache = openCache(options, base, claimed, closing)
    const opened = claimedRegistry && openRegistry(options, base, claimedRegistry, cache, closing)
    opening = Promise.allSettled([cache, opened])
    const { blobs, ownTroubles, probeImages, upstreams, activity, connections, maxPages } = base
    return {
      blobs,
      ownTroubles,
      probeImages,
      upstreams,
      activity,
      stats: activity.stats,
      pastChanges,
      connections,
      maxPages,
      /** Resolves when the store of the cache is open. */
      cache,
      /** Is undefined when the registry is switched off. */
      registry: opened && { ...passwords!, opened },
      /** Ends the work in the background and writes all state to disk. Call it after the listeners are closed. */
      close,
    }
  } catch (error) {
    await close().catch(logFailure(options.logger, 'could not end after the failed start'))
    throw error
  }
}

/** Locks a store. */
async function claim(
  { config, logger, lock }: ComposeOptions,
  store: Pick<StoreOptions, 'root' | 'verifyReads' | 'onDamaged'>,
  closing: Closing,
): Promise<ClaimedStore> {
  const claimed = await claimStore({ ...store, minFree: config.cache.minFree, logger, clock, ...lock })
  closing.push(() => claimed.release())
  return claimed
}

/** Creates the parts that need no store. */
async function composeBase({ config, paths, version, logger, env }: ComposeOptions, closing: Closing) {
  await preload()
  const descriptors = planDescriptors({ listening: countListeners(config) })
  const blobs = await chooseSendBlob({
    idle: config.cache.timeouts.idle,
    plain: config.tls === undefined,
    env,
  })
  logger.debug({ sendBlob: blobs.kind }, 'chose how blobs are sent')
  const stopSparing =
    blobs.trimMemory &&
    spareMemory({ trim: blobs.trimMemory, onFailure: logFailure(logger, 'could not give memory back') })
  if (stopSparing) closing.push(stopSparing)
  const ownTroubles = new ProcessHealth(clock)
  const probeImages = new ProbeImages(
    () => clock.monotonic(),
    () => randomBytes(16).toString('hex'),
  )
  const userAgent = `mirror/${version}`
  // The hashes are among the cached content, their key is not.
  const identify = createIdentify(Buffer.from(await openSecret(join(paths.stateDir, 'identity-key')), 'hex'))
  const activity = await openActivity({ stateDir: paths.stateDir, clock, logger })
  closing.push(() => activity.close())
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
    history: activity.history,
  })
  closing.push(() => upstreams.close())
  closing.push(probeQuotaRegularly(upstreams, logger))
  const pastChanges = await openPastChanges(paths, { logger }, closing)
  const hashes = createHashPool(availableParallelism(), {
    maxThreads: descriptors.hashThreads,
    watcher: ownTroubles.watch('hash'),
  })
  closing.push(() => hashes.close())
  await hashes.start()
  return {
    descriptors,
    blobs,
    ownTroubles,
    probeImages,
    upstreams,
    activity,
    pastChanges,
    hashes,
    /** Limits the pages that hold a connection to the admin listener, so that commands find a free one. */
    maxPages: Math.ceil(descriptors.admin / 2),
    /** Limits the connections of all listeners. */
    connections: new ConnectionBudget({
      limits: { clients: descriptors.clients, admin: descriptors.admin },
      refusals: descriptors.refusals,
      logger,
    }),
  }
}

/** Opens the memory of removals and moved tags, which explains misses. */
async function openPastChanges(
  { stateDir }: MirrorPaths,
  { logger }: Pick<ComposeOptions, 'logger'>,
  closing: Closing,
): Promise<PastChanges> {
  const path = join(stateDir, pastChangesName)
  const pastChanges = new PastChanges(() => clock.wall())
  await pastChanges.load(path)
  const saving = createWriteBehind({
    write: () => pastChanges.save(path),
    logger,
    failure: 'could not save the past changes of the cache',
    everyMs: pastChangesSaveMs,
  })
  closing.push(() => saving.close())
  return pastChanges
}

/** Opens the store of the cache, and creates the parts that need it. */
async function openCache(
  { config, logger }: ComposeOptions,
  { descriptors, hashes, pastChanges, activity, upstreams }: Base,
  claimed: ClaimedStore,
  closing: Closing,
) {
  const { cache: settings } = config
  const store = await claimed.open((layout) =>
    openCacheMetadata(layout.metadataFiles, { logger, clock, maxWeight: planMetadataMemory() }),
  )
  closing.push(() => store.close())
  const evictor = new Evictor({
    store,
    limits: { maxSize: settings.maxSize, maxAge: settings.maxAge, minFree: settings.minFree },
    isInUse: (digest) => cache.isDownloading(digest),
    pastChanges,
    logger,
    clock,
  })
  closing.push(() => evictor.close())
  const scrub = createScrub({ store, logger, clock })
  closing.push(() => scrub.close())
  const cache: PullThrough = new PullThrough({
    resolveUpstream: upstreams.route,
    blobs: store.blobs,
    metadata: store.metadata,
    pastChanges,
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
    stats: activity.stats,
    policy: {
      freshness: { default: settings.tagFreshness, byHost: toFreshnessByHost(config.upstreams) },
      stale: settings.stale,
      get offline() {
        return upstreams.offline.isActive
      },
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
  closing.push(() => cache.close())
  return { store, evictor, cache }
}

/** Reads the passwords of the registry. Throws a MirrorError for a bad password file. */
async function openPasswords({ config, logger }: ComposeOptions, closing: Closing) {
  const { auth } = config.registry
  const passwords = auth && (await createBasicAuth(auth.htpasswd, { logger, clock }))
  if (passwords) closing.push(() => passwords.close())
  return {
    /** Is undefined for a registry without passwords. */
    authorize: passwords?.authorize,
    /** Lists the reasons why it serves no client, one sentence each; empty when it serves. */
    async troubles(): Promise<string[]> {
      const trouble = (await passwords?.getProblem())?.replace('The', 'the')
      return trouble === undefined ? [] : [`Nobody can log in to the registry, because ${trouble}`]
    },
  }
}

/** Opens the store of the registry when that of the cache is open, and creates the parts that need it. */
async function openRegistry(
  { logger }: ComposeOptions,
  { descriptors }: Base,
  claimed: ClaimedStore,
  openingCache: ReturnType<typeof openCache>,
  closing: Closing,
) {
  const { evictor } = await openingCache
  const store = await openClaimedPushedStore(claimed, { logger, clock })
  closing.push(() => store.close())
  const scrub = createScrub({ store, clock, logger })
  closing.push(() => scrub.close())
  const maintenance = createRegistryMaintenance({ store, clock, logger })
  closing.push(() => maintenance.close())
  const sessions = new UploadSessions({
    blobs: store.blobs,
    clock,
    // Each upload may have a file open.
    maxSessions: descriptors.uploads,
    idleTimeoutMs: uploadIdleMs,
    logger,
  })
  closing.push(() => sessions.close())
  const makeRoom: MakeRoom = async (bytes) => void (await evictor.evict({ dryRun: false, neededBytes: bytes }))
  return { store, sessions, maintenance, registry: new LocalRegistry({ store, sessions, makeRoom, clock }) }
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
