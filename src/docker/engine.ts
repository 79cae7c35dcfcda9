import { createHash } from 'node:crypto'
import type { Duplex } from 'node:stream'
import { exitCode, MirrorError } from '../lib/errors.ts'
import type { CommandEnvironment } from '../lib/process.ts'
import type { DockerEndpoint } from './endpoint.ts'

/**
 * Operates a Docker engine, or podman, which implements the same API. Unless stated otherwise a call throws a DockerError for what
 * the engine refuses, and a MirrorError (exit 4) when the engine does not answer.
 */
export interface DockerEngine {
  readonly endpoint: DockerEndpoint
  /** Is true when the engine runs on another machine: it publishes ports there, and folders are that machine's. */
  readonly isRemote: boolean
  /** Returns whether the engine answers. Throws what keeps this process from asking, for example no file descriptor. */
  ping(): Promise<boolean>
  getInfo(): Promise<DockerEngineInfo>
  /** Returns undefined when no engine answers within five seconds. */
  findInfo(): Promise<DockerEngineInfo | undefined>
  readonly containers: DockerContainers
  readonly images: DockerImages
  readonly networks: DockerNetworks
  readonly volumes: DockerVolumes
}

export interface DockerEngineInfo {
  /** Holds the version: `28.5.2`. */
  readonly version: string
  /** Names the system: `Docker Desktop`, `Debian GNU/Linux 12 (bookworm)`. */
  readonly operatingSystem: string
  /** Holds the host name of the machine that the engine runs on. */
  readonly hostName: string
  /** Names the architecture as images do: `amd64`, `arm64`. */
  readonly architecture: string
  /** Names the operating system of the containers: `linux`, `windows`. */
  readonly os: string
  readonly imageStore: 'classic' | 'containerd'
  readonly isRootless: boolean
  readonly isPodman: boolean
  /** Names the default log driver: `json-file`, `journald` … */
  readonly logDriver: string
  /** Holds the mirrors of Docker Hub that are in use now. */
  readonly mirrors: readonly string[]
  /** Holds the registries, and networks in CIDR form, whose certificate the engine does not check. */
  readonly insecure: readonly string[]
}

export interface ImageState {
  readonly id: string
  readonly architecture: string
  readonly os: string
  readonly labels: Readonly<Record<string, string>>
  readonly hasEntrypoint: boolean
}

export interface DockerImages {
  find(image: string): Promise<ImageState | undefined>
  /** Throws a DockerError when the pull fails, and the signal's reason when it aborts. */
  pull(image: string, signal: AbortSignal): Promise<void>
  /**
   * Pulls an image without credentials and removes it again. Resolves to the engine's reason when the pull fails or takes longer
   * than `timeoutMs`.
   */
  tryPull(image: string, timeoutMs: number): Promise<{ readonly failed: string | undefined }>
  /** Creates an image from a tar archive of a root file system. */
  import(name: string, labels: Readonly<Record<string, string>>, archive: AsyncIterable<Uint8Array>): Promise<void>
  /** Builds an image from the Dockerfile in a tar archive. */
  build(name: string, labels: Readonly<Record<string, string>>, archive: AsyncIterable<Uint8Array>): Promise<void>
  /** Does nothing when the image is in use or does not exist. */
  remove(image: string): Promise<void>
}

export interface NetworkSpec {
  readonly name: string
  /** Adds an IPv6 subnet to the IPv4 one that the engine chooses; undefined for IPv4 only. */
  readonly ipv6Subnet: string | undefined
  readonly options: Readonly<Record<string, string>>
}

export interface NetworkState {
  readonly id: string
  readonly name: string
  readonly driver: string
  readonly ipv6: boolean
  readonly options: Readonly<Record<string, string>>
  /** Counts the connected containers. */
  readonly containers: number
}

export interface DockerNetworks {
  find(name: string): Promise<NetworkState | undefined>
  create(spec: NetworkSpec): Promise<void>
  /** Connects a container; `names`: its aliases on the network. */
  connect(network: string, container: string, names: readonly string[]): Promise<void>
  disconnect(network: string, container: string): Promise<void>
  /**
   * Returns the gateway addresses, IPv4 and IPv6 literals, of the bridge networks with this name; undefined when the engine does
   * not answer. Throws what keeps this process from asking, for example no file descriptor.
   */
  findGateways(name: string): Promise<string[] | undefined>
  /**
   * Calls back once at first, and whenever networks may have changed: a network or the engine came or went. Waits for an absent
   * engine. Ends when the signal aborts.
   */
  watch(onChange: () => void, signal: AbortSignal): Promise<void>
}

export interface VolumeState {
  readonly labels: Readonly<Record<string, string>>
}

export interface DockerVolumes {
  /** Returns undefined when no volume has this name. */
  find(name: string): Promise<VolumeState | undefined>
  /** Creates a volume unless it exists. */
  create(name: string, labels: Readonly<Record<string, string>>): Promise<void>
  /** Removes a volume if it exists. Throws a DockerError while it is in use. */
  remove(name: string): Promise<void>
}

/** Reports a refusal of the engine, with the engine's message. */
export class DockerError extends Error {
  override name = 'DockerError'
  /** Holds the HTTP status: 404 not found, 409 conflict … */
  readonly status: number

  constructor(status: number, message: string, options?: { cause: unknown }) {
    super(message, options)
    this.status = status
  }
}

/** Holds the settings of a container to create. */
export interface ContainerSpec {
  readonly name: string
  /** Holds the id or name of the image. */
  readonly image: string
  /** Is undefined for the image's own. */
  readonly entrypoint: readonly string[] | undefined
  readonly command: readonly string[]
  readonly env: Readonly<Record<string, string>>
  /** Identifies the user as `uid:gid`. */
  readonly user: string
  readonly labels: Readonly<Record<string, string>>
  readonly ports: readonly PublishedPort[]
  /** Holds the folder of the container that keeps data; the container can write nowhere else but in /tmp. */
  readonly data: { readonly at: string; readonly from: DataSource }
  /** Limits the memory, bytes. */
  readonly memory: number
  /** Makes the engine restart the container whenever it ends, until it is stopped. */
  readonly restarts: boolean
  /** Holds the command of the health check; undefined for none. */
  readonly healthCheck: readonly string[] | undefined
  /** Holds the options of the engine's log driver. */
  readonly logOptions: Readonly<Record<string, string>>
}

/** Publishes a TCP port of the container on 127.0.0.1 of the engine's host. */
export interface PublishedPort {
  readonly inside: number
  /** Is 0 for any free port. */
  readonly outside: number
}

export type DataSource = { readonly volume: string } | { readonly folder: string }

/** Describes the state of an existing container. */
export interface ContainerState {
  readonly id: string
  readonly name: string
  readonly labels: Readonly<Record<string, string>>
  /** Holds the id of the image. */
  readonly image: string
  /** Identifies the user as `uid:gid`. */
  readonly user: string
  readonly running: boolean
  readonly restarting: boolean
  readonly exitCode: number
  /** Gives the time of the last end (ISO 8601); absent for a container that has not ended. */
  readonly finishedAt?: string
  /** Is true when the kernel killed it because it exceeded its memory limit. */
  readonly outOfMemory?: boolean
  /** Gives the time in ISO 8601. */
  readonly startedAt: string
  readonly networks: readonly string[]
  readonly ports: readonly PublishedPort[]
}

/** Names a container that publishes a port. */
interface PublishingContainer {
  readonly name: string
  /** Is an IP literal; `0.0.0.0` and `::` stand for all addresses. */
  readonly address: string
}

export interface LogRequest {
  /** Sets the number of last lines to start with. */
  readonly lines: number
  /** Continues with new lines until the container ends or the signal aborts. */
  readonly follow: boolean
  readonly signal: AbortSignal
}

/** Operates containers by id or name. Refusals, for example a taken name or port, are DockerErrors. */
export interface DockerContainers {
  find(container: string): Promise<ContainerState | undefined>
  /** Finds the running containers that publish this TCP port of the engine's host, one result for each address. */
  findPublishing(port: number): Promise<PublishingContainer[]>
  /** Creates a container; returns its id. */
  create(spec: ContainerSpec): Promise<string>
  start(container: string): Promise<void>
  /** Renames a container; id, networks and ports stay. */
  rename(container: string, name: string): Promise<void>
  /** Sends SIGTERM, and SIGKILL after this time. */
  stop(container: string, seconds: number): Promise<void>
  /** Removes a container with its anonymous volumes if it exists. */
  remove(container: string): Promise<void>
  /** Unpacks a tar archive in a folder of a volume; the container need not run. */
  unpack(container: string, folder: string, archive: Buffer): Promise<void>
  /** Reads its stdout and stderr line by line. */
  readLogs(container: string, request: LogRequest): AsyncIterable<string>
  /**
   * Runs a program in a running container. The stream is its stdin and stdout; output on stderr becomes the error of the stream,
   * an ExecError, at the end.
   */
  exec(container: string, command: readonly string[]): Promise<Duplex>
  /** Waits for the end of the container; returns the exit code. */
  wait(container: string): Promise<number>
}

/**
 * Creates kind's network when it is absent. Throws a MirrorError (exit 2) for any other network that does not exist, because the
 * mirror does not create those.
 */
export async function ensureNetworks(
  networks: DockerNetworks,
  names: readonly string[],
  env: CommandEnvironment['env'],
): Promise<void> {
  const kind = getKindNetworkName(env)
  for (const name of names) {
    if ((await networks.find(name)) !== undefined) continue
    if (name !== kind) throw createMissingNetworkError(name)
    try {
      await createKindNetwork(networks, name)
    } catch (error) {
      if (!(error instanceof DockerError)) throw error
      throw new MirrorError(`The network ${name} cannot be created: ${error.message}.`, {
        hints: [`docker network create ${name}   (shows the reason)`],
        cause: error,
      })
    }
  }
}

function createMissingNetworkError(name: string): MirrorError {
  return new MirrorError(`There is no Docker network named ${name}. The mirror creates only kind's network.`, {
    exit: exitCode.usage,
    hints: [
      'docker network ls',
      `docker network create ${name}`,
      'Run mirror up again afterwards; nothing is restarted',
    ],
  })
}

/** Returns the network that kind uses: `kind`, or the value of this variable. https://github.com/kubernetes-sigs/kind */
export function getKindNetworkName(env: Readonly<Record<string, string | undefined>>): string {
  return env['KIND_EXPERIMENTAL_DOCKER_NETWORK'] || 'kind'
}

/** Resolves `kind` to the network that kind uses. */
export function resolveNetworkNames(
  names: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
): string[] {
  return [...new Set(names.map((name) => (name === 'kind' ? getKindNetworkName(env) : name)))]
}

const maxAttempts = 5

/**
 * Creates kind's network as kind does (pkg/cluster/internal/providers/docker/network.go): with masquerading, the MTU of the
 * engine's default bridge and an IPv6 subnet computed from the name; with IPv4 only where there is no IPv6. kind uses an existing
 * network unchanged, so a network without IPv6 would stay so.
 */
export async function createKindNetwork(networks: DockerNetworks, name: string): Promise<void> {
  const mtu = (await networks.find('bridge'))?.options['com.docker.network.driver.mtu']
  const options = {
    'com.docker.network.bridge.enable_ip_masquerade': 'true',
    ...(mtu !== undefined && Number(mtu) > 0 && { 'com.docker.network.driver.mtu': mtu }),
  }
  for (let attempt = 0; ; attempt++) {
    try {
      return await networks.create({ name, ipv6Subnet: computeKindSubnet(name, attempt), options })
    } catch (error) {
      if (!(error instanceof DockerError)) throw error
      // Accepts a network that another program, for example kind, created meanwhile.
      if ((await networks.find(name)) !== undefined) return
      if (/IPv6/i.test(error.message) && !isOverlap(error))
        return networks.create({ name, ipv6Subnet: undefined, options })
      // Omits the option for podman, which masquerades by default and rejects it.
      if (/unsupported .*option/i.test(error.message))
        return networks.create({ name, ipv6Subnet: computeKindSubnet(name, attempt), options: {} })
      if (!isOverlap(error) || attempt + 1 === maxAttempts) throw error
    }
  }
}

function isOverlap({ message }: DockerError): boolean {
  return /overlap/i.test(message)
}

/** Computes an IPv6 subnet of fc00::/8 from the SHA-1 of the name and the number of the attempt, like kind. */
export function computeKindSubnet(name: string, attempt: number): string {
  const number = Buffer.alloc(4)
  number.writeInt32LE(attempt)
  const hash = createHash('sha1').update(name).update(number).digest()
  const groups = [2, 4, 6].map((at) => hash.readUInt16BE(at).toString(16))
  return `fc00:${groups.join(':')}::/64`
}

const architectureNames: Readonly<Record<string, string>> = {
  x64: 'amd64',
  x86_64: 'amd64',
  aarch64: 'arm64',
  armv7l: 'arm',
  armhf: 'arm',
  ia32: '386',
  i686: '386',
  ppc64: 'ppc64le',
}

/** Translates an architecture of Node or the kernel to the name in images: `x64` and `x86_64` to `amd64`. */
export function toImageArchitecture(name: string): string {
  return architectureNames[name] ?? name
}

/** Holds the text that a program in a container wrote to stderr. */
export class ExecError extends Error {
  override name = 'ExecError'
}
