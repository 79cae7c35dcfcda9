import type { StatusReport } from '../server/admin-api.ts'

/** Where a mirror answers. */
export type Endpoints = StatusReport['endpoints']

/** Where the server lives: in a process of this machine, or in a container. */
export type RuntimeKind = StatusReport['runtime']

/** What a running mirror has written down about itself, so that other commands find it. */
export interface MirrorState {
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
}

/** A mirror that was started and answers. */
export interface StartedMirror {
  pid: number
  endpoints: Endpoints
}
