import { isIP } from 'node:net'
import { createClientForMirror, getRemoteEngine } from '../admin/access.ts'
import { engineProblem, networkProblem } from '../admin/api.ts'
import { findRunningMirror, type FoundMirror } from '../admin/find-mirror.ts'
import { type Endpoints, findRunning, readState } from '../admin/state.ts'
import { type Config, defaultConfig } from '../config/config.ts'
import { findCertificate, loadConfig, type MirrorCertificate } from '../config/load.ts'
import { mirrorPaths } from '../config/paths.ts'
import { getKindNetworkName, resolveNetworkNames } from '../docker/engine.ts'
import { exitCode, MirrorError } from '../lib/errors.ts'
import { getMachineNames, mirrorHostNames } from '../lib/network.ts'
import { readOwnedFile, readPublicFile } from '../lib/ownership.ts'
import type { CommandEnvironment } from '../lib/process.ts'
import type { Clock } from '../lib/time.ts'
import { builtInUpstreams } from '../upstream/upstream.ts'
import {
  type ClientAddress,
  describeLoopbackProblem,
  isLoopbackUrl,
  resolveClientAddress,
  type UnservedNetwork,
} from './address.ts'
import type { ClientLocation } from './types.ts'

const maxWaitMs = 5000
const pollMs = 100

/** Describes the mirror whose address clients are configured with. */
export interface MirrorAddress {
  /** Returns the address for a client at the location, with a warning when it is doubtful. Throws MirrorError when the client cannot reach it. */
  getAddress(location: ClientLocation): CheckedAddress
  /** Lists the registries: `docker.io` first, then the built-in and the configured ones. */
  readonly registries: readonly string[]
  readonly defaultUpstream: string
  /** Is true when `--mirror` gives an address that is not one of this machine's mirror, so that a move cannot be detected. */
  readonly isNamed: boolean
  /** Is true when the mirror runs on another machine's Docker engine, so that the name of a network does not tell its machine. */
  readonly isRemote: boolean
  /** Reports whether the mirror process serves a network as soon as the network exists. */
  willServe(network: string): boolean
}

interface CheckedAddress extends ClientAddress {
  readonly warning: string | undefined
  /**
   * Holds the CA that the client must trust, and its file; undefined without TLS, and for a certificate that clients trust anyway.
   */
  readonly ca?: MirrorCertificate['ca']
}

interface MirrorChoice {
  readonly url: string | undefined
  /** Holds the absolute path of its CA. */
  readonly caFile: string | undefined
}

/**
 * Finds the running mirror, or the one that `url` names. Throws MirrorError: not running (exit code 3), or a bad URL or certificate
 * (exit code 2).
 */
export async function findMirrorAddress(
  surroundings: CommandEnvironment,
  { url, caFile }: MirrorChoice,
): Promise<MirrorAddress> {
  const paths = mirrorPaths(surroundings)
  const found = await findRunningMirror(surroundings)
  const config = found?.user
    ? await parseServedConfig(found, surroundings)
    : await loadConfig({ ...surroundings, paths })
  const { defaultUpstream } = config
  const known = {
    registries: listRegistries(config),
    defaultUpstream,
    isNamed: false,
    isRemote: false,
    willServe: () => false,
  }
  const read = found?.user && createReaderFor(found.user.uid)
  if (url !== undefined) {
    // Read the state file of a mirror that does not run as well.
    const endpoints = (found?.running ?? (await readState(paths.stateFile)))?.endpoints
    const cache = parseMirrorUrl(url, endpoints?.cache[0] ?? `http://127.0.0.1:${config.cache.listen[0]?.port ?? 5055}`)
    const given = { cache, registry: deriveRegistryUrl(cache, config, endpoints) }
    const isNamed = endpoints === undefined || !isCacheUrl(endpoints, cache)
    const why = `the mirror is at ${cache} (from --mirror)`
    const addCa = await createCaResolver([cache], config, caFile, read)
    const unknownName = describeUnknownName(cache, config)
    const listWarnings = (location: ClientLocation) =>
      [describeLoopbackProblem(cache, location), unknownName].filter((text) => text !== undefined)
    return {
      ...known,
      isNamed,
      getAddress: (location) => addCa({ ...given, why }, listWarnings(location).join(' ') || undefined),
    }
  }
  if (found === undefined)
    throw new MirrorError('mirror is not running, so there is no address to configure.', {
      exit: exitCode.notRunning,
      hints: [
        'mirror up',
        'mirror configure CLIENT --mirror URL   (for a mirror that runs on another machine, or later)',
      ],
    })
  const { running } = found
  const networks = resolveNetworkNames(config.networks, surroundings.env)
  const unserved = await explainUnservedNetworks(found, networks, getKindNetworkName(surroundings.env))
  const endpoints = { ...running.endpoints, runtime: running.runtime, engine: getRemoteEngine(running), unserved }
  const addCa = await createCaResolver(endpoints.cache, config, caFile, read)
  return {
    ...known,
    isRemote: endpoints.engine !== undefined,
    willServe: (network) =>
      running.runtime === 'process' && networks.includes(network) && endpoints.networks[network] === undefined,
    getAddress: (location) => addCa(resolveClientAddress(location, endpoints), undefined),
  }
}

/** Parses the configuration that another user's mirror reports; the defaults when it is not valid. */
async function parseServedConfig(
  { running, paths, user }: FoundMirror,
  { homedir }: CommandEnvironment,
): Promise<Config> {
  const { parseConfig } = await import('../config/parse.ts')
  const text = JSON.stringify(running.served?.config ?? {})
  const parsed = parseConfig({ text, path: paths.configFile, label: 'mirror.json', homedir: user?.home ?? homedir })
  return 'config' in parsed ? parsed.config : defaultConfig()
}

/** Creates a reader of the files that the user owns or that root made readable for everyone. */
function createReaderFor(uid: number): (file: string) => Promise<string> {
  return async (file) => {
    const text = (await readOwnedFile(file, uid)) ?? (await readPublicFile(file))
    if (text !== undefined) return text
    throw Object.assign(new Error('it is neither the file of the user who runs the mirror nor readable by everyone'), {
      code: 'EACCES',
    })
  }
}

/** Creates a function that adds the CA and certificate warnings to an address. It reads a certificate only when a URL uses TLS. */
async function createCaResolver(
  caches: readonly string[],
  { tls }: Config,
  caFile: string | undefined,
  read: ((file: string) => Promise<string>) | undefined,
) {
  const certificate = caches.some(isSecure) ? await findCertificate(tls, caFile, read) : undefined
  return (address: ClientAddress, warning: string | undefined): CheckedAddress => {
    if (certificate && isSecure(address.cache)) {
      const { hostname } = new URL(address.cache)
      const mismatch = certificate.isFor(hostname) ? undefined : describeCertificateMismatch(hostname)
      const all = [warning, mismatch].filter((text) => text !== undefined).join(' ') || undefined
      return { ...address, warning: all, ca: certificate.ca }
    }
    if (caFile === undefined) return { ...address, warning }
    throw new MirrorError(`The mirror at ${address.cache} does not use TLS, so it has no CA.`, {
      exit: exitCode.usage,
      hints: ['Omit --ca, or set "tls" in mirror.yaml, then: mirror up'],
    })
  }
}

/** Warns about a host name that the mirror rejects (421), after which clients fall back to the origin without a message. */
function describeUnknownName(cache: string, { allowedHosts }: Config): string | undefined {
  const { hostname } = new URL(cache)
  const isAddress = isIP(hostname.replace(/^\[|\]$/g, '')) !== 0
  if (isAddress || mirrorHostNames.includes(hostname) || getMachineNames().includes(hostname)) return undefined
  if (allowedHosts.some((name) => name.toLowerCase() === hostname)) return undefined
  return `The mirror there accepts the name ${hostname} only with this in its mirror.yaml: allowedHosts: [${hostname}]`
}

function isSecure(url: string): boolean {
  return url.startsWith('https:')
}

function listRegistries({ upstreams, defaultUpstream }: Config): string[] {
  return [...new Set(['docker.io', ...builtInUpstreams, ...Object.keys(upstreams), defaultUpstream])]
}

function describeCertificateMismatch(hostname: string): string {
  return `The mirror's certificate does not name ${hostname}, so this client will reject it. Issue it for that name as well (subjectAltName).`
}

/** Parses the URL of a mirror, and returns it without a slash at its end. Throws MirrorError (usage) with an example. */
function parseMirrorUrl(text: string, example: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined
  const plain =
    url && url.pathname === '/' && url.search === '' && url.hash === '' && url.username === '' && url.password === ''
  if (plain && (url.protocol === 'http:' || url.protocol === 'https:')) return `${url.protocol}//${url.host}`
  throw new MirrorError(`${JSON.stringify(text)} is not the URL of a mirror.`, {
    exit: exitCode.usage,
    hints: [`--mirror ${example}   (scheme, host and port only)`],
  })
}

/** Returns the push registry of a given cache: the same host, with the port of the known mirror, or else of the configuration. */
function deriveRegistryUrl(cache: string, config: Config, known: Endpoints | undefined): string | undefined {
  const { protocol, hostname } = new URL(cache)
  const port = known && isCacheUrl(known, cache) ? getPort(known.registry[0]) : getConfiguredPort(config)
  return port === undefined ? undefined : `${protocol}//${hostname}:${port}`
}

function getConfiguredPort({ registry }: Config): string | undefined {
  const port = registry.listen[0]?.port
  return !registry.enabled || port === undefined || port === 0 ? undefined : String(port)
}

function isCacheUrl({ cache, networks }: Endpoints, url: string): boolean {
  return [...cache, ...Object.values(networks)].some(
    (own) => own === url || (isLoopbackUrl(own) && isLoopbackUrl(url) && getPort(own) === getPort(url)),
  )
}

function getPort(url: string | undefined): string | undefined {
  if (url === undefined) return undefined
  const { port, protocol } = new URL(url)
  return port || (protocol === 'https:' ? '443' : '80')
}

/**
 * Returns a function that explains from the mirror's status why it does not serve a network. Undefined for a mirror in a container,
 * when all networks are served, and when the mirror does not answer.
 */
async function explainUnservedNetworks(
  found: FoundMirror,
  networks: readonly string[],
  kindNetwork: string,
): Promise<((network: string) => UnservedNetwork | undefined) | undefined> {
  const { endpoints, runtime } = found.running
  if (runtime !== 'process' || networks.every((name) => endpoints.networks[name] !== undefined)) return undefined
  const reports = await fetchNetworkReports(found)
  if (reports === undefined) return undefined
  // Blame the engine if it has not answered so far: then the mirror knows nothing about any network.
  const hasNoEngine = Object.values(reports).every(({ reason }) => reason === engineProblem)
  return (network) => {
    const { reason } = reports[network] ?? {}
    if (hasNoEngine)
      return {
        why: 'and no Docker engine answers the mirror, so it has no address there',
        hints: ['docker info   (shows if Docker runs; start it, then run the command again)'],
      }
    if (reason === undefined) return undefined
    if (reason !== networkProblem)
      return { why: `and the mirror cannot listen there: ${reason.replace(/\.$/, '')}`, hints: ['mirror logs'] }
    const create = network === kindNetwork ? 'mirror configure kind' : `docker network create ${network}`
    return { why: 'which does not exist yet', hints: [`${create}   (creates it; then run the command again)`] }
  }
}

async function fetchNetworkReports(found: FoundMirror) {
  try {
    return (await createClientForMirror(found).getStatus()).networks
  } catch (error) {
    if (error instanceof MirrorError) return undefined
    throw error
  }
}

/** Waits until the running mirror serves an existing network, at most `maxWaitMs` because its port may be in use there. */
export async function waitUntilServed(surroundings: CommandEnvironment, network: string, clock: Clock): Promise<void> {
  const { stateFile } = mirrorPaths(surroundings)
  const end = clock.monotonic() + maxWaitMs
  while (clock.monotonic() < end) {
    if ((await findRunning(stateFile))?.endpoints.networks[network] !== undefined) return
    await clock.sleep(pollMs)
  }
}
