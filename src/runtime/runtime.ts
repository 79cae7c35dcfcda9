import type { StatusReport } from '../admin/api.ts'
import type { DockerEndpoint } from '../docker/endpoint.ts'

/** Where a mirror answers. */
export type Endpoints = StatusReport['endpoints']

/** Where the server lives: in a process of this machine, or in a container. */
export type RuntimeKind = StatusReport['runtime']

/** What a running mirror, or who has put it into a container, has written down, so that other commands find it. */
export interface MirrorState {
  /** 0 for one in a container. */
  pid: number
  /** Tells this process from a later one with the same number; undefined where the platform does not say. */
  processIdentity: string | undefined
  version: string
  runtime: RuntimeKind
  /** ISO 8601. */
  startedAt: string
  /** By top-level part of the configuration, see `configHashes`. */
  configHashes: Record<string, string>
  endpoints: Endpoints
  /** Undefined when the log goes elsewhere, to a terminal or a container's log. */
  logFile: string | undefined
  /** What a process was started with; undefined for one in a container. */
  served?: ServedConfig | undefined
  /** Undefined for a process. */
  container?: ContainerPlace | undefined
}

/** What it takes to start a mirror again as it was. */
export interface ServedConfig {
  /** What mirror.yaml would say, see `renderConfig`. */
  config: Record<string, unknown>
  dataDir: string
}

/** The container that a mirror lives in. */
export interface ContainerPlace {
  id: string
  name: string
  /** Which mirror it is; the same when the container is restarted. Undefined where nobody has noted it. */
  instance: string | undefined
  /** The volume with its data; undefined when that is a folder of this machine. */
  volume: string | undefined
  /** Registries whose credentials were handed over. */
  credentials: string[]
  /** ISO 8601: when that was done last. */
  handedOverAt: string
  /** Whose container it is; undefined where nobody has noted it. */
  engine?: DockerEndpoint | undefined
  /** That engine is another machine's, and so are the mirror's addresses: it is spoken to through the engine. */
  elsewhere?: { readonly adminPort: number } | undefined
}

/** A mirror that was started and answers. */
export interface StartedMirror {
  pid: number
  endpoints: Endpoints
}
