import type { Duplex } from 'node:stream'

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
  readonly data: { readonly at: string; readonly from: DataPlace }
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

export type DataPlace = { readonly volume: string } | { readonly folder: string }

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
export interface PublishingContainer {
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
  publishing(port: number): Promise<PublishingContainer[]>
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
   * error, a ProgramError, once it has ended.
   */
  converse(container: string, command: readonly string[]): Promise<Duplex>
  /** Its exit code, once it has ended. */
  wait(container: string): Promise<number>
}
