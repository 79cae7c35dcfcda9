import { existsSync, readFileSync } from 'node:fs'
import { BlockList, isIP } from 'node:net'
import { endianness, type NetworkInterfaceInfo } from 'node:os'
import { type MirrorState, readState, volumeMarkerEngine } from '../../admin/state.ts'
import type { MirrorPaths } from '../../config/paths.ts'
import { type DockerEndpoint, engineHost, isRemoteEngine } from '../../docker/endpoint.ts'
import type { ContainerEngine } from '../../docker/engine.ts'
import { errnoOf, exitCode, MirrorError } from '../../lib/errors.ts'
import { isLoopbackAddress, ownInterfaces, plainAddress } from '../../lib/network.ts'
import type { Surroundings } from '../../lib/process.ts'
import type { ConnectionClose } from '../../server/push.ts'
import { isOutOfDescriptors } from '../../server/respond.ts'
import { vmEngineVariable, volumeName } from './spec.ts'

/** What a user should know of an engine whose network hears all that is said to it. */
export function clearTextWarnings({
  endpoint,
  isRemote: isElsewhere,
}: Pick<ContainerEngine, 'endpoint' | 'isRemote'>): string[] {
  if (!isElsewhere || endpoint.kind !== 'tcp' || endpoint.tlsFolder !== undefined) return []
  return [
    `the Docker engine at ${engineHost(endpoint)} is spoken to in the clear: whoever is on the way may use it, and reads what is handed over`,
  ]
}

/** Throws a MirrorError (exit 2) when a folder is asked for that would be another machine's. */
export function refuseFolderElsewhere(
  { endpoint, isRemote: isElsewhere }: Pick<ContainerEngine, 'endpoint' | 'isRemote'>,
  env: Surroundings['env'],
): void {
  if (!isElsewhere || !env['MIRROR_DATA']) return
  throw new MirrorError(
    `With the Docker engine at ${engineHost(endpoint)} there is no --data: the folder would be that machine's, and whose it is there is not known here.`,
    { exit: exitCode.usage, hints: [`leave --data out: the volume ${volumeName} of that engine keeps what is cached`] },
  )
}

/**
 * Throws a MirrorError (exit 2) when the mirror is on an engine of another machine than the one that is chosen now: a second one
 * would begin with nothing in it, and the first one would be forgotten. Names of this machine's own engines are not compared,
 * for one engine has several.
 */
export async function refuseOtherEngine(
  engine: Pick<ContainerEngine, 'endpoint' | 'isRemote'>,
  { stateFile, stateDir }: Pick<MirrorPaths, 'stateFile' | 'stateDir'>,
  { running, remembered }: { running: MirrorState | undefined; remembered: boolean },
): Promise<void> {
  // Asked for by its name, a container is made where Docker is now, whatever was there before.
  if (running === undefined && !remembered) return
  const noted = running
    ? running.container?.engine
    : ((await readState(stateFile))?.container?.engine ?? (await volumeMarkerEngine(stateDir)))
  if (noted === undefined || engineHost(noted) === engineHost(engine.endpoint)) return
  if (!engine.isRemote && !isRemoteEngine(noted)) return
  const what = running === undefined ? 'The mirror ran in a container the last time,' : 'The mirror runs in a container'
  throw new MirrorError(`${what} on ${engineHost(noted)}, and Docker is at ${engineHost(engine.endpoint)} now.`, {
    exit: exitCode.usage,
    hints: [
      `${choosing(noted)} mirror up   (there)`,
      running === undefined
        ? 'mirror up --runtime container   (another one, with nothing in it yet)'
        : 'mirror down   (ends that one)',
    ],
  })
}

function choosing(endpoint: DockerEndpoint): string {
  const tlsFolder = endpoint.kind === 'tcp' ? endpoint.tlsFolder : undefined
  const tls = tlsFolder === undefined ? '' : ` DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH=${tlsFolder}`
  return `DOCKER_HOST=${engineHost(endpoint)}${tls}`
}

/** Why an engine is looked for at all that cannot be asked. */
export function whereItRan(error: unknown): unknown {
  if (!(error instanceof MirrorError)) return error
  const { message, exit, hints } = error
  return new MirrorError(`The mirror ran in a container the last time. ${message}`, { exit, hints, cause: error })
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
export function hostCheck(
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
      gateways: defaultGateways(unlessUnknown(readRoutes) ?? ''),
      subnets: isEnclosed ? unlessUnknown(() => subnetsOf(interfaces())) : undefined,
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
    list.addSubnet(network, Number(prefix), familyOf(network))
  }
  return list.check(address, familyOf(address))
}

function familyOf(address: string): 'ipv4' | 'ipv6' {
  return isIP(address) === 6 ? 'ipv6' : 'ipv4'
}

function subnetsOf(interfaces: readonly NetworkInterfaceInfo[]): string[] {
  return interfaces.flatMap(({ cidr }) => cidr ?? [])
}

/** The IPv4 gateways of the default routes in a `/proc/net/route`. Its numbers are in the byte order of the machine. */
export function defaultGateways(routes: string): string[] {
  return routes
    .split('\n')
    .slice(1)
    .map((line) => line.trim().split(/\s+/))
    .filter(([, destination, gateway, , , , , mask]) => destination === none && mask === none && gateway !== none)
    .map(([, , gateway = '']) => toAddress(gateway))
}

const none = '00000000'

function toAddress(hex: string): string {
  const numbers = [...Buffer.from(hex, 'hex')]
  return (endianness() === 'LE' ? numbers.toReversed() : numbers).join('.')
}

/** Undefined where the system does not tell: then nobody is known to be the host by it. */
function unlessUnknown<T>(read: () => T): T | undefined {
  try {
    return read()
  } catch (error) {
    if (errnoOf(error) === undefined || isOutOfDescriptors(error)) throw error
    return undefined
  }
}
