import type { Config } from '../config/config.ts'
import type { Logger } from '../lib/logger.ts'
import { createBasicAuth } from '../server/basic-auth.ts'
import type { BlobSending } from '../server/blobs.ts'
import { createHandler } from '../server/handle.ts'
import type { HostGuard } from '../server/host-guard.ts'
import { listen, type Listener, type ListenOptions } from '../server/listen.ts'
import type { TransferLog } from '../server/transfer-log.ts'
import type { RegistryParts } from './compose-registry.ts'

export interface RegistryListening {
  /** How to listen on a host. */
  readonly listening: (host: string) => Omit<ListenOptions, 'host' | 'port'>
  readonly guard: HostGuard
  readonly sending: BlobSending
  readonly transfers: TransferLog
  readonly logger: Logger
}

/** How to listen for pushes; undefined when the registry is switched off. Throws MirrorError for a bad password file. */
export async function registryOpener(
  parts: RegistryParts | undefined,
  config: Config,
  { guard, sending, transfers, logger, listening }: RegistryListening,
): Promise<((host: string, port: number) => Promise<Listener>) | undefined> {
  if (!parts) return undefined
  const { registry } = parts
  const { deletes, auth } = config.registry
  const authorize = auth && (await createBasicAuth(auth.htpasswd))
  const push = { registry, deletes, idle: config.cache.timeouts.idle, authorize }
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
  return (host, port) => listen({ ...listening(host), host, port }, handle)
}
