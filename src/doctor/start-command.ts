import { createServer } from 'node:net'
import { type MirrorState, readState } from '../admin/state.ts'
import { type Config, hashConfig, type ListenAddress, listChangedParts } from '../config/config.ts'
import { getErrno, MirrorError } from '../lib/errors.ts'
import { quoteShellWord } from '../lib/process.ts'
import type { DoctorContext, Outcome } from './context.ts'

export type ListenerName = 'cache' | 'registry' | 'admin'

export const listenerNames: readonly ListenerName[] = ['cache', 'registry', 'admin']

/** Describes the command that starts the mirror, or starts it again, without a change of its addresses. */
export interface StartPlan {
  readonly fix: NonNullable<Outcome['fix']>
  /** Holds the ports that flags of the command set. */
  readonly ports: Readonly<Partial<Record<ListenerName, number>>>
  /** Lists the other flags of the command. */
  readonly otherFlags: readonly string[]
  /** Holds the configuration that results from mirror.yaml and the flags; undefined when mirror.yaml is not valid. */
  readonly config: Config | undefined
  /** Lists the parts of the configuration in which the running mirror differs, even with the flags. */
  readonly changed: readonly string[]
  /** Names the mirror.yaml of the mirror. */
  readonly configFile: string
  /** Renders a command line about the mirror for this user: root runs it as the user who owns the mirror. */
  readonly forOwner: (line: string) => string
}

/**
 * Plans the start of the mirror. Ports of the recorded mirror that differ from mirror.yaml may have been set by flags, so the command
 * repeats them. A host cannot be set by a flag: then the command is none that --fix may run.
 */
export async function planStart({
  found,
  config,
  paths,
  surroundings,
}: Pick<DoctorContext, 'found' | 'config' | 'paths' | 'surroundings'>): Promise<StartPlan> {
  const mirror = await found
  const { user } = mirror ?? {}
  const forOwner = (line: string) => (user === undefined ? line : toUserCommand(line, user.name, surroundings))
  const { configFile, dataDir } = mirror?.paths ?? paths
  const common = { configFile, forOwner }
  const state = mirror?.running ?? (await readLastState(paths.stateFile))
  const wanted = await readConfig(config)
  if (wanted === undefined || state === undefined)
    return {
      fix: { command: forOwner('mirror up'), isOwn: wanted !== undefined && user === undefined },
      ...common,
      ports: {},
      otherFlags: [],
      config: wanted,
      changed: [],
    }
  const hashes = hashConfig(wanted, dataDir)
  const ports: Partial<Record<ListenerName, number>> = {}
  let canRepeat = user === undefined
  for (const name of listenerNames) {
    if (hashes[name] === state.configHashes[name] || (name === 'registry' && !wanted.registry.enabled)) continue
    const port = findOtherPort(wanted[name].listen, state.endpoints[name].flatMap(parseAddress))
    if (port === 'impossible') canRepeat = false
    else if (port !== undefined) ports[name] = port
  }
  const flagged = withPorts(wanted, ports)
  const others = findOtherFlags(flagged, state, dataDir)
  return {
    fix: { command: forOwner(toStartCommand(ports, others.flags)), isOwn: canRepeat },
    ...common,
    ports,
    otherFlags: others.flags,
    config: others.config,
    changed: listDifferences(others.config, ports, state, others.dataDir),
  }
}

/** Advises to change mirror.yaml and then to start the mirror again. `change`: the text before the name of the file. */
export async function adviseOnConfig(context: DoctorContext, change: string): Promise<string> {
  const { configFile, fix } = await planStart(context)
  return `${change} ${configFile}, then: ${fix.command}`
}

/** Renders a command line that root runs as the user who owns the mirror. Its login shell has the PATH of that user, but not MIRROR_HOME. */
function toUserCommand(line: string, user: string, { env, callers }: DoctorContext['surroundings']): string {
  const home = (callers?.env ?? env)['MIRROR_HOME']
  const variable = home === undefined || home === '' ? '' : `export MIRROR_HOME=${quoteShellWord(home)}; `
  return `su - ${user} -c ${quoteShellWord(variable + line)}`
}

/** Renders `mirror up` with these flags. */
export function toStartCommand(
  ports: Readonly<Partial<Record<ListenerName, number>>>,
  otherFlags: readonly string[] = [],
): string {
  const flags = listenerNames.flatMap((name) => (ports[name] === undefined ? [] : [`--${name}-port ${ports[name]}`]))
  return ['mirror up', ...flags, ...otherFlags].join(' ')
}

/** Finds a port that no program listens on and that `used` does not have, beginning at `first`. */
export async function findFreePort(
  host: string,
  first: number,
  used: ReadonlySet<number>,
): Promise<number | undefined> {
  for (let port = first > 65_535 ? 1024 : first, tries = 0; tries < 100 && port <= 65_535; port++, tries++)
    if (!used.has(port) && (await canListen(host, port))) return port
  return undefined
}

async function canListen(host: string, port: number): Promise<boolean> {
  return (await tryListen(host, port)) === undefined
}

/** Listens for a moment; returns the error code of the failure, and undefined when it succeeds. */
export async function tryListen(host: string, port: number): Promise<string | undefined> {
  const server = createServer()
  return new Promise((resolve) => {
    server.once('error', (error) => resolve(getErrno(error) ?? 'unknown'))
    server.listen({ host, port, exclusive: true }, () => server.close(() => resolve(undefined)))
  })
}

async function readConfig(config: Promise<Config>): Promise<Config | undefined> {
  try {
    return await config
  } catch (error) {
    if (error instanceof MirrorError) return undefined
    throw error
  }
}

async function readLastState(path: string): Promise<MirrorState | undefined> {
  try {
    return await readState(path)
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    return undefined
  }
}

function parseAddress(url: string): ListenAddress[] {
  if (!URL.canParse(url)) return []
  const { hostname, port, protocol } = new URL(url)
  return [{ host: hostname.replace(/^\[|\]$/g, ''), port: Number(port || (protocol === 'https:' ? 443 : 80)) }]
}

/** Returns the port that a flag must set so that a listener has its current addresses; undefined for none. */
function findOtherPort(
  wanted: readonly ListenAddress[],
  current: readonly ListenAddress[],
): number | 'impossible' | undefined {
  if (current.length === 0) return undefined
  const isCurrent = (one: ListenAddress) =>
    current.some(({ host, port }) => isSameHost(one.host, host) && (one.port === 0 || one.port === port))
  const isWanted = (one: ListenAddress) => wanted.some(({ host }) => isSameHost(host, one.host))
  if (!current.every(isWanted)) return 'impossible'
  if (wanted.every(isCurrent)) return undefined
  if (!wanted.every(({ host }) => current.some((one) => isSameHost(host, one.host)))) return 'impossible'
  const [port, ...others] = new Set(current.map((one) => one.port))
  return others.length === 0 ? port : 'impossible'
}

function isSameHost(wanted: string, current: string): boolean {
  return wanted === current || (wanted === 'localhost' && (current === '127.0.0.1' || current === '::1'))
}

function withPorts(config: Config, ports: StartPlan['ports']): Config {
  const toListen = (name: ListenerName) => {
    const port = ports[name]
    const { listen } = config[name]
    return port === undefined ? listen : [...new Set(listen.map(({ host }) => host))].map((host) => ({ host, port }))
  }
  return {
    ...config,
    cache: { ...config.cache, listen: toListen('cache') },
    registry: { ...config.registry, listen: toListen('registry') },
    admin: { ...config.admin, listen: toListen('admin') },
  }
}

/** Finds the flags besides ports that make the configuration that of the mirror, by their hashes. */
function findOtherFlags(
  config: Config,
  { configHashes, endpoints, served }: MirrorState,
  dataDir: string,
): { readonly flags: string[]; readonly config: Config; readonly dataDir: string } {
  const flags: string[] = []
  let result = config
  const isServed = (key: string, one: Config, folder = dataDir) => hashConfig(one, folder)[key] === configHashes[key]
  const without = { ...config, registry: { ...config.registry, enabled: false } }
  if (!isServed('registry', config) && isServed('registry', without)) {
    flags.push('--no-registry')
    result = without
  }
  const names = Array.isArray(served?.config['networks'])
    ? served.config['networks'].map(String)
    : Object.keys(endpoints.networks)
  const added = names.filter((name) => !config.networks.includes(name))
  const withNetworks = { ...result, networks: [...config.networks, ...added] }
  if (added.length > 0 && isServed('networks', withNetworks)) {
    flags.push(...added.map((name) => `--network ${quoteShellWord(name)}`))
    result = withNetworks
  }
  if (served === undefined || served.dataDir === dataDir || !isServed('data', config, served.dataDir))
    return { flags, config: result, dataDir }
  return { flags: [...flags, `--data ${quoteShellWord(served.dataDir)}`], config: result, dataDir: served.dataDir }
}

/** Lists the parts that differ. A mirror that was started with port 0 has the hash of that port. */
function listDifferences(
  config: Config,
  ports: StartPlan['ports'],
  { configHashes }: MirrorState,
  dataDir: string,
): string[] {
  const anyPort = hashConfig(withPorts(config, mapPorts(ports)), dataDir)
  return listChangedParts(configHashes, hashConfig(config, dataDir)).filter(
    (key) => !(key in ports) || anyPort[key] !== configHashes[key],
  )
}

function mapPorts(ports: StartPlan['ports']): StartPlan['ports'] {
  return Object.fromEntries(Object.keys(ports).map((name) => [name, 0]))
}
