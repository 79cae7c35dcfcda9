import type { Config } from '../config/config.ts'
import { loadConfig } from '../config/load.ts'
import { mirrorPaths, type MirrorPaths } from '../config/paths.ts'
import { engineHost } from '../docker/endpoint.ts'
import { exitCode, MirrorError } from '../lib/errors.ts'
import type { Surroundings } from '../lib/process.ts'
import type { CacheApi, Naming, RegistryApi, StatusReport } from './api.ts'
import { type AdminClient, type AdminTunnel, createAdminClient, openTunnel } from './client.ts'
import { findMirrorHere, type FoundMirror } from './find-mirror.ts'
import { loadNaming, createAddressCheck } from './names.ts'
import { type ContainerPlace, type MirrorState, assertDataOnHost } from './state.ts'
import { refuseOthersPlaces } from './sudo.ts'

/** An open part of the admin API, of the running mirror or of the disk of a stopped one. */
interface Access {
  /** How users name the images in it. */
  readonly naming: Omit<Naming, 'images'>
  close(): Promise<void>
}

export type CacheAccess = CacheApi & Access
export type RegistryAccess = RegistryApi & Access

/** Opens the cache of the running mirror, or the one on the disk when none runs. Throws a MirrorError when neither works. */
export async function openCacheAccess(surroundings: Surroundings): Promise<CacheAccess> {
  const found = await findMirrorHere(surroundings)
  if (found === undefined) {
    const { config, paths } = await loadStopped(surroundings)
    // Loads the store's code only for a stopped mirror.
    const { openStoredCache } = await import('./local.ts')
    return { ...(await openStoredCache(config, paths)), naming: await cacheNaming(surroundings, []) }
  }
  const { cache, networks } = found.running.endpoints
  const naming = await cacheNaming(surroundings, [...cache, ...Object.values(networks)])
  return { ...adminClientHere(found).cache, naming, async close() {} }
}

async function cacheNaming(surroundings: Surroundings, urls: string[]): Promise<Omit<Naming, 'images'>> {
  const config = await loadNaming(surroundings)
  return {
    isOurs: createAddressCheck([...urls, ...config.cache], config.names),
    defaultUpstream: config.defaultUpstream,
  }
}

/** Opens the registry of the running mirror, or the one on the disk when none runs. Throws a MirrorError when neither works. */
export async function openRegistryAccess(surroundings: Surroundings): Promise<RegistryAccess> {
  const found = await findMirrorHere(surroundings)
  if (found === undefined) {
    const { config, paths } = await loadStopped(surroundings)
    const { openStoredRegistry } = await import('./local.ts')
    return { ...(await openStoredRegistry(config, paths)), naming: await registryNaming(surroundings, []) }
  }
  const { registry, networks } = found.running.endpoints
  // The registry has the same port on the networks.
  const naming = await registryNaming(surroundings, registry, Object.values(networks))
  return { ...adminClientHere(found).registry, naming, async close() {} }
}

async function registryNaming(
  surroundings: Surroundings,
  urls: string[],
  networks: string[] = [],
): Promise<Omit<Naming, 'images'>> {
  const config = await loadNaming(surroundings)
  const names = [...config.names, ...networks.map((url) => new URL(url).hostname)]
  return { isOurs: createAddressCheck([...urls, ...config.registry], names), defaultUpstream: undefined }
}

/** Loads the settings of the stopped mirror; a running one alone may write to its stores. */
async function loadStopped(surroundings: Surroundings): Promise<{ config: Config; paths: MirrorPaths }> {
  const paths = mirrorPaths(surroundings)
  refuseOthersPlaces(surroundings)
  await assertDataOnHost(paths.stateDir)
  return { config: await loadConfig({ ...surroundings, paths }), paths }
}

/** Returns the status of the running mirror; undefined when none runs. Throws a MirrorError when it does not answer. */
export async function mirrorStatus(surroundings: Surroundings): Promise<StatusReport | undefined> {
  const here = await findMirrorHere(surroundings)
  if (here === undefined) return undefined
  const report = withDefaults(await adminClientHere(here).status())
  const engine = remoteEngine(here.running)
  return { ...report, ...(engine !== undefined && { engine }), ...(here.user && { user: here.user.name }) }
}

/** Creates the admin client of a mirror that was found. */
export function adminClientHere({ running, paths, user }: FoundMirror): AdminClient {
  return adminClientOf(running, paths, user?.uid)
}

/** Adds the fields that a mirror of an older version leaves out. */
function withDefaults(
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
export function remoteEngine({ container }: Pick<MirrorState, 'container'>): string | undefined {
  return container?.elsewhere && container.engine && engineHost(container.engine)
}

/** Creates the admin client of a running mirror. `tokenOwner`: the user whose mirror it is, when root uses another user's. */
export function adminClientOf(running: MirrorState, paths: MirrorPaths, tokenOwner?: number): AdminClient {
  const [url] = running.endpoints.admin
  if (url === undefined)
    throw new MirrorError(`The mirror (pid ${running.pid}) has no admin address.`, {
      exit: exitCode.missing,
      hints: ['mirror down && mirror up'],
    })
  const tunnel = running.container && createTunnel(running.container)
  return createAdminClient({ url, tokenFile: paths.tokenFile, tokenOwner: tokenOwner, timeoutMs: 10_000, tunnel })
}

function createTunnel({ id, engine, elsewhere }: ContainerPlace): AdminTunnel | undefined {
  if (engine === undefined || elsewhere === undefined) return undefined
  return {
    to: engineHost(engine),
    async connect() {
      // Loads the code for engines only when a tunnel is needed.
      const { openEngineAt } = await import('../docker/dockerode-engine.ts')
      return openTunnel(await openEngineAt(engine), id, elsewhere.adminPort)
    },
  }
}
