import { stat } from 'node:fs/promises'
import { isDeepStrictEqual } from 'node:util'
import { createClientForState, getRemoteEngine } from '../admin/access.ts'
import { type Endpoints, findReachableMirror, type MirrorState } from '../admin/state.ts'
import { listChangedParts, type Config, hashConfig, toConfigDocument } from '../config/config.ts'
import { loadConfig } from '../config/load.ts'
import { mirrorPaths, type MirrorPaths } from '../config/paths.ts'
import { resolveNetworkNames } from '../docker/engine.ts'
import { MirrorError } from '../lib/errors.ts'
import { ignoreMissing } from '../lib/fs.ts'
import { isObject } from '../lib/json.ts'
import { type CommandEnvironment, quoteShellWord } from '../lib/process.ts'
import type { Clock } from '../lib/time.ts'
import { isInContainer } from './container/handoff.ts'
import { checkDescriptorLimit } from './limits.ts'
import { getNetworkRights } from './networks.ts'
import type { ServeRequest } from './serve.ts'
import { startProcess } from './spawn.ts'
import { explainStartFailure } from './start-errors.ts'
import { prepareRollback, replaceWithRollback, type Rollback } from './stop.ts'

interface UpRequest {
  /** Holds the environment; its `env` has the flags as variables. */
  surroundings: CommandEnvironment
  version: string
  /** bin/run.js */
  program: string
  clock: Clock
  signal: AbortSignal
}

/** Holds the steps of `up`, and the data for them. */
export interface UpPlan {
  action: 'start' | 'replace' | 'nothing'
  /** Lists the parts of the running mirror that the configured one does not have. */
  dropped: DroppedParts
  /** Lists the reasons to replace it: `runtime`, `version`, `unreachable`, or parts of the configuration. */
  changed: string[]
  /** Lists the same reasons by the keys of mirror.yaml, for messages: `cache.listen` instead of `cache`. */
  changedKeys: string[]
  /** Lists the flags of the running mirror's start without which the configuration differs. */
  omitted: OmittedFlag[]
  running: MirrorState | undefined
  /** Lists the addresses of the running mirror; undefined when it does not answer. */
  endpoints: Endpoints | undefined
  paths: MirrorPaths
  config: Config
}

/** Describes a flag that another start had, and this one does not have. */
export interface OmittedFlag {
  /** `--cache-port` */
  readonly name: string
  /** `--cache-port 7055` */
  readonly text: string
  /** Names the key of mirror.yaml that does the same for every start; undefined when there is none. */
  readonly key: string | undefined
}

export interface UpReport {
  /** `connected`: a container joined or left networks, which are `changed`. */
  outcome: 'started' | 'replaced' | 'connected' | 'already-up'
  changed: string[]
  /** Is undefined for one in a container. */
  pid?: number
  /** Names its container. */
  container?: string
  /** `ssh://me@there`: its Docker engine on another machine; the addresses are that machine's. */
  engine?: string
  version: string
  endpoints: Endpoints
  /** Rights of Docker networks' containers in the registry. */
  registryNetworks?: 'read' | 'write'
  /** Lists the parts that it no longer has. */
  dropped: DroppedParts
  /** Lists the addresses of the earlier mirror that nothing answers at now. */
  moved: MovedAddress[]
}

/** Sets the interval and number of polls for another mirror that is starting. */
const pollMs = 100
const maxPolls = 10

/**
 * Compares the configuration with the running mirror and changes nothing. Throws a MirrorError (exit 2) for a bad configuration, an
 * unusable file in it, or a limit on open files that is too low.
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
  const running = await findReachableMirror(paths.stateFile)
  const dropped = {
    networks: findDroppedNetworks(running, resolveNetworkNames(config.networks, surroundings.env)),
    credentials: [],
  }
  const plan = { paths, config, running, changed: [], changedKeys: [], omitted: [], endpoints: undefined, dropped }
  if (running === undefined) return { ...plan, action: 'start' }
  if (running.container) return { ...plan, action: 'replace', changed: ['runtime'], changedKeys: ['runtime'] }
  const changed = listChangedParts(running.configHashes, hashConfig(config, paths.dataDir))
  if (running.version !== version) changed.unshift('version')
  if (changed.length > 0) {
    const changedKeys = toKeys(changed, running, config)
    const omitted = await findOmittedFlags(running, config, paths, surroundings.env)
    return { ...plan, action: 'replace', changed, changedKeys, omitted }
  }
  const endpoints = await findReachableEndpoints(running, paths)
  return endpoints === undefined
    ? { ...plan, action: 'replace', changed: ['unreachable'], changedKeys: ['unreachable'] }
    : { ...plan, action: 'nothing', endpoints }
}

/** Names the changed keys within each part; a part as a whole where the running mirror does not tell, and `upstreams`. */
function toKeys(parts: readonly string[], { served }: MirrorState, config: Config): string[] {
  const wanted = toConfigDocument(config)
  return parts.flatMap((part) => {
    const [before, now] = [served?.config[part], wanted[part]]
    if (part === 'upstreams' || !isObject(before) || !isObject(now)) return [part]
    const keys = Object.keys({ ...before, ...now }).filter((key) => !isDeepStrictEqual(before[key], now[key]))
    return keys.length === 0 ? [part] : keys.map((key) => `${part}.${key}`)
  })
}

/**
 * Finds the flags that would keep the running mirror as it is. An edit of mirror.yaml after its start may be what made the
 * difference, so that then there are none.
 */
async function findOmittedFlags(
  { served, startedAt }: MirrorState,
  config: Config,
  paths: MirrorPaths,
  env: CommandEnvironment['env'],
): Promise<OmittedFlag[]> {
  const edited = await ignoreMissing(() => stat(paths.configFile))
  if (served === undefined || (edited !== undefined && edited.mtimeMs > Date.parse(startedAt))) return []
  const wanted = toConfigDocument(config)
  const isSet = (...names: string[]) => names.some((name) => env[name])
  const wasOff = isObject(served.config['registry']) && served.config['registry']['enabled'] === false
  const ports = (['cache', 'registry', 'admin'] as const).flatMap((part): OmittedFlag[] => {
    const variable = `MIRROR_${part.toUpperCase()}`
    const port = findOtherPort(served.config[part], wanted[part])
    if (port === undefined || isSet(`${variable}_PORT`, `${variable}_LISTEN`)) return []
    if (part === 'registry' && (wasOff || !config.registry.enabled)) return []
    return [{ name: `--${part}-port`, text: `--${part}-port ${port}`, key: `${part}.listen` }]
  })
  const registry = { name: '--no-registry', text: '--no-registry', key: 'registry.enabled' }
  const data = { name: '--data', text: `--data ${quoteShellWord(served.dataDir)}`, key: undefined }
  return [
    ...ports,
    ...(wasOff && config.registry.enabled && !isSet('MIRROR_REGISTRY_ENABLED') ? [registry] : []),
    ...(served.dataDir !== paths.dataDir && !isSet('MIRROR_DATA', 'MIRROR_HOME') ? [data] : []),
  ]
}

/** Finds the port of a listener that differs from the configured one in its port only, as a flag makes it. */
function findOtherPort(before: unknown, now: unknown): string | undefined {
  const [old, wanted] = [before, now].map((part) => {
    const listen = isObject(part) && Array.isArray(part['listen']) ? part['listen'].map(String) : []
    const split = (pattern: RegExp) => [...new Set(listen.map((address) => address.replace(pattern, '')))]
    return { hosts: split(/:\d+$/), ports: split(/^.*:/) }
  })
  const [port, ...others] = old?.ports ?? []
  if (port === undefined || others.length > 0 || port === '0') return undefined
  return isDeepStrictEqual(old?.hosts, wanted?.hosts) && !isDeepStrictEqual(old?.ports, wanted?.ports)
    ? port
    : undefined
}

/**
 * Makes the configured mirror run in the background: starts it, replaces one that differs, or does nothing. Throws a MirrorError
 * when it does not start; then the earlier mirror runs again.
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
      registryNetworks: getRights(plan, plan.endpoints!, surroundings),
      dropped: nothingDropped,
      moved: [],
    }
  const rollback = plan.action === 'replace' ? await prepareRollback(plan.running!, { ...request, paths }) : undefined
  const started = await replaceWithRollback(rollback, signal, async () => {
    try {
      return await startProcess({ program, paths, env: surroundings.env, signal })
    } catch (error) {
      // Another `up` may have been quicker, and its mirror may be the configured one.
      const newPlan = error instanceof MirrorError && !signal.aborted ? await planAfterOther(request, clock) : undefined
      if (newPlan) return newPlan
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
    registryNetworks: getRights(plan, endpoints, surroundings),
    dropped: plan.dropped,
    moved: findMovedAddresses(getEarlierEndpoints(plan.running), endpoints, {
      before: plan.running && getRemoteEngine(plan.running),
    }),
  }
}

function getRights({ config }: UpPlan, endpoints: Endpoints, { env }: CommandEnvironment): 'read' | 'write' {
  return getNetworkRights(config.registry.networks, endpoints, isInContainer(env))
}

/** Returns the addresses to compare with. Leaves out a process's networks: its successor finds them later, at the same addresses. */
function getEarlierEndpoints(running: MirrorState | undefined): Endpoints | undefined {
  return running && (running.container ? running.endpoints : { ...running.endpoints, networks: {} })
}

/** Waits for another mirror, which holds the store and the ports a moment before it is ready. */
async function planAfterOther(request: UpRequest, clock: Clock): Promise<UpPlan | undefined> {
  for (let poll = 0; poll < maxPolls; poll++) {
    if (poll > 0) await clock.sleep(pollMs)
    const plan = await planUp(request)
    if (plan.action === 'nothing') return plan
  }
  return undefined
}

async function findReachableEndpoints(running: MirrorState, paths: MirrorPaths): Promise<Endpoints | undefined> {
  try {
    return (await createClientForState(running, paths).getStatus()).endpoints
  } catch (error) {
    if (error instanceof MirrorError) return undefined
    throw error
  }
}

/** Describes an address that clients may be configured with, and the new one; undefined when nothing answers there now. */
export interface MovedAddress {
  /** `cache`, `registry`, or a network's name. */
  readonly of: string
  readonly from: string
  /** Names the engine of that mirror, where the address is another machine's. */
  readonly on?: string
  readonly to: string | undefined
}

/** Finds the addresses of a mirror that its successor does not have; clients with them have to be configured again. */
export function findMovedAddresses(
  before: Endpoints | undefined,
  now: Endpoints,
  machines: { readonly before?: string | undefined; readonly now?: string | undefined } = {},
): MovedAddress[] {
  if (before === undefined) return []
  // All clients are on the machine that the mirror has left.
  if (machines.before !== machines.now) return listAddresses(before, machines.before)
  const networks = Object.entries(before.networks).flatMap(([network, url]) =>
    url === now.networks[network] ? [] : [{ of: network, from: url, to: now.networks[network] }],
  )
  return [
    ...findMissing('cache', before.cache, now.cache),
    ...findMissing('registry', before.registry, now.registry),
    ...networks,
  ]
}

function listAddresses({ cache, registry, networks }: Endpoints, on: string | undefined): MovedAddress[] {
  const left = (of: string) => (from: string) => ({ of, from, to: undefined, ...(on !== undefined && { on }) })
  const inNetworks = Object.entries(networks).map(([network, url]) => left(network)(url))
  return [...cache.map(left('cache')), ...registry.map(left('registry')), ...inNetworks]
}

function findMissing(of: string, from: readonly string[], to: readonly string[]): MovedAddress[] {
  return from.filter((url) => !to.includes(url)).map((url) => ({ of, from: url, to: to[0] }))
}

/** Lists the parts of an earlier mirror, from a flag or an older configuration, that the configured one does not have. */
export interface DroppedParts {
  /** Lists the Docker networks whose containers no longer reach it. */
  readonly networks: readonly string[]
  /** Lists the registries whose credentials its container no longer has. */
  readonly credentials: readonly string[]
}

export const nothingDropped: DroppedParts = { networks: [], credentials: [] }

/** Finds the networks, by their real names, that the running mirror serves or waits for, without the configured ones. */
export function findDroppedNetworks(running: MirrorState | undefined, wanted: readonly string[]): string[] {
  if (running === undefined) return []
  const configured = running.served?.config['networks']
  const awaited = Array.isArray(configured) ? configured.filter((name) => typeof name === 'string') : []
  // Only the addresses know the real name where a name stands for another one.
  const served = new Set([...Object.keys(running.endpoints.networks), ...awaited.filter((name) => name !== 'kind')])
  return [...served].filter((name) => !wanted.includes(name))
}

interface ServeInPlaceRequest extends ServeRequest {
  /** Runs `serveMirror`. The caller loads the server, because other commands do not need it. */
  serve: (request: ServeRequest) => Promise<void>
  /** Is undefined when no mirror runs. */
  rollback: Rollback | undefined
  /** Aborts the start, until the server handles signals itself. */
  signal: AbortSignal
  /** Is called when the server handles signals itself. */
  onServing: () => void
}

/** Serves in this process as `serveMirror` does. It replaces a running mirror, which is restored when this one cannot start. */
export async function serveInPlace(request: ServeInPlaceRequest): Promise<void> {
  const { rollback, signal, onServing } = request
  const serving = await replaceWithRollback(rollback, signal, () => {
    onServing()
    return waitUntilReady(request)
  })
  await serving.ended
}

/** Resolves when the server is ready. The object keeps `ended` from being awaited, too. */
function waitUntilReady(request: ServeInPlaceRequest): Promise<{ ended: Promise<void> }> {
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
