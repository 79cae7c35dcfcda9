import { existsSync, readFileSync } from 'node:fs'
import { readdir, readFile, rm } from 'node:fs/promises'
import { BlockList, isIP } from 'node:net'
import { endianness, type NetworkInterfaceInfo } from 'node:os'
import { basename, dirname, join } from 'node:path'
import type { Endpoints } from '../../admin/state.ts'
import { describeFailure, errnoOf } from '../../lib/errors.ts'
import type { Logger } from '../../lib/logger.ts'
import { isLoopbackAddress, ownInterfaces, plainAddress } from '../../lib/network.ts'
import { every } from '../../lib/time.ts'
import type { ConnectionClose } from '../../server/push.ts'
import { isOutOfDescriptors } from '../../server/respond.ts'
import { type ExportedCredential, readExportedCredentials } from '../../upstream/credentials.ts'
import { exportedFileNames, getExportFolder, vmEngineVariable } from './spec.ts'

/** What a mirror in a container is told about the world outside of it. */
export interface HostHandoff {
  /** What the container keeps when it is restarted. */
  readonly instance: string
  /** Where clients reach it; undefined as long as nobody has said so. */
  endpoints(): Promise<Endpoints | undefined>
  /** By registry: the credentials that were handed over. */
  credentials(): Promise<Record<string, ExportedCredential>>
  /** Removes what was handed to other instances, which do not come back. */
  removeOthers(): Promise<void>
}

/** Undefined for a mirror that is not in a container of ours. */
export function openHostHandoff(
  env: Readonly<Record<string, string | undefined>>,
  folderOf: (instance: string) => string = getExportFolder,
): HostHandoff | undefined {
  const instance = env['MIRROR_INSTANCE']
  if (!instance) return undefined
  const folder = folderOf(instance)
  return {
    instance,
    async endpoints() {
      try {
        return JSON.parse(await readFile(join(folder, exportedFileNames.endpoints), 'utf8')) as Endpoints
      } catch (error) {
        if (error instanceof SyntaxError || errnoOf(error) === 'ENOENT') return undefined
        throw error
      }
    },
    credentials: () => readExportedCredentials(join(folder, exportedFileNames.credentials), Date.now()),
    async removeOthers() {
      const others = (await listNames(dirname(folder))).filter((name) => name !== basename(folder))
      for (const name of others) await rm(join(dirname(folder), name), { recursive: true, force: true })
    },
  }
}

async function listNames(folder: string): Promise<string[]> {
  try {
    return await readdir(folder)
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return []
    throw error
  }
}

const pollMs = 1000

/**
 * Removes what was handed to the mirrors before this one, credentials and keys among it, as soon as this one is there to stay;
 * until then one of them may be put back. Returns how to stop looking.
 */
export function removePredecessorExports(handoff: HostHandoff, logger: Logger, everyMs = pollMs): () => void {
  const check = async () => {
    if ((await handoff.endpoints()) === undefined) return
    stop()
    await handoff.removeOthers()
  }
  const stop = every(everyMs, check, (error) =>
    logger.warn({ error: describeFailure(error) }, 'what was handed to the mirror before this one cannot be removed'),
  )
  return stop
}

/** Files that Docker and podman put into every container. */
const containerMarks = ['/.dockerenv', '/run/.containerenv']

/** Whether this process is in a container, of ours or of somebody else. */
export function isInContainer(env: Readonly<Record<string, string | undefined>>): boolean {
  return Boolean(env['MIRROR_INSTANCE']) || containerMarks.some((file) => existsSync(file))
}

/**
 * How a process in a container tells its host's connections from other containers'; undefined outside of containers. The check
 * throws the system's error when no file descriptors are left: a client asks again after that, but not after a refusal.
 */
export function createHostCheck(
  env: Readonly<Record<string, string | undefined>>,
  {
    readRoutes = () => readFileSync('/proc/net/route', 'utf8'),
    interfaces = ownInterfaces,
  }: { readRoutes?: () => string; interfaces?: () => readonly NetworkInterfaceInfo[] } = {},
): ((connection: ConnectionClose) => boolean) | undefined {
  if (!isInContainer(env)) return undefined
  const isEnclosed = env[vmEngineVariable] === '1'
  return (connection) =>
    isFromHost(connection, {
      gateways: parseDefaultGateways(undefinedIfUnknown(readRoutes) ?? ''),
      subnets: isEnclosed ? undefinedIfUnknown(() => listSubnets(interfaces())) : undefined,
    })
}

interface ContainerNetworking {
  /** Addresses of the default routes. */
  readonly gateways: readonly string[]
  /** The networks that the container is on, as CIDR; undefined where an address outside of them proves nothing. */
  readonly subnets: readonly string[] | undefined
}

/**
 * Whether a connection to a container comes from its host: by a published port, or straight from a process there. Engines
 * forward a published port by the container's default gateway, and from that address; other containers connect from their own.
 */
export function isFromHost(
  { remoteAddress, localAddress }: ConnectionClose,
  { gateways, subnets }: ContainerNetworking,
): boolean {
  const remote = plainAddress(remoteAddress ?? '')
  if (isIP(remote) === 0) return false
  // Rootless podman forwards from inside the container's own network namespace.
  if (isLoopbackAddress(remote) || remote === plainAddress(localAddress ?? '')) return true
  return gateways.includes(remote) || (subnets !== undefined && !isWithin(remote, subnets))
}

function isWithin(address: string, subnets: readonly string[]): boolean {
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

/** The IPv4 gateways of the default routes in a `/proc/net/route`. Its numbers are in the byte order of the machine. */
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

/** Undefined where the system does not tell: then nobody is known to be the host by it. */
function undefinedIfUnknown<T>(read: () => T): T | undefined {
  try {
    return read()
  } catch (error) {
    if (errnoOf(error) === undefined || isOutOfDescriptors(error)) throw error
    return undefined
  }
}
