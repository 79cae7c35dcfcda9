import { getCacheRoot, getRegistryRoot, mirrorPaths, type MirrorPaths } from '../config/paths.ts'
import { renderDockerHost } from '../docker/endpoint.ts'
import { exitCode, MirrorError } from '../lib/errors.ts'
import type { CommandEnvironment } from '../lib/process.ts'
import type { CacheApi, Naming, RegistryApi, StatusReport } from './api.ts'
import { type AdminClient, type AdminTunnel, createAdminClient, openTunnel } from './client.ts'
import { findRunningMirror, type FoundMirror } from './find-mirror.ts'
import { type MirrorState, assertDataOnHost } from './state.ts'
import { refuseForeignPaths } from './sudo.ts'

const defaultTimeoutMs = 10_000
const tellTimeoutMs = 1000

/** Opens a part of the admin API: of the running mirror, or of the disk of a stopped one. */
interface StoreAccess {
  /** Holds the names by which users address its images. */
  readonly naming: Omit<Naming, 'images'>
  close(): Promise<void>
}

type CacheAccess = CacheApi & StoreAccess
export type RegistryAccess = RegistryApi & StoreAccess

/** Opens the cache of the running mirror, or the one on the disk when none runs. Throws a MirrorError when neither works. */
export async function openCacheAccess(surroundings: CommandEnvironment): Promise<CacheAccess> {
  const found = await findRunningMirror(surroundings)
  if (found === undefined) {
    const stopped = await loadStopped(surroundings)
    // Loads the store's code only for a stopped mirror.
    const { openStoredCache } = await import('./local.ts')
    return { ...openStoredCache(stopped.cache), naming: await createCacheNaming(surroundings, []), async close() {} }
  }
  const { cache, networks } = found.running.endpoints
  const naming = await createCacheNaming(surroundings, [...cache, ...Object.values(networks)])
  return { ...createClientForMirror(found).cache, naming, async close() {} }
}

async function createCacheNaming(surroundings: CommandEnvironment, urls: string[]): Promise<Omit<Naming, 'images'>> {
  const { createAddressCheck, loadNaming } = await import('./names.ts')
  const config = await loadNaming(surroundings)
  return {
    isOwnAddress: createAddressCheck([...urls, ...config.cache], config.names),
    defaultUpstream: config.defaultUpstream,
  }
}

/** Opens the registry of the running mirror, or the one on the disk when none runs. Throws a MirrorError when neither works. */
export async function openRegistryAccess(surroundings: CommandEnvironment): Promise<RegistryAccess> {
  const found = await findRunningMirror(surroundings)
  if (found === undefined) {
    const stopped = await loadStopped(surroundings)
    const { openStoredRegistry } = await import('./local.ts')
    const naming = await createRegistryNaming(surroundings, [])
    return { ...openStoredRegistry(stopped.registry), naming, async close() {} }
  }
  const { registry, networks } = found.running.endpoints
  // Adds the networks, where the registry has the same port.
  const naming = await createRegistryNaming(surroundings, registry, Object.values(networks))
  return { ...createClientForMirror(found).registry, naming, async close() {} }
}

async function createRegistryNaming(
  surroundings: CommandEnvironment,
  urls: string[],
  networks: string[] = [],
): Promise<Omit<Naming, 'images'>> {
  const { createAddressCheck, loadNaming } = await import('./names.ts')
  const config = await loadNaming(surroundings)
  const names = [...config.names, ...networks.map((url) => new URL(url).hostname)]
  return { isOwnAddress: createAddressCheck([...urls, ...config.registry], names), defaultUpstream: undefined }
}

/** Loads the settings of the stopped mirror; a running one alone may write to its stores. */
async function loadStopped(surroundings: CommandEnvironment) {
  const paths = mirrorPaths(surroundings)
  refuseForeignPaths(surroundings)
  await assertDataOnHost(paths.stateDir)
  const { loadConfig } = await import('../config/load.ts')
  const { verifyReads, minFree, maxSize, maxAge } = (await loadConfig({ ...surroundings, paths })).cache
  return {
    cache: { root: getCacheRoot(paths), stateDir: paths.stateDir, verifyReads, minFree, maxSize, maxAge },
    registry: { root: getRegistryRoot(paths), minFree },
  }
}

/** Returns the status of the running mirror; undefined when none runs. Throws a MirrorError when it does not answer. */
export async function readMirrorStatus(surroundings: CommandEnvironment): Promise<StatusReport | undefined> {
  const found = await findRunningMirror(surroundings)
  if (found === undefined) return undefined
  const report = addDefaults(await createClientForMirror(found).getStatus())
  const engine = getRemoteEngine(found.running)
  return { ...report, ...(engine !== undefined && { engine }), ...(found.user && { user: found.user.name }) }
}

/** Creates the admin client of a mirror that was found. `timeoutMs`: see `createAdminClient`. */
export function createClientForMirror({ running, paths, user }: FoundMirror, timeoutMs?: number): AdminClient {
  return createClientForState(running, paths, user?.uid, timeoutMs)
}

/** Tells the running mirror something that it works without. Does nothing when none runs, or when it does not take it. */
export async function tellMirror(
  surroundings: CommandEnvironment,
  tell: (client: AdminClient, found: FoundMirror) => Promise<void>,
): Promise<void> {
  try {
    const found = await findRunningMirror(surroundings)
    if (found !== undefined) await tell(createClientForMirror(found, tellTimeoutMs), found)
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
  }
}

/** Adds the fields that a mirror of an older version leaves out. */
function addDefaults(
  report: Partial<Pick<StatusReport, 'networks' | 'refusedRegistries'>> & StatusReport,
): StatusReport {
  const { cache, storage } = report as {
    cache: Partial<StatusReport['cache']>
    storage: Partial<StatusReport['storage']>
  }
  return {
    ...report,
    networks: report.networks ?? {},
    refusedRegistries: report.refusedRegistries ?? {},
    cache: { ...report.cache, pulls: cache.pulls ?? 0 },
    storage: { ...report.storage, minFree: storage.minFree ?? 0 },
  }
}

/** Names the remote Docker engine whose addresses the mirror has: `ssh://me@there`; undefined for an engine of this machine. */
export function getRemoteEngine({ container }: Pick<MirrorState, 'container'>): string | undefined {
  return container?.elsewhere && container.engine && renderDockerHost(container.engine)
}

/** Creates the admin client of a running mirror. `tokenOwner`: the user whose mirror it is, when root uses another user's. */
export function createClientForState(
  running: MirrorState,
  paths: MirrorPaths,
  tokenOwner?: number,
  timeoutMs = defaultTimeoutMs,
): AdminClient {
  const [url] = running.endpoints.admin
  if (url === undefined)
    throw new MirrorError(
      `The mirror (${running.container ? `container ${running.container.name}` : `pid ${running.pid}`}) has no admin address.`,
      {
        exit: exitCode.missing,
        hints: ['mirror down && mirror up'],
      },
    )
  const tunnel = createTunnel(running)
  return createAdminClient({ url, tokenFile: paths.tokenFile, tokenOwner, timeoutMs, tunnel })
}

/** Creates the tunnel to a mirror on another machine's engine; undefined for a mirror of this machine. */
export function createTunnel({ container }: Pick<MirrorState, 'container'>): AdminTunnel | undefined {
  const { id, engine, elsewhere } = container ?? {}
  if (id === undefined || engine === undefined || elsewhere === undefined) return undefined
  return {
    name: renderDockerHost(engine),
    async connect() {
      // Loads the code for engines only when a tunnel is needed.
      const { openEngineAt } = await import('../docker/dockerode-engine.ts')
      return openTunnel(await openEngineAt(engine), id, elsewhere.adminPort)
    },
  }
}
