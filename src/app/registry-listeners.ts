import type { Config } from '../config/config.ts'
import type { Logger } from '../lib/logger.ts'
import type { BlobSending } from '../server/pull.ts'
import { createHandler } from '../server/handler.ts'
import { isHostAlias, isLoopbackAddress, type HostGuard } from '../server/request-guard.ts'
import { listen, type Listener, type ListenOptions } from '../server/listen.ts'
import type { ConnectionEnds, PushOptions } from '../server/push.ts'
import type { TransferLog } from '../server/transfer.ts'
import type { RegistryParts } from './compose-registry.ts'

export interface RegistryListening {
  /** How to listen on a host. */
  readonly listening: (host: string) => Omit<ListenOptions, 'host' | 'port'>
  readonly guard: HostGuard
  readonly sending: BlobSending
  readonly transfers: TransferLog
  readonly logger: Logger
  /** Whether a connection comes from this machine itself; undefined where every address is this machine's own. */
  readonly isFromHost: ((connection: ConnectionEnds) => boolean) | undefined
}

export interface RegistryOpeners {
  /** Listens on an address of the configuration. */
  readonly open: (host: string, port: number) => Promise<Listener>
  /** Listens on the gateway address of a Docker network. */
  readonly openOnNetwork: (host: string, port: number) => Promise<Listener>
}

/** How to listen for pushes; undefined when the registry is switched off. */
export function registryOpener(
  parts: RegistryParts | undefined,
  config: Config,
  { guard, sending, transfers, logger, listening, isFromHost }: RegistryListening,
): RegistryOpeners | undefined {
  if (!parts) return undefined
  const { registry, authorize } = parts
  const { deletes, networks } = config.registry
  const opener = (mayWriteOn: (host: string) => PushOptions['mayWrite']) => (host: string, port: number) => {
    const push = { registry, deletes, idle: config.cache.timeouts.idle, authorize, mayWrite: mayWriteOn(host) }
    const handle = createHandler({
      registry,
      addressing: 'plain',
      access: 'anonymous',
      guard,
      stats: undefined,
      push,
      sending,
      defaultRegistry: undefined,
      transfers,
      logger,
    })
    return listen({ ...listening(host), host, port }, handle)
  }
  const mayNetworksWrite = networks === 'write'
  return {
    open: opener((host) => (mayNetworksWrite ? undefined : writersAt(host, isFromHost))),
    openOnNetwork: opener(() => (mayNetworksWrite ? undefined : () => false)),
  }
}

/**
 * Who may write at an address of the configuration while networks only pull. A mirror in a container listens on all addresses,
 * and only its host may write. Engines in a virtual machine let containers reach the loopback of the host, where they look like
 * processes of the host: a request by a name that only such containers use is refused, so that none writes by mistake.
 */
function writersAt(host: string, isFromHost: RegistryListening['isFromHost']): PushOptions['mayWrite'] {
  const check = isWildcard(host) ? isFromHost : undefined
  if (check === undefined && host !== 'localhost' && !isLoopbackAddress(host)) return undefined
  return (connection, asked) => !isHostAlias(asked ?? '') && (check?.(connection) ?? true)
}

function isWildcard(host: string): boolean {
  return host === '0.0.0.0' || host === '::'
}
