import { createHash } from 'node:crypto'
import type { Duplex } from 'node:stream'
import { exitCode, MirrorError } from '../lib/errors.ts'
import type { Surroundings } from '../lib/process.ts'
import type { DockerEndpoint } from './endpoint.ts'

/**
 * A Docker engine, or podman, which implements the same API. Unless stated otherwise a call throws a DockerError for what the engine
 * refuses, and a MirrorError (exit 4) when the engine does not answer.
 */
export interface DockerEngine {
  readonly endpoint: DockerEndpoint
  /** The engine runs on another machine: it publishes ports there, and folders are that machine's. */
  readonly isRemote: boolean
  /** Returns whether the engine answers. Throws what keeps this process from asking, for example no file descriptor. */
  ping(): Promise<boolean>
  info(): Promise<DockerEngineInfo>
  /** Returns undefined when no engine answers within five seconds. */
  findInfo(): Promise<DockerEngineInfo | undefined>
  readonly containers: DockerContainers
  readonly images: DockerImages
  readonly networks: DockerNetworks
  readonly volumes: DockerVolumes
}

export interface DockerEngineInfo {
  /** `28.5.2` */
  readonly version: string
  /** `Docker Desktop`, `Debian GNU/Linux 12 (bookworm)` */
  readonly operatingSystem: string
  /** Host name of the machine that the engine runs on. */
  readonly hostName: string
  /** As images name it: `amd64`, `arm64`. */
  readonly architecture: string
  /** Operating system of the containers: `linux`, `windows`. */
  readonly os: string
  readonly imageStore: 'classic' | 'containerd'
  readonly isRootless: boolean
  readonly isPodman: boolean
  /** `json-file`, `journald` … */
  readonly logDriver: string
  /** Mirrors of Docker Hub that are in use now. */
  readonly mirrors: readonly string[]
  /** Registries, and networks in CIDR form, whose certificate the engine does not check. */
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
  /** Makes an image of a root file system, as a tar archive. */
  import(name: string, labels: Readonly<Record<string, string>>, archive: AsyncIterable<Uint8Array>): Promise<void>
  /** Builds an image from the Dockerfile in a tar archive. */
  build(name: string, labels: Readonly<Record<string, string>>, archive: AsyncIterable<Uint8Array>): Promise<void>
  /** One that is still in use, or not there, is left as it is. */
  remove(image: string): Promise<void>
}

export interface NetworkSpec {
  readonly name: string
  /** A bridge with an IPv6 subnet besides the IPv4 one that the engine picks; undefined for IPv4 alone. */
  readonly ipv6Subnet: string | undefined
  readonly options: Readonly<Record<string, string>>
}

export interface NetworkState {
  readonly id: string
  readonly name: string
  readonly driver: string
  readonly ipv6: boolean
  readonly options: Readonly<Record<string, string>>
  /** How many containers are on it. */
  readonly containers: number
}

export interface DockerNetworks {
  find(name: string): Promise<NetworkState | undefined>
  create(spec: NetworkSpec): Promise<void>
  /** `names`: what the network's containers call it. */
  connect(network: string, container: string, names: readonly string[]): Promise<void>
  disconnect(network: string, container: string): Promise<void>
  /**
   * Returns the gateway addresses, IPv4 and IPv6 literals, of the bridge networks with this name; undefined when the engine does
   * not answer. Throws what keeps this process from asking, for example no file descriptor.
   */
  gateways(name: string): Promise<string[] | undefined>
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
  /** Undefined when there is none of this name. */
  find(name: string): Promise<VolumeState | undefined>
  /** One that is there already stays as it is. */
  create(name: string, labels: Readonly<Record<string, string>>): Promise<void>
  /** One that is not there is fine; one that is in use is a DockerError. */
  remove(name: string): Promise<void>
}

/** What the engine refused, in its own words. */
export class DockerError extends Error {
  override name = 'DockerError'
  /** The status of the answer: 404 absent, 409 in conflict … */
  readonly status: number

  constructor(status: number, message: string, options?: { cause: unknown }) {
    super(message, options)
    this.status = status
  }
}

/** A container as it is to be made. */
export interface ContainerSpec {
  readonly name: string
  /** An image's id or name. */
  readonly image: string
  /** The image's own when not given. */
  readonly entrypoint: readonly string[] | undefined
  readonly command: readonly string[]
  readonly env: Readonly<Record<string, string>>
  /** `uid:gid` */
  readonly user: string
  readonly labels: Readonly<Record<string, string>>
  readonly ports: readonly PublishedPort[]
  /** The folder in the container that keeps what is written; nothing else can be written to but /tmp. */
  readonly data: { readonly at: string; readonly from: DataSource }
  /** Bytes. */
  readonly memory: number
  /** Restarted whenever it ends, until it is stopped. Otherwise it stays as it ended. */
  readonly restarts: boolean
  /** Run in the container now and then; undefined for none. */
  readonly healthCheck: readonly string[] | undefined
  /** Of the engine's log driver. */
  readonly logOptions: Readonly<Record<string, string>>
}

/** A TCP port of the container on 127.0.0.1 of the engine's host. */
export interface PublishedPort {
  readonly inside: number
  /** 0 = any free one. */
  readonly outside: number
}

export type DataSource = { readonly volume: string } | { readonly folder: string }

/** A container as it is. */
export interface ContainerState {
  readonly id: string
  readonly name: string
  readonly labels: Readonly<Record<string, string>>
  /** The image's id. */
  readonly image: string
  /** `uid:gid` */
  readonly user: string
  readonly running: boolean
  readonly restarting: boolean
  readonly exitCode: number
  /** ISO 8601: when it last ended; undefined for one that has not. */
  readonly finishedAt?: string
  /** The kernel killed it, because it needed more memory than it was given. */
  readonly outOfMemory?: boolean
  /** ISO 8601. */
  readonly startedAt: string
  readonly networks: readonly string[]
  readonly ports: readonly PublishedPort[]
}

/** Who has a port on which address. */
interface PublishingContainer {
  readonly name: string
  /** An IP literal; `0.0.0.0` and `::` are all of their kind. */
  readonly address: string
}

export interface LogRequest {
  /** How many of the last lines to begin with. */
  readonly lines: number
  /** Goes on with what comes, until the container ends or the signal aborts. */
  readonly follow: boolean
  readonly signal: AbortSignal
}

/** Containers by id or name. A name that is taken, a port that is, and whatever else the engine refuses is a DockerError. */
export interface DockerContainers {
  find(container: string): Promise<ContainerState | undefined>
  /** The running containers that publish this TCP port of the engine's host, once for each address. */
  findPublishing(port: number): Promise<PublishingContainer[]>
  /** Its id. */
  create(spec: ContainerSpec): Promise<string>
  start(container: string): Promise<void>
  /** Its id, networks and ports stay as they are. */
  rename(container: string, name: string): Promise<void>
  /** SIGTERM, and SIGKILL when that does not help within the time. */
  stop(container: string, seconds: number): Promise<void>
  /** With its anonymous volumes. One that is not there is fine. */
  remove(container: string): Promise<void>
  /** Unpacks a tar archive in a folder of a volume, whether or not it runs. */
  unpack(container: string, folder: string, archive: Buffer): Promise<void>
  /** What it writes to stdout and stderr, a line at a time. */
  logs(container: string, request: LogRequest): AsyncIterable<string>
  /**
   * Runs a program in a running container: the stream is its stdin and stdout. What it says on stderr is the stream's
   * error, a ExecError, once it has ended.
   */
  exec(container: string, command: readonly string[]): Promise<Duplex>
  /** Its exit code, once it has ended. */
  wait(container: string): Promise<number>
}

/**
 * Sees that each network is there: kind's own is made when it is absent, others are not ours to make. Throws a MirrorError
 * (exit 2) for one that is missing.
 */
export async function ensureNetworks(
  networks: DockerNetworks,
  names: readonly string[],
  env: Surroundings['env'],
): Promise<void> {
  const kind = kindNetworkName(env)
  for (const name of names) {
    if ((await networks.find(name)) !== undefined) continue
    if (name !== kind) throw missingNetworkError(name)
    try {
      await createKindNetwork(networks, name)
    } catch (error) {
      if (!(error instanceof DockerError)) throw error
      throw new MirrorError(`The network ${name} cannot be made: ${error.message}.`, {
        hints: [`docker network create ${name}   (says more)`],
        cause: error,
      })
    }
  }
}

function missingNetworkError(name: string): MirrorError {
  return new MirrorError(`There is no Docker network named ${name}, and it is not the mirror's to make.`, {
    exit: exitCode.usage,
    hints: [
      'docker network ls',
      `docker network create ${name}`,
      'mirror up again once it is there: nothing is restarted',
    ],
  })
}

/** The network kind would use: `kind`, or what this variable names. https://github.com/kubernetes-sigs/kind */
export function kindNetworkName(env: Readonly<Record<string, string | undefined>>): string {
  return env['KIND_EXPERIMENTAL_DOCKER_NETWORK'] || 'kind'
}

/** Networks by their real names: `kind` means the one that kind uses. */
export function networkNames(names: readonly string[], env: Readonly<Record<string, string | undefined>>): string[] {
  return [...new Set(names.map((name) => (name === 'kind' ? kindNetworkName(env) : name)))]
}

const maxAttempts = 5

/**
 * Makes kind's network as kind itself makes it (pkg/cluster/internal/providers/docker/network.go): masquerading, with the MTU
 * of the engine's own bridge and an IPv6 subnet that follows from the name; IPv4 alone where there is no IPv6. kind takes a
 * network of its name as it is, so one without IPv6 would stay so.
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
      // Somebody, kind perhaps, was quicker.
      if ((await networks.find(name)) !== undefined) return
      if (/IPv6/i.test(error.message) && !isOverlap(error))
        return networks.create({ name, ipv6Subnet: undefined, options })
      // podman masquerades without being told, and knows no such option.
      if (/unsupported .*option/i.test(error.message))
        return networks.create({ name, ipv6Subnet: computeKindSubnet(name, attempt), options: {} })
      if (!isOverlap(error) || attempt + 1 === maxAttempts) throw error
    }
  }
}

function isOverlap({ message }: DockerError): boolean {
  return /overlap/i.test(message)
}

/** An IPv6 subnet of fc00::/8 from the SHA-1 of the name and the number of the attempt, as kind computes it. */
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

/** What images call an architecture that Node or the kernel names: `x64` and `x86_64` are `amd64`. */
export function toImageArchitecture(name: string): string {
  return architectureNames[name] ?? name
}
