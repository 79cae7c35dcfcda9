import type { CheckResult } from '../admin/activity.ts'
import type { StatusReport } from '../admin/api.ts'
import type { FoundMirror } from '../admin/find-mirror.ts'
import type { ClientName, Machine } from '../clients/types.ts'
import type { Config } from '../config/config.ts'
import type { MirrorPaths } from '../config/paths.ts'
import type { CommandEnvironment } from '../lib/process.ts'
import { getCheck } from './checks.ts'

/** Holds what several checks need. Each promise is created once, and may reject. */
export interface DoctorContext {
  readonly surroundings: CommandEnvironment
  readonly machine: Machine
  readonly paths: MirrorPaths
  /** Holds the version of this command. */
  readonly version: string
  /** Resolves to the running mirror; to undefined when none runs. */
  readonly found: Promise<FoundMirror | undefined>
  /** Resolves to the status of the running mirror; to undefined when none runs or it does not answer. */
  readonly status: Promise<StatusReport | undefined>
  readonly config: Promise<Config>
  /** Sends a request to each upstream, once. */
  readonly probeUpstreams: () => Promise<readonly UpstreamProbe[]>
  /** Lists the clients that the user named; empty for all. */
  readonly clients: readonly ClientName[]
  /** Is true with `--pull`. */
  readonly pull: boolean
  /** Aborts at the deadline of the checks without a pull. */
  readonly signal: AbortSignal
  /** Aborts some time before, so that a silent upstream is named and does not make its check late. */
  readonly probeSignal: AbortSignal
}

/** Holds what one request to an upstream has shown. */
export interface UpstreamProbe {
  readonly host: string
  /** Explains why it got no response; absent when it got one. */
  readonly failure?: string
  /** Names the check that the failure belongs to; present with `failure`. */
  readonly fault?: 'reachable' | 'tls' | 'proxy'
  /** Holds what mends the failure where it is one of this machine. */
  readonly advice?: string
  readonly status?: number
  /** Is true for an upstream with plain HTTP. */
  readonly isPlain?: boolean
  /** Names the proxy through which it is asked; absent without one. */
  readonly proxy?: string
  /** Holds the time until the response, ms. */
  readonly ms?: number
  /** Holds how far this machine's clock is ahead of the upstream's, ms. */
  readonly skewMs?: number
  /** Holds the result of a request to the token service; absent without one. */
  readonly token?: { readonly realm: string; readonly failure?: string; readonly status?: number }
}

/** Holds a result without its group, which its id has. */
export type Outcome = Omit<CheckResult, 'group'>

export type Report = (outcome: Outcome) => void

/** Runs some checks that belong together, because they look at the same thing. */
export interface Task {
  /** Lists the checks; a task that is late or fails is reported as the first. */
  readonly ids: readonly string[]
  readonly subject?: string
  /** Sets its own limit, ms, for a task that waits for a pull. */
  readonly timeoutMs?: number
  /** Reports results as they come, so that a late task keeps those that it has. */
  run(report: Report): Promise<void>
}

/** Creates the result of a check that found nothing wrong. `saw`: what was seen, where it tells more than the check. */
export function toOk(id: string, saw: string = getCheck(id).what, subject?: string): Outcome {
  return { id, ...(subject !== undefined && { subject }), state: 'ok', saw }
}

/** Creates the result of a check that could not run. */
export function toSkipped(id: string, why: string, subject?: string): Outcome {
  return { id, ...(subject !== undefined && { subject }), state: 'skipped', saw: why }
}

export const notRunning = 'mirror is not running'
