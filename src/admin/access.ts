import type { Config } from '../config/config.ts'
import { loadConfig } from '../config/load.ts'
import { mirrorPaths, type MirrorPaths } from '../config/paths.ts'
import { engineHost } from '../docker/endpoint.ts'
import { exitCode, MirrorError } from '../lib/errors.ts'
import type { Surroundings } from '../lib/process.ts'
import type { CacheAccess, Naming, RegistryAccess, StatusReport } from './api.ts'
import { type AdminClient, type AdminTunnel, createAdminClient, openTunnel } from './client.ts'
import { findMirrorHere, type FoundMirror } from './find-mirror.ts'
import { configuredNaming, ownAddresses } from './names.ts'
import { type ContainerPlace, type MirrorState, assertDataOnHost } from './state.ts'
import { refuseOthersPlaces } from './sudo.ts'

export function openCacheAccess(surroundings: Surroundings): Promise<CacheAccess> {
  return runningOrStored<CacheAccess>(surroundings, {
    async running(here) {
      const admin = adminClientHere(here)
      const { cache, networks } = here.running.endpoints
      return {
        naming: await cacheNaming(surroundings, [...cache, ...Object.values(networks)]),
        list: async () => (await admin.status()).images,
        remove: (names, dryRun) => admin.remove({ names, dryRun }),
        prune: (dryRun) => admin.prune({ dryRun }),
        verify: (quarantine, signal) => admin.verify({ quarantine }, signal),
        async close() {},
      }
    },
    async stored(config, paths) {
      // Only this way needs the store's code.
      const { openStoredCache } = await import('./offline.ts')
      return { ...(await openStoredCache(config, paths)), naming: await cacheNaming(surroundings, []) }
    },
  })
}

async function cacheNaming(surroundings: Surroundings, urls: string[]): Promise<Omit<Naming, 'images'>> {
  const config = await configuredNaming(surroundings)
  return {
    isOurs: ownAddresses([...urls, ...config.cache], config.names),
    defaultUpstream: config.defaultUpstream,
  }
}

export function openRegistryAccess(surroundings: Surroundings): Promise<RegistryAccess> {
  return runningOrStored<RegistryAccess>(surroundings, {
    async running(here) {
      const admin = adminClientHere(here)
      const { registry, networks } = here.running.endpoints
      return {
        // On a network it has the port that it has elsewhere.
        naming: await registryNaming(surroundings, registry, Object.values(networks)),
        list: () => admin.pushedImages(),
        damaged: async () => (await admin.status()).registry.damaged ?? [],
        remove: (names, dryRun) => admin.removePushed({ names, dryRun }),
        gc: (how) => admin.collectPushed(how),
        prune: (how) => admin.prunePushed(how),
        async close() {},
      }
    },
    async stored(config, paths) {
      // Only this way needs the store's code.
      const { openStoredRegistry } = await import('./offline.ts')
      return { ...(await openStoredRegistry(config, paths)), naming: await registryNaming(surroundings, []) }
    },
  })
}

async function registryNaming(
  surroundings: Surroundings,
  urls: string[],
  networks: string[] = [],
): Promise<Omit<Naming, 'images'>> {
  const config = await configuredNaming(surroundings)
  const names = [...config.names, ...networks.map((url) => new URL(url).hostname)]
  return { isOurs: ownAddresses([...urls, ...config.registry], names), defaultUpstream: undefined }
}

/** By the running mirror, which alone may write to its stores; by the stores themselves when none runs. */
async function runningOrStored<T>(
  surroundings: Surroundings,
  ways: {
    readonly running: (here: FoundMirror) => Promise<T>
    readonly stored: (config: Config, paths: MirrorPaths) => Promise<T>
  },
): Promise<T> {
  const here = await findMirrorHere(surroundings)
  if (here !== undefined) return ways.running(here)
  const paths = mirrorPaths(surroundings)
  refuseOthersPlaces(surroundings)
  await assertDataOnHost(paths.stateDir)
  return ways.stored(await loadConfig({ ...surroundings, paths }), paths)
}

/** What the running mirror says about itself; undefined when none runs. */
export async function mirrorStatus(surroundings: Surroundings): Promise<StatusReport | undefined> {
  const here = await findMirrorHere(surroundings)
  if (here === undefined) return undefined
  const report = completed(await adminClientHere(here).status())
  const engine = remoteEngine(here.running)
  return { ...report, ...(engine !== undefined && { engine }), ...(here.user && { user: here.user.name }) }
}

/** The admin client of a mirror that was found. */
export function adminClientHere({ running, paths, user }: FoundMirror): AdminClient {
  return adminClientOf(running, paths, user?.uid)
}

/** A mirror of an older version, which a newer command may ask, does not say everything. */
function completed(report: Partial<Pick<StatusReport, 'networks' | 'refusedRegistries'>> & StatusReport): StatusReport {
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

/** The Docker engine of another machine whose addresses the mirror's are: `ssh://me@there`; undefined for this machine's. */
export function remoteEngine({ container }: Pick<MirrorState, 'container'>): string | undefined {
  return container?.elsewhere && container.engine && engineHost(container.engine)
}

/** The admin client of a running mirror; `owner`: the user whose mirror it is, where that is not ours. */
export function adminClientOf(running: MirrorState, paths: MirrorPaths, owner?: number): AdminClient {
  const [url] = running.endpoints.admin
  if (url === undefined)
    throw new MirrorError(`The mirror (pid ${running.pid}) has no admin address.`, {
      exit: exitCode.missing,
      hints: ['mirror down && mirror up'],
    })
  const tunnel = running.container && tunnelTo(running.container)
  return createAdminClient({ url, tokenFile: paths.tokenFile, tokenOwner: owner, timeoutMs: 10_000, tunnel })
}

function tunnelTo({ id, engine, elsewhere }: ContainerPlace): AdminTunnel | undefined {
  if (engine === undefined || elsewhere === undefined) return undefined
  return {
    to: engineHost(engine),
    async connect() {
      // What it takes to speak to an engine is loaded by those who have to.
      const { openContainerEngine } = await import('../docker/dockerode-engine.ts')
      return openTunnel(await openContainerEngine(engine), id, elsewhere.adminPort)
    },
  }
}
