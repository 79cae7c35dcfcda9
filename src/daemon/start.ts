import { homedir } from 'node:os'
import { isDeepStrictEqual } from 'node:util'
import type { DoctorReport } from '../admin/activity.ts'
import { openAdminToken, type StatusReport } from '../admin/api.ts'
import { EventFeed } from '../admin/dashboard/events.ts'
import { createAdminHandler } from '../admin/handler.ts'
import { getPageFolder, loadPage } from '../admin/dashboard/page.ts'
import { type Config, defaultConfig, type ListenAddress } from '../config/config.ts'
import type { MirrorPaths } from '../config/paths.ts'
import { createDockerEngine } from '../docker/dockerode-engine.ts'
import { findDockerEndpoint, isRemoteEngine } from '../docker/endpoint.ts'
import { resolveNetworkNames } from '../docker/engine.ts'
import type { Logger } from '../lib/logger.ts'
import { getMachineNames, isLoopbackAddress } from '../lib/network.ts'
import { logFailure, systemClock } from '../lib/time.ts'
import { OciError } from '../oci/errors.ts'
import { TransferLog } from '../server/transfer-log.ts'
import { createHandler } from '../server/handler.ts'
import { listen, type Listener, type ListenOptions } from '../server/listen.ts'
import type { BlobSender } from '../server/send/send-blob.ts'
import type { ConnectionEndpoints, PushOptions } from '../server/push.ts'
import { createHostGuard, type HostGuard, isHostAlias } from '../server/request-guard.ts'
import type { SeenClients } from '../stats/clients.ts'
import type { ConfiguredClient } from '../stats/configured-clients.ts'
import type { RecentRequests } from '../stats/requests.ts'
import { createActivityApi } from './activity.ts'
import { createReporter, createServerAdminApi, createTraceApi } from './admin-api.ts'
import { compose, type RegistryParts } from './compose.ts'
import { createHostCheck, type HostHandoff } from './container/handoff.ts'
import {
  createMachineCheck,
  type ListenerOpener,
  type NetworkListeners,
  openOnAddress,
  startNetworkListeners,
} from './networks.ts'
import { readTls } from './start-errors.ts'

export interface StartOptions {
  readonly home: MirrorPaths
  readonly version: string
  readonly runtime: StatusReport['runtime']
  readonly logger: Logger
  /** Holds the variables for proxies, credentials and switches; `process.env` when absent. */
  readonly env?: Readonly<Record<string, string | undefined>>
  /** Holds the folder of the dashboard's files; that of this package when absent. */
  readonly pageFolder?: string
  /** Is present only for a mirror in a container. */
  readonly handoff?: HostHandoff | undefined
  /** Is called when another process has taken the store: this one must no longer write. */
  readonly onStoreLost?: () => void
  /** Is called when a command asks over the admin listener to end the mirror. */
  readonly onStopRequested?: () => void
  /** Runs the checks of `mirror doctor` on this machine; absent where that is not possible. */
  readonly runDoctor?: (() => Promise<DoctorReport>) | undefined
  /** Lists the clients of this machine that mirror configured; absent where this process cannot know them. */
  readonly listConfigured?: (() => Promise<readonly ConfiguredClient[]>) | undefined
  /** Is called when the addresses of the networks have changed; `endpoints` is up to date. */
  readonly onEndpointsChanged?: () => void
}

export interface RunningMirror {
  readonly endpoints: StatusReport['endpoints']
  /** Waits up to 30 s for pulls in progress, then ends. */
  close(): Promise<void>
}

const drainMs = 30_000
/** Limits the time that requests get to end when the start fails: a replaced mirror waits to run again. */
const failedDrainMs = 1000

/** Starts a mirror in this process. Throws a MirrorError for what the user can fix, and leaves nothing running then. */
export async function startMirror(config: Config, options: StartOptions): Promise<RunningMirror> {
  const { logger, home } = options
  const tls = readTls(config.tls)
  const { handoff, onStoreLost: onLost } = options
  const parts = await compose({
    config,
    paths: home,
    version: options.version,
    logger,
    env: options.env ?? process.env,
    lock: { instance: handoff?.instance, onLost },
  })
  const transfers = new TransferLog({ logger, clock: systemClock, savings: parts.activity.savings })
  const closing: ((graceMilliseconds: number) => Promise<void>)[] = []
  const close = async (graceMilliseconds = drainMs) => {
    await Promise.all(closing.map((end) => end(graceMilliseconds)))
    transfers.close()
    await parts.close()
  }
  try {
    const guard = createHostGuard(guardNames(config), (host) => parts.stats.recordRefusedHost(host))
    const { sending } = parts.blobs
    const { connections, activity } = parts
    const recording = { recent: activity.recent, clients: activity.clients }
    const named = new Set([...config.cache.listen, ...config.registry.listen].map(({ host }) => host))
    const listening = (host: string) => {
      // Addresses outside of the configuration are gateways of networks on this machine.
      const isNear = handoff !== undefined || isLoopback(host) || !named.has(host)
      return { tls, connections, logger, prepare: isNear ? parts.blobs.setCongestionControl : undefined }
    }

    const openCache = async (host: string, port: number): Promise<Listener> => {
      const trusted = isLoopback(host) || config.cache.shareCredentials
      const access = trusted ? 'credentialed' : 'anonymous'
      const handle = createHandler({
        registry: orUnavailable(parts.cache.then(({ cache }) => cache)),
        addressing: 'proxy',
        access,
        guard,
        stats: parts.stats,
        sending,
        defaultRegistry: config.defaultUpstream,
        transfers,
        ...recording,
        logger,
      })
      return listen({ ...listening(host), host, port }, handle)
    }
    const endpoints: StatusReport['endpoints'] = { cache: [], registry: [], admin: [], networks: {} }
    const cacheListeners = await listenAll(config.cache.listen, openCache, closing)
    endpoints.cache.push(...cacheListeners.map(({ url }) => url))

    const isFromHost = createHostCheck(options.env ?? process.env)
    const openRegistry = createRegistryOpeners(parts.registry, config, {
      guard,
      sending,
      transfers,
      ...recording,
      logger,
      listening,
      isFromHost,
    })
    const registryListeners = openRegistry ? await listenAll(config.registry.listen, openRegistry.open, closing) : []
    endpoints.registry.push(...registryListeners.map(({ url }) => url))

    const watched: { networks?: NetworkListeners | undefined } = {}
    const reporter = createReporter({
      ...options,
      parts,
      config,
      handoff,
      endpoints,
      listNetworks: () => watched.networks?.report() ?? {},
      knowsHost: isFromHost !== undefined,
    })
    const activityApi = createActivityApi(activity, {
      config,
      urls: [...endpoints.cache, ...endpoints.registry],
      listConfigured: options.listConfigured,
      createMachineCheck: () => createMachineCheck(Object.values(endpoints.networks), handoff !== undefined),
    })
    const api = orUnavailable(
      createServerAdminApi(parts, {
        status: () => reporter.status(),
        stop: options.onStopRequested ?? (() => {}),
        activity: { ...activityApi, ...createTraceApi({ parts, config, endpoints }, activityApi) },
        runDoctor: options.runDoctor,
        stateDir: home.stateDir,
        logger,
      }),
    )
    const { maxPages: maxListeners } = parts
    const events = new EventFeed({ sources: orUnavailable(reporter.openLiveSources()), maxListeners, logger })
    closing.push(async () => events.close())
    const token = await openAdminToken(home.tokenFile)
    const { idle } = config.cache.timeouts
    const handleAdmin = createAdminHandler({
      api,
      listTroubles: () => parts.ownTroubles.find(),
      guard,
      token,
      instance: handoff?.instance,
      page: await loadPage(options.pageFolder ?? getPageFolder()),
      events,
      idle,
      logger,
    })
    const adminListeners = await listenAll(
      config.admin.listen,
      (host, port) => listen({ host, port, connections, share: 'admin', logger }, handleAdmin),
      closing,
    )
    endpoints.admin.push(...adminListeners.map(({ url }) => url))

    for (const { host, url } of [...cacheListeners, ...registryListeners, ...adminListeners]) {
      // In a container every address is reachable, and the networks of the container decide who connects.
      if (!handoff && !isLoopback(host)) logger.warn({ url }, 'this address is reachable from other machines')
    }
    const openers = [
      { listeners: cacheListeners, open: openCache },
      ...(openRegistry ? [{ listeners: registryListeners, open: openRegistry.openOnNetwork }] : []),
    ]
    const networks = await watchNetworks(config, openers, logger, (urls) => {
      endpoints.networks = urls
      options.onEndpointsChanged?.()
    })
    watched.networks = networks
    if (networks) closing.push((grace) => networks.close(grace))
    await Promise.all([parts.cache, parts.registry?.opened])
    logger.info({ endpoints }, 'the mirror is up')
    return { endpoints, close: () => close() }
  } catch (error) {
    await close(failedDrainMs).catch(logFailure(logger, 'could not end after the failed start'))
    throw error
  }
}

function isLoopback(host: string): boolean {
  return isLoopbackAddress(host) || host === 'localhost'
}

/** Listens on each address; each address with port 0 gets a port of its own. */
async function listenAll(
  addresses: readonly ListenAddress[],
  open: (host: string, port: number) => Promise<Listener>,
  closing: ((graceMilliseconds: number) => Promise<void>)[],
): Promise<Listener[]> {
  const listeners: Listener[] = []
  for (const { host, port } of addresses) {
    const listener = await open(host, port)
    closing.push((grace) => listener.close(grace))
    listeners.push(listener)
  }
  return listeners
}

/** Listens on the gateways of the networks, on Linux only: elsewhere the engine runs in a virtual machine. */
async function watchNetworks(
  config: Config,
  openers: readonly ListenerOpener[],
  logger: Logger,
  onChange: (urls: Record<string, string>) => void,
): Promise<NetworkListeners | undefined> {
  const networks = resolveNetworkNames(config.networks, process.env)
  const first = openers[0]?.listeners[0]
  if (process.platform !== 'linux' || networks.length === 0 || !first) return undefined
  const endpoint = await findDockerEndpoint({ platform: process.platform, env: process.env, homedir: homedir() })
  // The gateways of a remote engine's networks are not on this machine.
  if (!endpoint || isRemoteEngine(endpoint)) return undefined
  return startNetworkListeners({
    docker: createDockerEngine(endpoint),
    networks,
    isAskedFor: !isDeepStrictEqual(config.networks, defaultConfig().networks),
    open: (address) => openOnAddress(address, openers),
    urlOf: (address) =>
      `${config.tls ? 'https' : 'http'}://${address.includes(':') ? `[${address}]` : address}:${first.port}`,
    onChange,
    logger,
  })
}

function guardNames(config: Config): string[] {
  const listening = [...config.cache.listen, ...config.admin.listen, ...config.registry.listen].map(({ host }) => host)
  return [
    ...config.allowedHosts,
    ...getMachineNames(),
    ...listening.filter((host) => host !== '0.0.0.0' && host !== '::'),
  ]
}

interface RegistryListening {
  /** Returns the options to listen on a host. */
  readonly listening: (host: string) => Omit<ListenOptions, 'host' | 'port'>
  readonly guard: HostGuard
  readonly sending: BlobSender
  readonly transfers: TransferLog
  readonly recent: RecentRequests
  readonly clients: SeenClients
  readonly logger: Logger
  /** Returns whether a connection comes from this machine; undefined where every address is this machine's own. */
  readonly isFromHost: ((connection: ConnectionEndpoints) => boolean) | undefined
}

/** Creates the functions that listen for pushes; undefined when the registry is switched off. */
function createRegistryOpeners(
  parts: RegistryParts | undefined,
  config: Config,
  { listening, isFromHost, ...options }: RegistryListening,
) {
  if (!parts) return undefined
  const { opened, authorize } = parts
  const { deletes, networks } = config.registry
  const opener = (mayWriteOn: (host: string) => PushOptions['mayWrite']) => (host: string, port: number) => {
    const push = { deletes, idle: config.cache.timeouts.idle, authorize, mayWrite: mayWriteOn(host) }
    const handle = createHandler({
      registry: orUnavailable(opened.then(({ registry }) => registry)),
      addressing: 'plain',
      access: 'anonymous',
      stats: undefined,
      push,
      defaultRegistry: undefined,
      ...options,
    })
    return listen({ ...listening(host), host, port }, handle)
  }
  const mayNetworksWrite = networks === 'write'
  return {
    /** Listens on an address of the configuration. */
    open: opener((host) => (mayNetworksWrite ? undefined : createWriteCheck(host, isFromHost))),
    /** Listens on the gateway address of a Docker network. */
    openOnNetwork: opener(() => (mayNetworksWrite ? undefined : () => false)),
  }
}

/**
 * Decides who may write at an address of the configuration while networks may only pull. A mirror in a container listens on all
 * addresses, and only its host may write. Engines in a virtual machine let containers reach the loopback of the host, where they
 * look like processes of the host: requests by a host name that only such containers use are refused, so that none writes by
 * mistake.
 */
function createWriteCheck(host: string, isFromHost: RegistryListening['isFromHost']): PushOptions['mayWrite'] {
  const check = isWildcard(host) ? isFromHost : undefined
  if (check === undefined && host !== 'localhost' && !isLoopbackAddress(host)) return undefined
  return (connection, asked) => !isHostAlias(asked ?? '') && (check?.(connection) ?? true)
}

function isWildcard(host: string): boolean {
  return host === '0.0.0.0' || host === '::'
}

/** Answers the requests that have waited for a part when it cannot be opened; then the start fails. */
function orUnavailable<T>(opening: Promise<T>): Promise<T> {
  const opened = opening.catch(() => {
    throw new OciError('UNAVAILABLE', 503, 'The mirror cannot start.')
  })
  // There may be no request.
  opened.catch(() => {})
  return opened
}
