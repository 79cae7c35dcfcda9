import type { DockerContainers } from '../docker/engine.ts'
import type { DockerEndpoint } from '../docker/endpoint.ts'

/** A Docker engine (or podman, which speaks its language), as far as a mirror in a container needs one. */
export interface ContainerEngine {
  readonly endpoint: DockerEndpoint
  /** It is another machine's: ports are published there, and folders are that machine's. */
  readonly isElsewhere: boolean
  /** Throws a MirrorError (exit 4) when no engine answers, or it does not let us in. */
  info(): Promise<EngineInfo>
  readonly containers: DockerContainers
  readonly images: DockerImages
  readonly networks: DockerNetworks
  readonly volumes: DockerVolumes
}

export interface EngineInfo {
  readonly version: string
  /** As images name it: `amd64`, `arm64`. */
  readonly architecture: string
  /** `linux`, `windows`: of the containers. */
  readonly os: string
  readonly rootless: boolean
  /** The engine's operating system in its own words: `Docker Desktop`, `Debian GNU/Linux 12 (bookworm)`. */
  readonly system?: string | undefined
  /** `json-file`, `journald` … */
  readonly logDriver: string
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
  /** Throws a DockerError when it cannot be had, and the signal's reason when that aborts. */
  pull(image: string, signal: AbortSignal): Promise<void>
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
