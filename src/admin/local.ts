import { join } from 'node:path'
import { Evictor } from '../cache/evictor.ts'
import { openCacheMetadata } from '../cache/grants.ts'
import { getErrno } from '../lib/errors.ts'
import type { PullThrough } from '../cache/pull-through.ts'
import { exitCode, MirrorError } from '../lib/errors.ts'
import { ignoreMissing } from '../lib/fs.ts'
import { silentLogger } from '../lib/logger.ts'
import { systemClock } from '../lib/time.ts'
import type { MetadataStore } from '../metadata/metadata-store.ts'
import { readMetadata } from '../metadata/open-metadata.ts'
import { PastChanges, pastChangesName } from '../metadata/past-changes.ts'
import { OciError } from '../oci/errors.ts'
import type { Digest } from '../oci/reference.ts'
import { createRegistryMaintenance, type RegistryMaintenance } from '../registry/maintenance.ts'
import { openPushedStore, type PushedStore, readPushedStore } from '../registry/repositories.ts'
import type { ImageSavings } from '../stats/savings.ts'
import { freeSpace } from '../store/blob-writer.ts'
import { openStore, readStore, type Store, type StoreOptions } from '../store/open-store.ts'
import { type VerifyState, verifyStore } from '../store/verify.ts'
import type { CacheApi, RegistryApi, TagCheckReport, VerifyProgress } from './api.ts'
import { cleanText, listDamagedReports, listImageReports } from './status.ts'

const common = { logger: silentLogger, clock: systemClock }

interface StoredCacheOptions extends Pick<StoreOptions, 'root' | 'verifyReads' | 'minFree'> {
  /** Bytes; 0 = no limit. */
  readonly maxSize: number
  /** Running time ms; 0 = keep. */
  readonly maxAge: number
  /** Names the state folder, where the past changes of the cache are. */
  readonly stateDir: string
}

/** Accesses the cache of a stopped mirror on the disk. Reads, and tries a change, without a lock. Throws a MirrorError for a change while another process has it. */
export function openStoredCache({ maxSize, maxAge, stateDir, ...options }: StoredCacheOptions): CacheApi {
  const open = async (dryRun = false) => {
    const store = dryRun
      ? await openToRead(options.root)
      : await openStore({ ...options, ...common }, (layout) => openCacheMetadata(layout.metadataFiles, common))
    const limits = { maxSize, maxAge, minFree: options.minFree }
    const pastChanges = new PastChanges(() => common.clock.wall())
    const pastChangesFile = join(stateDir, pastChangesName)
    await pastChanges.load(pastChangesFile)
    const evictor = new Evictor({
      store,
      limits,
      isInUse: isNeverInUse,
      pastChanges,
      freeSpace: readFreeSpace,
      ...common,
    })
    const close = async () => {
      await evictor.close()
      await savePastChanges(pastChanges, pastChangesFile)
      await store.close()
    }
    return { store, api: createCacheApi(store, evictor), close }
  }
  return {
    list: () => using(openToRead(options.root), async (store) => listImageReports({ store })),
    remove: (request) => using(open(request.dryRun), ({ api }) => api.remove(request)),
    checkTag: refuseStopped,
    prune: (request) => using(open(request.dryRun), ({ api }) => api.prune(request)),
    async *verify({ quarantine }, signal) {
      const store = await openToRead(options.root)
      let damaged: readonly Digest[] = []
      try {
        for await (const state of verifyStore(store, { quarantine: false, signal })) {
          damaged = state.damaged
          yield toProgress(state)
        }
      } finally {
        await store.close()
      }
      // Take the lock only when there is something to move.
      if (!quarantine || damaged.length === 0) return
      await using(open(), async ({ store: { blobs } }) => {
        await blobs.checkWritable()
        for (const digest of damaged) for await (const _ of blobs.check(digest, true)) signal.throwIfAborted()
      })
    },
  }
}

const isNeverInUse = () => false

/** Saves the past changes. A disk that refuses them costs only explanations, so the command does not fail. */
async function savePastChanges(pastChanges: PastChanges, path: string): Promise<void> {
  try {
    await pastChanges.save(path)
  } catch (error) {
    if (getErrno(error) === undefined) throw error
  }
}

async function refuseStopped(): Promise<never> {
  throw new MirrorError('mirror is not running, so it cannot ask an upstream.', {
    exit: exitCode.notRunning,
    hints: ['mirror up'],
  })
}

/** Returns the free bytes of a disk; Infinity where there is no store yet. */
async function readFreeSpace(path: string): Promise<number> {
  return (await ignoreMissing(() => freeSpace(path))) ?? Infinity
}

function openToRead(root: string) {
  return readStore({ root, ...common }, (layout) => readMetadata({ ...layout.metadataFiles, ...common }))
}

/** Runs a task with something open, and closes it. */
async function using<Resource extends { close(): Promise<void> }, Result>(
  opening: Promise<Resource>,
  task: (resource: Resource) => Promise<Result>,
): Promise<Result> {
  const resource = await opening
  try {
    return await task(resource)
  } finally {
    await resource.close()
  }
}

/** Accesses the registry of a stopped mirror on the disk, as `openStoredCache` does. */
export function openStoredRegistry(options: Pick<StoreOptions, 'root' | 'minFree'>): RegistryApi {
  const openApi = async (isReadOnly: boolean) => {
    const store = await (isReadOnly ? readPushedStore : openPushedStore)({ ...options, ...common })
    const maintenance = createRegistryMaintenance({ store, ...common })
    const close = async () => {
      await maintenance.close()
      await store.close()
    }
    return { ...createRegistryApi(store, maintenance), close }
  }
  return {
    list: () => using(openApi(true), (api) => api.list()),
    listDamaged: () => using(openApi(true), (api) => api.listDamaged()),
    remove: (request) => using(openApi(request.dryRun), (api) => api.remove(request)),
    gc: (request) => using(openApi(request.dryRun), (api) => api.gc(request)),
    prune: (request) => using(openApi(request.dryRun), (api) => api.prune(request)),
  }
}

/** Holds what only a running mirror has. */
interface RunningCache {
  readonly cache: Pick<PullThrough, 'checkTag' | 'clearMemory' | 'describeTag'>
  readonly savings: Pick<ImageSavings, 'get'>
}

/** Implements the operations on cached images with a store of this process. `running`: undefined for a stopped mirror. */
export function createCacheApi(store: Store<MetadataStore>, evictor: Evictor, running?: RunningCache): CacheApi {
  const { cache, savings } = running ?? {}
  const onRemoved = () => cache?.clearMemory()
  return {
    async list() {
      await store.blobs.ready
      return listImageReports({ store, cache, savings })
    },
    async checkTag({ image }) {
      const { host, name, tag } = parseTaggedName(image)
      const check = await cache?.checkTag({ host, name }, tag)
      if (!check) throw new OciError('MANIFEST_UNKNOWN', 404, `Not cached: ${cleanText(image)}`)
      const { digest, isChanged, checkedAt, error } = check
      const report: TagCheckReport = {
        image,
        digest,
        changed: isChanged,
        checkedAt: new Date(checkedAt).toISOString(),
      }
      return error === undefined ? report : { ...report, error: cleanText(error) }
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
      for await (const state of verifyStore(store, { quarantine, signal })) yield toProgress(state)
      onRemoved()
    },
  }
}

/** Splits `docker.io/library/alpine:3.20`. Throws an OciError 400 for a name without a tag, because a digest never changes. */
function parseTaggedName(image: string): { host: string; name: string; tag: string } {
  const [, host, name, tag] = /^([^/]+)\/([^@]+):([^:/@]+)$/.exec(image) ?? []
  if (host !== undefined && name !== undefined && tag !== undefined) return { host, name, tag }
  throw new OciError('NAME_INVALID', 400, 'Name an image with its tag, as in docker.io/library/alpine:3.20.')
}

function toProgress(state: VerifyState): VerifyProgress {
  return { ...state, damaged: [...state.damaged], done: state.checked === state.total }
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
