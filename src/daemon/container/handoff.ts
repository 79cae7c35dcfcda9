import { existsSync, readFileSync } from 'node:fs'
import { readdir, readFile, rm } from 'node:fs/promises'
import { BlockList, isIP } from 'node:net'
import { endianness, type NetworkInterfaceInfo } from 'node:os'
import { basename, dirname, join } from 'node:path'
import type { Endpoints } from '../../admin/state.ts'
import { describeFailure, getErrno } from '../../lib/errors.ts'
import type { Logger } from '../../lib/logger.ts'
import { isLoopbackAddress, getNetworkInterfaces, normalizeAddress } from '../../lib/network.ts'
import { runEvery } from '../../lib/time.ts'
import type { ConnectionEndpoints } from '../../server/push.ts'
import { isOutOfDescriptors } from '../../server/respond.ts'
import { type ExportedCredential, readExportedCredentials } from '../../upstream/credentials.ts'
import { exportedFileNames, getExportFolder, vmEngineVariable } from './spec.ts'

export type HostHandoff = NonNullable<ReturnType<typeof openHostHandoff>>

/** Opens the files that the host exports to a mirror in a container; undefined outside of one that `mirror up` created. */
export function openHostHandoff(
  env: Readonly<Record<string, string | undefined>>,
  getFolder: (instance: string) => string = getExportFolder,
) {
  const instance = env['MIRROR_INSTANCE']
  if (!instance) return undefined
  const folder = getFolder(instance)
  return {
    /** Identifies the mirror, also after a restart of the container. */
    instance,
    /** Reads the mirror's addresses for clients; undefined until the host has sent them. */
    async readEndpoints(): Promise<Endpoints | undefined> {
      try {
        return JSON.parse(await readFile(join(folder, exportedFileNames.endpoints), 'utf8')) as Endpoints
      } catch (error) {
        if (error instanceof SyntaxError || getErrno(error) === 'ENOENT') return undefined
        throw error
      }
    },
    /** Reads the exported credentials by registry. */
    readCredentials: (): Promise<Record<string, ExportedCredential>> =>
      readExportedCredentials(join(folder, exportedFileNames.credentials), Date.now()),
    /** Removes the exports of other instances, which do not come back. */
    async removeOthers(): Promise<void> {
      const others = (await listNames(dirname(folder))).filter((name) => name !== basename(folder))
      for (const name of others) await rm(join(dirname(folder), name), { recursive: true, force: true })
    },
  }
}

async function listNames(folder: string): Promise<string[]> {
  try {
    return await readdir(folder)
  } catch (error) {
    if (getErrno(error) === 'ENOENT') return []
    throw error
  }
}

const pollMs = 1000

/**
 * Removes the exports of earlier instances, with their credentials and keys, once this mirror has its addresses; until then one
 * of them may be restored. Returns a function that stops the polling.
 */
export function removePredecessorExports(handoff: HostHandoff, logger: Logger, everyMs = pollMs): () => void {
  const check = async () => {
    if ((await handoff.readEndpoints()) === undefined) return
    stop()
    await handoff.removeOthers()
  }
  const stop = runEvery(everyMs, check, (error) =>
    logger.warn({ error: describeFailure(error) }, 'could not remove the exports of the mirror before this one'),
  )
  return stop
}

/** Lists files that Docker and podman create in every container. */
const containerMarkerFiles = ['/.dockerenv', '/run/.containerenv']

/** Returns whether this process runs in a container, created by `mirror up` or by others. */
export function isInContainer(env: Readonly<Record<string, string | undefined>>): boolean {
  return Boolean(env['MIRROR_INSTANCE']) || containerMarkerFiles.some((file) => existsSync(file))
}

/**
 * Creates a check whether a connection comes from the host of this container; undefined outside of containers. The check throws
 * the system's error when no file descriptors are left, because clients retry after that, but not after a refusal.
 * @internal
 */
export function createHostCheck(
  env: Readonly<Record<string, string | undefined>>,
  {
    readRoutes = () => readFileSync('/proc/net/route', 'utf8'),
    interfaces = getNetworkInterfaces,
  }: { readRoutes?: () => string; interfaces?: () => readonly NetworkInterfaceInfo[] } = {},
): ((connection: ConnectionEndpoints) => boolean) | undefined {
  if (!isInContainer(env)) return undefined
  const isEnclosed = env[vmEngineVariable] === '1'
  return (connection) =>
    isFromHost(connection, {
      gateways: parseDefaultGateways(ignoreUnknown(readRoutes) ?? ''),
      subnets: isEnclosed ? ignoreUnknown(() => listSubnets(interfaces())) : undefined,
    })
}

interface ContainerNetworking {
  /** Holds the gateways of the default routes. */
  readonly gateways: readonly string[]
  /** Holds the networks of the container in CIDR form; undefined where an address outside of them proves nothing. */
  readonly subnets: readonly string[] | undefined
}

/**
 * Returns whether a connection to a container comes from its host, by a published port or directly. Engines forward a published
 * port through the container's default gateway, and from its address; other containers connect from their own.
 * @internal
 */
export function isFromHost(
  { remoteAddress, localAddress }: ConnectionEndpoints,
  { gateways, subnets }: ContainerNetworking,
): boolean {
  const remote = normalizeAddress(remoteAddress ?? '')
  if (isIP(remote) === 0) return false
  // Accepts own addresses, because rootless podman forwards from inside the container's network namespace.
  if (isLoopbackAddress(remote) || remote === normalizeAddress(localAddress ?? '')) return true
  return gateways.includes(remote) || (subnets !== undefined && !isWithin(remote, subnets))
}

/** Returns whether an IP address is in one of the networks, which are in CIDR form. */
export function isWithin(address: string, subnets: readonly string[]): boolean {
  const list = new BlockList()
  for (const subnet of subnets) {
    const [network = '', prefix] = subnet.split('/')
    list.addSubnet(network, Number(prefix), getFamily(network))
  }
  return list.check(address, getFamily(address))
}

function getFamily(address: string): 'ipv4' | 'ipv6' {
  return isIP(address) === 6 ? 'ipv6' : 'ipv4'
}

function listSubnets(interfaces: readonly NetworkInterfaceInfo[]): string[] {
  return interfaces.flatMap(({ cidr }) => cidr ?? [])
}

/** Parses the IPv4 gateways of the default routes in a `/proc/net/route`, whose numbers have the byte order of the machine. */
export function parseDefaultGateways(routes: string): string[] {
  return routes
    .split('\n')
    .slice(1)
    .map((line) => line.trim().split(/\s+/))
    .filter(
      ([, destination, gateway, , , , , mask]) =>
        destination === zeroAddress && mask === zeroAddress && gateway !== zeroAddress,
    )
    .map(([, , gateway = '']) => toAddress(gateway))
}

const zeroAddress = '00000000'

function toAddress(hex: string): string {
  const numbers = [...Buffer.from(hex, 'hex')]
  return (endianness() === 'LE' ? numbers.toReversed() : numbers).join('.')
}

/** Returns undefined where the system does not tell: then no connection counts as the host's by it. */
function ignoreUnknown<T>(read: () => T): T | undefined {
  try {
    return read()
  } catch (error) {
    if (getErrno(error) === undefined || isOutOfDescriptors(error)) throw error
    return undefined
  }
}
