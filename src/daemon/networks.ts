import { engineProblem, networkProblem, type NetworkReport } from '../admin/api.ts'
import type { Endpoints } from '../admin/state.ts'
import type { Config } from '../config/config.ts'
import type { DockerEngine } from '../docker/engine.ts'
import { describeFailure } from '../lib/errors.ts'
import type { Logger } from '../lib/logger.ts'
import { later, logFailure } from '../lib/time.ts'
import { type Listener, ListenError } from '../server/listen.ts'

interface NetworkListenersOptions {
  readonly docker: Pick<DockerEngine, 'ping' | 'networks'>
  /** Names of the networks whose containers shall reach us. */
  readonly networks: readonly string[]
  /** The user has named them: an engine that does not answer is worth a word. */
  readonly isAskedFor: boolean
  /** Listens on a gateway address; undefined when something that listens on all addresses does already. Throws ListenError. */
  readonly open: (address: string) => Promise<Listener | undefined>
  /** The URL that reaches us at an address. */
  readonly urlOf: (address: string) => string
  /** Hears of every change: the URL to use on each network that has one. */
  readonly onChange: (endpoints: Record<string, string>) => void
  readonly logger: Logger
}

export interface NetworkListeners {
  /** How it is with each network, by name; none where no engine has answered so far and nobody has asked for a network. */
  report(): Record<string, NetworkReport>
  close(graceMilliseconds: number): Promise<void>
}

/** How soon an address that is not there yet, or a port that is taken, is tried again. */
const retryMs = 2000

/**
 * Listens on the gateway address of each network as soon as the network exists, and no longer than that. Containers cannot
 * reach the host's loopback; the gateway of their own network they can.
 */
export function startNetworkListeners(options: NetworkListenersOptions): NetworkListeners {
  const { docker, networks, logger } = options
  const stop = new AbortController()
  /** By address. */
  const open = new Map<string, { readonly network: string; readonly listener: Listener | undefined }>()
  const complained = new Set<string>()
  /** By network: why nobody listens there, as of the last look. */
  let troubles = new Map<string, NetworkReport>(
    networks.map((network) => [network, { state: 'waiting', reason: engineProblem }]),
  )
  let isEngineKnown = false
  let stopRetry: (() => void) | undefined
  let work: Promise<void> = Promise.resolve()

  /** One look after the other, so that two never open the same address. */
  const look = () => {
    work = work.then(reconcile).catch((error: unknown) => {
      logger.error({ error: describeFailure(error) }, 'looking at the networks failed')
      lookLater()
    })
  }

  async function reconcile(): Promise<void> {
    stopRetry?.()
    if (stop.signal.aborted) return
    const wanted = new Map<string, string>()
    const absent: string[] = []
    let isUnsaid = false
    for (const network of networks) {
      const gateways = await docker.networks.gateways(network)
      isUnsaid ||= gateways === undefined
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
    // No event tells that an engine which failed for a moment answers again.
    if (isUnsaid && isEngineKnown) lookLater()
    options.onChange(endpoints())
  }

  async function tryOpen(address: string, network: string): Promise<void> {
    try {
      open.set(address, { network, listener: await options.open(address) })
      complained.delete(address)
      logger.info({ network, url: options.urlOf(address) }, 'containers of this network reach the mirror here')
    } catch (error) {
      if (!(error instanceof ListenError)) throw error
      // Not (yet) an address of this machine: the network is just being made, or its engine lives in a VM.
      if (error.errno !== 'EADDRNOTAVAIL' && !complained.has(address))
        logger.warn({ network, reason: error.message }, 'cannot listen for the containers of this network')
      complained.add(address)
      troubles.set(network, { state: error.errno === 'EADDRNOTAVAIL' ? 'waiting' : 'failed', reason: error.message })
      lookLater()
    }
  }

  function lookLater(): void {
    stopRetry?.()
    if (stop.signal.aborted) return
    stopRetry = later(retryMs, look, logFailure(logger, 'looking at the networks failed'))
  }

  function endpoints(): Record<string, string> {
    const urls: Record<string, string> = {}
    for (const [address, { network }] of open) urls[network] ??= options.urlOf(address)
    return urls
  }

  const watching = docker.networks
    .watch(look, stop.signal)
    .catch((error: unknown) => logger.error({ error: describeFailure(error) }, 'the networks are no longer watched'))
  return {
    report() {
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
    async close(graceMilliseconds) {
      stop.abort()
      stopRetry?.()
      await watching
      await work
      await Promise.all([...open.values()].map(async ({ listener }) => listener?.close(graceMilliseconds)))
    },
  }
}

/** Who listens on the addresses of the configuration, and how to listen on another one. */
export interface ListenerOpener {
  readonly listeners: readonly Listener[]
  readonly open: (address: string, port: number) => Promise<Listener>
}

/** Everything that listens, on one more address with the same ports; undefined when all of it does already. */
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
 * What containers of Docker networks may do in the registry. At an address that `registry.listen` names they may write, whatever
 * `registry.networks` says, and with all addresses there, too; but a mirror that is in a container itself has all addresses, and
 * tells its host from other containers.
 */
export function networkRights(
  setting: Config['registry']['networks'],
  { registry, networks }: Pick<Endpoints, 'registry' | 'networks'>,
  isInContainer: boolean,
): 'read' | 'write' {
  const open = new Set([...(isInContainer ? [] : ['0.0.0.0', '[::]']), ...Object.values(networks).map(hostnameOf)])
  return setting === 'write' || registry.some((url) => open.has(hostnameOf(url))) ? 'write' : 'read'
}

function hostnameOf(url: string): string {
  return new URL(url).hostname
}
