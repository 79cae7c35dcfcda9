import { stat } from 'node:fs/promises'
import { uptime } from 'node:os'
import { join } from 'node:path'
import type { MirrorPaths, Surroundings } from '../config/paths.ts'
import { DockerError } from '../docker/engine.ts'
import { errnoOf, MirrorError } from '../lib/errors.ts'
import { bootOf, readBootId } from '../lib/process.ts'
import type { ContainerPlace, MirrorState, RuntimeKind } from '../runtime/runtime.ts'
import { readState } from './state.ts'

/** A mirror that was not stopped and runs no more. */
export interface DeadMirror {
  readonly runtime: RuntimeKind
  readonly version: string
  /** Of a process. */
  readonly pid?: number
  /** The name of its container. */
  readonly container?: string
  /** ISO 8601. */
  readonly startedAt: string
  /** ISO 8601: the last sign of life of a process, to about ten seconds; when a container ended. */
  readonly lastSeen?: string
  /**
   * `died`: nobody stopped it. `reboot`: the machine has been started since. `exited`, `out-of-memory`: what its container did.
   * `removed`: its container is gone. `no-engine`: the Docker engine does not answer.
   */
  readonly reason: 'died' | 'reboot' | 'exited' | 'out-of-memory' | 'removed' | 'no-engine'
  readonly exitCode?: number
  /** Whether `mirror logs` shows what it said. */
  readonly hasLog: boolean
}

/** What became of the mirror that was noted down, when it does not run; undefined when it was stopped, or never started. */
export async function findDead(paths: MirrorPaths, surroundings: Surroundings): Promise<DeadMirror | undefined> {
  const state = await readState(paths.stateFile)
  if (state === undefined) return undefined
  return state.container ? deadContainer(state, state.container, surroundings) : deadProcess(state, paths)
}

async function deadProcess(state: MirrorState, paths: MirrorPaths): Promise<DeadMirror> {
  const { runtime, version, pid, startedAt, logFile } = state
  const lastSeen = await lastSign([join(paths.stateDir, 'stats.json'), paths.stateFile, logFile])
  return {
    runtime,
    version,
    pid,
    startedAt,
    ...(lastSeen !== undefined && { lastSeen: new Date(Math.max(lastSeen, Date.parse(startedAt))).toISOString() }),
    reason: (await wasRebooted(state)) ? 'reboot' : 'died',
    hasLog: logFile !== undefined,
  }
}

const clockSlackMs = 60_000

/** Whether the machine was started after the mirror was. */
async function wasRebooted({ processIdentity, startedAt }: MirrorState): Promise<boolean> {
  const [then, now] = [bootOf(processIdentity), await readBootId()]
  if (then !== undefined && now !== undefined) return then !== now
  return Date.now() - uptime() * 1000 - clockSlackMs > Date.parse(startedAt)
}

/** When one of the files that a running mirror writes was last written; wall clock ms. */
async function lastSign(files: readonly (string | undefined)[]): Promise<number | undefined> {
  const times: number[] = []
  for (const file of files) {
    if (file === undefined) continue
    try {
      times.push((await stat(file)).mtimeMs)
    } catch (error) {
      if (errnoOf(error) === undefined) throw error
    }
  }
  return times.length === 0 ? undefined : Math.max(...times)
}

async function deadContainer(
  { runtime, version, startedAt }: MirrorState,
  { id, name, engine }: ContainerPlace,
  surroundings: Surroundings,
): Promise<DeadMirror> {
  const common = { runtime, version, container: name, startedAt }
  try {
    const { openEngine } = await import('../docker/dockerode-engine.ts')
    const { containers } = await openEngine(surroundings, engine)
    const found = await containers.find(id)
    if (found === undefined) return { ...common, reason: 'removed', hasLog: false }
    const { exitCode, finishedAt, outOfMemory } = found
    return {
      ...common,
      ...(finishedAt !== undefined && { lastSeen: finishedAt }),
      reason: outOfMemory === true ? 'out-of-memory' : 'exited',
      exitCode,
      hasLog: true,
    }
  } catch (error) {
    if (!(error instanceof MirrorError) && !(error instanceof DockerError)) throw error
    return { ...common, reason: 'no-engine', hasLog: false }
  }
}
