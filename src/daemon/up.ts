import { adminClientOf, remoteEngine } from '../admin/access.ts'
import { type Endpoints, findReachable, type MirrorState } from '../admin/state.ts'
import { changedParts, type Config, configHashes } from '../config/config.ts'
import { loadConfig } from '../config/load.ts'
import { mirrorPaths, type MirrorPaths } from '../config/paths.ts'
import { networkNames } from '../docker/engine.ts'
import { MirrorError } from '../lib/errors.ts'
import type { Surroundings } from '../lib/process.ts'
import type { Clock } from '../lib/time.ts'
import { isInContainer } from './container/handoff.ts'
import { checkDescriptorLimit } from './limits.ts'
import { networkRights } from './networks.ts'
import type { ServeRequest } from './serve.ts'
import { startProcess } from './spawn.ts'
import { explainStartFailure } from './start-errors.ts'
import { prepareRollback, replaceWithRollback, type Rollback } from './stop.ts'

interface UpRequest {
  /** With the flags in its `env`, as the variables they stand for. */
  surroundings: Surroundings
  version: string
  /** bin/run.js */
  program: string
  clock: Clock
  signal: AbortSignal
}

/** What `up` has to do, and with what. */
export interface UpPlan {
  action: 'start' | 'replace' | 'nothing'
  /** What the running one has, and the one that is wanted has not. */
  dropped: DroppedParts
  /** Why it is to be replaced: `runtime`, `version`, `unreachable`, or parts of the configuration. */
  changed: string[]
  running: MirrorState | undefined
  /** Where the running one answers now. */
  endpoints: Endpoints | undefined
  paths: MirrorPaths
  config: Config
}

export interface UpReport {
  /** `connected`: a container joined or left networks, which are `changed`. */
  outcome: 'started' | 'replaced' | 'connected' | 'already-up'
  changed: string[]
  /** Undefined for one in a container. */
  pid?: number
  /** The name of its container. */
  container?: string
  /** `ssh://me@there`: the Docker engine of another machine that it is on; its addresses are that machine's. */
  engine?: string
  version: string
  endpoints: Endpoints
  /** What containers of Docker networks may do in the registry. */
  registryNetworks?: 'read' | 'write'
  /** What it has no longer. */
  dropped: DroppedParts
  /** Where clients that were told of the one before reach nobody now. */
  moved: MovedAddress[]
}

/** So often, and so many times, another mirror that is starting is looked for. */
const lookEveryMs = 100
const looksForOther = 10

/**
 * Compares what is configured with what runs. Throws a MirrorError (exit 2) for a bad configuration, a file of it that a mirror
 * could not start with, or a limit on open files that is too low, and touches nothing.
 */
export async function planUp(request: Pick<UpRequest, 'surroundings' | 'version'>): Promise<UpPlan> {
  const plan = await compare(request)
  if (plan.action === 'nothing') return plan
  // The server has the limit of this process.
  checkDescriptorLimit()
  const { checkNamedFiles } = await import('./start-errors.ts')
  await checkNamedFiles(plan.config, request.surroundings.env)
  return plan
}

async function compare({ surroundings, version }: Pick<UpRequest, 'surroundings' | 'version'>): Promise<UpPlan> {
  const paths = mirrorPaths(surroundings)
  const config = await loadConfig({ ...surroundings, paths })
  const running = await findReachable(paths.stateFile)
  const dropped = {
    networks: droppedNetworks(running, networkNames(config.networks, surroundings.env)),
    credentials: [],
  }
  const plan = { paths, config, running, changed: [], endpoints: undefined, dropped }
  if (running === undefined) return { ...plan, action: 'start' }
  if (running.container) return { ...plan, action: 'replace', changed: ['runtime'] }
  const changed = changedParts(running.configHashes, configHashes(config, paths.dataDir))
  if (running.version !== version) changed.unshift('version')
  if (changed.length > 0) return { ...plan, action: 'replace', changed }
  const endpoints = await answering(running, paths)
  return endpoints === undefined
    ? { ...plan, action: 'replace', changed: ['unreachable'] }
    : { ...plan, action: 'nothing', endpoints }
}

/**
 * Has the configured mirror running in the background: starts it, replaces one that differs, or leaves it be. Throws a
 * MirrorError when it does not start; then the one before runs again.
 */
export async function upMirror(request: UpRequest, plan: UpPlan): Promise<UpReport> {
  const { paths, clock } = { ...plan, ...request }
  const { version, surroundings, program, signal } = request
  if (plan.action === 'nothing')
    return {
      outcome: 'already-up',
      changed: [],
      pid: plan.running!.pid!,
      version,
      endpoints: plan.endpoints!,
      registryNetworks: rightsIn(plan, plan.endpoints!, surroundings),
      dropped: nothingDropped,
      moved: [],
    }
  const back = plan.action === 'replace' ? await prepareRollback(plan.running!, { ...request, paths }) : undefined
  const started = await replaceWithRollback(back, signal, async () => {
    try {
      return await startProcess({ program, paths, env: surroundings.env, signal })
    } catch (error) {
      // Another `up` may have been quicker; then there is a mirror, and it may be the one that was wanted.
      const again = error instanceof MirrorError && !signal.aborted ? await planOnceUp(request, clock) : undefined
      if (again) return again
      throw await explainStartFailure(error, plan.config)
    }
  })
  if ('action' in started) return upMirror(request, started)
  const { pid, endpoints } = started
  return {
    outcome: plan.action === 'replace' ? 'replaced' : 'started',
    changed: plan.changed,
    pid,
    version,
    endpoints,
    registryNetworks: rightsIn(plan, endpoints, surroundings),
    dropped: plan.dropped,
    moved: movedAddresses(toldBefore(plan.running), endpoints, {
      before: plan.running && remoteEngine(plan.running),
    }),
  }
}

function rightsIn({ config }: UpPlan, endpoints: Endpoints, { env }: Surroundings): 'read' | 'write' {
  return networkRights(config.registry.networks, endpoints, isInContainer(env))
}

/** A process finds its networks only after it is up, and at the same addresses as the process before. */
function toldBefore(running: MirrorState | undefined): Endpoints | undefined {
  return running && (running.container ? running.endpoints : { ...running.endpoints, networks: {} })
}

/** It has the store and the ports a moment before it says that it is up. */
async function planOnceUp(request: UpRequest, clock: Clock): Promise<UpPlan | undefined> {
  for (let look = 0; look < looksForOther; look++) {
    if (look > 0) await clock.sleep(lookEveryMs)
    const plan = await planUp(request)
    if (plan.action === 'nothing') return plan
  }
  return undefined
}

async function answering(running: MirrorState, paths: MirrorPaths): Promise<Endpoints | undefined> {
  try {
    return (await adminClientOf(running, paths).status()).endpoints
  } catch (error) {
    if (error instanceof MirrorError) return undefined
    throw error
  }
}

/** An address that clients may have been told, and what it is now; undefined when nobody answers there any more. */
export interface MovedAddress {
  /** `cache`, `registry`, or a network's name. */
  readonly of: string
  readonly from: string
  /** Whose address that is, where it is another machine's: the engine of that mirror. */
  readonly on?: string
  readonly to: string | undefined
}

/** The addresses of a mirror that its successor does not have: clients that were told have to be configured again. */
export function movedAddresses(
  before: Endpoints | undefined,
  now: Endpoints,
  machines: { readonly before?: string | undefined; readonly now?: string | undefined } = {},
): MovedAddress[] {
  if (before === undefined) return []
  // Whoever was told is on the machine that it has left.
  if (machines.before !== machines.now) return allOf(before, machines.before)
  const networks = Object.entries(before.networks).flatMap(([network, url]) =>
    url === now.networks[network] ? [] : [{ of: network, from: url, to: now.networks[network] }],
  )
  return [...gone('cache', before.cache, now.cache), ...gone('registry', before.registry, now.registry), ...networks]
}

function allOf({ cache, registry, networks }: Endpoints, on: string | undefined): MovedAddress[] {
  const left = (of: string) => (from: string) => ({ of, from, to: undefined, ...(on !== undefined && { on }) })
  const inNetworks = Object.entries(networks).map(([network, url]) => left(network)(url))
  return [...cache.map(left('cache')), ...registry.map(left('registry')), ...inNetworks]
}

function gone(of: string, from: readonly string[], to: readonly string[]): MovedAddress[] {
  return from.filter((url) => !to.includes(url)).map((url) => ({ of, from: url, to: to[0] }))
}

/** What a mirror that ran before had, by a flag or an older configuration, and the one that is wanted now has not. */
export interface DroppedParts {
  /** Docker networks whose containers reach it no longer. */
  readonly networks: readonly string[]
  /** Registries whose credentials are no longer handed to its container. */
  readonly credentials: readonly string[]
}

export const nothingDropped: DroppedParts = { networks: [], credentials: [] }

/** The networks, by their real names, that the running mirror serves or looks for, without those that are wanted now. */
export function droppedNetworks(running: MirrorState | undefined, wanted: readonly string[]): string[] {
  if (running === undefined) return []
  const configured = running.served?.config['networks']
  const looked = Array.isArray(configured) ? configured.filter((name) => typeof name === 'string') : []
  // Where a name stands for another one, only the addresses know.
  const served = new Set([...Object.keys(running.endpoints.networks), ...looked.filter((name) => name !== 'kind')])
  return [...served].filter((name) => !wanted.includes(name))
}

interface ServeInPlaceRequest extends ServeRequest {
  /** `serveMirror`: the caller loads the server, because other commands never need it. */
  serve: (request: ServeRequest) => Promise<void>
  /** Undefined where no mirror runs. */
  back: Rollback | undefined
  /** Ends the attempt until the server hears signals itself. */
  signal: AbortSignal
  /** Hears that it does. */
  onServing: () => void
}

/** Serves in this process as `serveMirror` does, in place of a mirror that runs, which comes back when this one cannot start. */
export async function serveInPlace(request: ServeInPlaceRequest): Promise<void> {
  const { back, signal, onServing } = request
  const serving = await replaceWithRollback(back, signal, () => {
    onServing()
    return untilReady(request)
  })
  await serving.ended
}

/** In an object: the promise itself would be waited for. */
function untilReady(request: ServeInPlaceRequest): Promise<{ ended: Promise<void> }> {
  return new Promise((resolve, reject) => {
    const ended = request.serve({
      ...request,
      onReady(endpoints) {
        resolve({ ended })
        request.onReady?.(endpoints)
      },
    })
    ended.catch(reject)
  })
}
