import { engineProblem, networkProblem, type NetworkReport } from '../admin/api.ts'
import type { Endpoints } from '../admin/state.ts'
import type { Config } from '../config/config.ts'
import type { DockerEngine } from '../docker/engine.ts'
import { describeFailure } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { getNetworkInterfaces, isLoopbackAddress } from '../lib/network.ts'
import { runLater, logFailure } from '../lib/time.ts'
import { type Listener, ListenError } from '../server/listen.ts'
import { isWithin } from './container/handoff.ts'

interface NetworkListenersOptions {
  readonly docker: Pick<DockerEngine, 'ping' | 'networks'>
  /** Lists the names of the networks whose containers reach the mirror. */
  readonly networks: readonly string[]
  /** Is true when the user has named them, so that an engine that does not answer is reported. */
  readonly isAskedFor: boolean
  /** Listens on a gateway address; undefined when the mirror listens on all addresses already. Throws ListenError. */
  readonly open: (address: string) => Promise<Listener | undefined>
  /** Returns the mirror's URL at an address. */
  readonly urlOf: (address: string) => string
  /** Receives the URL on each network that has one, on every change. */
  readonly onChange: (endpoints: Record<string, string>) => void
  readonly logger: Logger
}

/** Holds the listeners on the gateways of networks. */
export type NetworkListeners = ReturnType<typeof startNetworkListeners>

/** Sets the time until an absent address or a taken port is tried again. */
const retryMs = 2000

/**
 * Listens on the gateway address of each network while the network exists. Containers cannot reach the host's loopback, but they
 * reach the gateway of their own network.
 */
export function startNetworkListeners(options: NetworkListenersOptions) {
  const { docker, networks, logger } = options
  const stop = new AbortController()
  /** Holds the open listeners by address. */
  const open = new Map<string, { readonly network: string; readonly listener: Listener | undefined }>()
  const warned = new Set<string>()
  /** Records, by network, why the mirror did not listen there at the last check. */
  let troubles = new Map<string, NetworkReport>(
    networks.map((network) => [network, { state: 'waiting', reason: engineProblem }]),
  )
  let isEngineKnown = false
  let stopRetry: (() => void) | undefined
  let work: Promise<void> = Promise.resolve()

  /** Checks one after the other, so that two never open the same address. */
  const check = () => {
    work = work.then(reconcile).catch((error: unknown) => {
      logger.error({ error: describeFailure(error) }, 'looking at the networks failed')
      checkLater()
    })
  }

  async function reconcile(): Promise<void> {
    stopRetry?.()
    if (stop.signal.aborted) return
    const wanted = new Map<string, string>()
    const absent: string[] = []
    let isUnknown = false
    for (const network of networks) {
      const gateways = await docker.networks.findGateways(network)
      isUnknown ||= gateways === undefined
      for (const address of gateways ?? []) wanted.set(address, network)
      if (gateways === undefined || gateways.length === 0) absent.push(network)
    }
    const answers = absent.length < networks.length || (await docker.ping())
    isEngineKnown ||= answers
    const reason = answers ? networkProblem : engineProblem
    troubles = new Map(absent.map((network) => [network, { state: 'waiting', reason }]))
    for (const [address, { network, listener }] of open) {
      if (wanted.get(address) === network) continue
      open.delete(address)
      await listener?.close(0)
      logger.info({ network, address }, 'the network is gone')
    }
    for (const [address, network] of wanted) if (!open.has(address)) await tryOpen(address, network)
    // No event reports that an engine answers again.
    if (isUnknown && isEngineKnown) checkLater()
    options.onChange(endpoints())
  }

  async function tryOpen(address: string, network: string): Promise<void> {
    try {
      open.set(address, { network, listener: await options.open(address) })
      warned.delete(address)
      logger.info({ network, url: options.urlOf(address) }, 'containers of this network reach the mirror here')
    } catch (error) {
      if (!(error instanceof ListenError)) throw error
      // The address is not on this machine (yet): the network is being created, or its engine runs in a VM.
      if (error.errno !== 'EADDRNOTAVAIL' && !warned.has(address))
        logger.warn({ network, reason: error.message }, 'cannot listen for the containers of this network')
      warned.add(address)
      troubles.set(network, { state: error.errno === 'EADDRNOTAVAIL' ? 'waiting' : 'failed', reason: error.message })
      checkLater()
    }
  }

  function checkLater(): void {
    stopRetry?.()
    if (stop.signal.aborted) return
    stopRetry = runLater(retryMs, check, logFailure(logger, 'looking at the networks failed'))
  }

  function endpoints(): Record<string, string> {
    const urls: Record<string, string> = {}
    for (const [address, { network }] of open) urls[network] ??= options.urlOf(address)
    return urls
  }

  const watching = docker.networks
    .watch(check, stop.signal)
    .catch((error: unknown) => logger.error({ error: describeFailure(error) }, 'the networks are no longer watched'))
  return {
    /** Returns the state of each network, by name; empty when no engine has answered so far and no network was asked for. */
    report(): Record<string, NetworkReport> {
      if (!isEngineKnown && !options.isAskedFor) return {}
      const urls = endpoints()
      return Object.fromEntries(
        networks.map((network): [string, NetworkReport] => {
          const url = urls[network]
          const trouble = troubles.get(network)
          return [network, { state: 'listening', ...trouble, ...(url !== undefined && { url }) }]
        }),
      )
    },
    /** Stops watching and closes each listener, which waits so long for its requests. */
    async close(graceMilliseconds: number): Promise<void> {
      stop.abort()
      stopRetry?.()
      await watching
      await work
      await Promise.all([...open.values()].map(async ({ listener }) => listener?.close(graceMilliseconds)))
    },
  }
}

/** Describes the listeners of the configuration, and a function to listen on another address. */
export interface ListenerOpener {
  readonly listeners: readonly Listener[]
  readonly open: (address: string, port: number) => Promise<Listener>
}

/** Opens all listeners on one more address, with the same ports; undefined when all listen there already. */
export async function openOnAddress(
  address: string,
  openers: readonly ListenerOpener[],
): Promise<Listener | undefined> {
  const opened: Listener[] = []
  const close = async (grace: number) => void (await Promise.all(opened.map((listener) => listener.close(grace))))
  try {
    for (const { listeners, open } of openers) {
      const [first] = listeners
      const isOpen = listeners.some(
        ({ host, port }) => host === '0.0.0.0' || host === '::' || (host === address && port === first?.port),
      )
      if (first && !isOpen) opened.push(await open(address, first.port))
    }
  } catch (error) {
    await close(0)
    throw error
  }
  return opened[0] && { ...opened[0], close }
}

/**
 * Returns the rights of Docker networks' containers in the registry. At an address in `registry.listen` they may write, whatever
 * `registry.networks` says; all addresses there include theirs. A mirror in a container listens on all addresses and tells its host
 * from other containers.
 */
export function getNetworkRights(
  setting: Config['registry']['networks'],
  { registry, networks }: Pick<Endpoints, 'registry' | 'networks'>,
  isInContainer: boolean,
): 'read' | 'write' {
  const open = new Set([...(isInContainer ? [] : ['0.0.0.0', '[::]']), ...Object.values(networks).map(getHostname)])
  return setting === 'write' || registry.some((url) => open.has(getHostname(url))) ? 'write' : 'read'
}

function getHostname(url: string): string {
  return new URL(url).hostname
}

/**
 * Creates the check whether an address is of this machine, or of a container on it: on the loopback, an own address, or in a network
 * on whose gateway the mirror listens. For a mirror in a container, each network that it is in counts. `gatewayUrls`: the mirror's
 * URLs on the gateways.
 */
export function createMachineCheck(
  gatewayUrls: readonly string[],
  isInContainer: boolean,
): (address: string) => boolean {
  const interfaces = getNetworkInterfaces()
  const own = new Set(interfaces.map(({ address }) => address))
  const gateways = new Set(gatewayUrls.map((url) => new URL(url).hostname.replace(/^\[|\]$/g, '')))
  const subnets = interfaces
    .filter(({ address }) => isInContainer || gateways.has(address))
    .flatMap(({ cidr }) => cidr ?? [])
  return (address) => isLoopbackAddress(address) || own.has(address) || isWithin(address, subnets)
}
