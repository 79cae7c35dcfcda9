import { isIP } from 'node:net'
import { adminClientHere, remoteEngine } from '../admin/access.ts'
import { engineProblem, networkProblem } from '../admin/api.ts'
import { findMirrorHere, type FoundMirror } from '../admin/find-mirror.ts'
import { type Endpoints, findRunning, readState } from '../admin/state.ts'
import { type Config, defaultConfig } from '../config/config.ts'
import { loadConfig } from '../config/load.ts'
import { mirrorPaths } from '../config/paths.ts'
import { findCertificate, type MirrorCertificate } from '../config/tls.ts'
import { kindNetworkName, networkNames } from '../docker/engine.ts'
import { exitCode, MirrorError } from '../lib/errors.ts'
import { machineNames, ownNames } from '../lib/network.ts'
import { readOwnedFile, readPublicFile } from '../lib/ownership.ts'
import type { Surroundings } from '../lib/process.ts'
import type { Clock } from '../lib/time.ts'
import { builtInUpstreams } from '../upstream/upstream.ts'
import {
  resolveClientAddress,
  type ClientAddress,
  describeLoopbackProblem,
  isLoopback,
  type UnservedNetwork,
} from './address.ts'
import type { ClientLocation } from './types.ts'

/** The mirror that clients are to be told about. */
export interface MirrorAddress {
  /** Where a client that lives there reaches it; `warning` when that is doubtful. Throws MirrorError when it cannot be reached. */
  addressFor(home: ClientLocation): CheckedAddress
  /** `docker.io` first, then as they are configured and built in. */
  readonly registries: readonly string[]
  readonly defaultUpstream: string
  /** It was named by `--mirror`, and is not the one of this machine: nobody here knows when it moves. */
  readonly isNamed: boolean
  /** It is on another machine's Docker engine: whether a network is that one's or this machine's, its name does not say. */
  readonly isRemote: boolean
  /** It is a plain process that will serve this Docker network as soon as that is there. */
  willServe(network: string): boolean
}

interface CheckedAddress extends ClientAddress {
  readonly warning: string | undefined
  /** What a client has to trust there, and the file it is from; undefined without TLS, and where nothing has to be handed over. */
  readonly ca?: MirrorCertificate['ca']
}

interface MirrorChoice {
  readonly url: string | undefined
  /** Of its CA; absolute. */
  readonly caFile: string | undefined
}

/**
 * The running mirror, or the one that was named. Throws MirrorError: not running (3), or a bad URL or certificate (2).
 */
export async function findMirror(surroundings: Surroundings, { url, caFile }: MirrorChoice): Promise<MirrorAddress> {
  const paths = mirrorPaths(surroundings)
  const here = await findMirrorHere(surroundings)
  const config = here?.user ? await parseServedConfig(here, surroundings) : await loadConfig({ ...surroundings, paths })
  const { defaultUpstream } = config
  const known = {
    registries: listRegistries(config),
    defaultUpstream,
    isNamed: false,
    isRemote: false,
    willServe: () => false,
  }
  const read = here?.user && createReaderFor(here.user.uid)
  if (url !== undefined) {
    const cache = parseMirrorUrl(url)
    // What a mirror wrote about itself, whether it runs or not: with --root nobody is asked.
    const endpoints = (here?.running ?? (await readState(paths.stateFile)))?.endpoints
    const given = { cache, registry: deriveRegistryUrl(cache, config, endpoints) }
    const isNamed = endpoints === undefined || !isCacheUrl(endpoints, cache)
    const why = `the mirror is at ${cache}, as you said`
    const withCa = await createCaResolver([cache], config, caFile, read)
    const unheard = describeUnknownName(cache, config)
    const doubts = (home: ClientLocation) =>
      [describeLoopbackProblem(cache, home), unheard].filter((text) => text !== undefined)
    return { ...known, isNamed, addressFor: (home) => withCa({ ...given, why }, doubts(home).join(' ') || undefined) }
  }
  if (here === undefined)
    throw new MirrorError('mirror is not running, so there is no address to configure.', {
      exit: exitCode.notRunning,
      hints: ['mirror up', 'mirror configure … --mirror URL   (one that runs elsewhere, or later)'],
    })
  const { running } = here
  const networks = networkNames(config.networks, surroundings.env)
  const unserved = await explainUnservedNetworks(here, networks, kindNetworkName(surroundings.env))
  const endpoints = { ...running.endpoints, runtime: running.runtime, engine: remoteEngine(running), unserved }
  const withCa = await createCaResolver(endpoints.cache, config, caFile, read)
  return {
    ...known,
    isRemote: endpoints.engine !== undefined,
    willServe: (network) =>
      running.runtime === 'process' && networks.includes(network) && endpoints.networks[network] === undefined,
    addressFor: (home) => withCa(resolveClientAddress(home, endpoints), undefined),
  }
}

/** What another user's mirror serves, by its own words; the defaults where they are no valid configuration. */
async function parseServedConfig({ running, paths, user }: FoundMirror, { homedir }: Surroundings): Promise<Config> {
  const { parseConfig } = await import('../config/parse.ts')
  const text = JSON.stringify(running.served?.config ?? {})
  const parsed = parseConfig({ text, path: paths.configFile, label: 'mirror.json', homedir: user?.home ?? homedir })
  return 'config' in parsed ? parsed.config : defaultConfig()
}

/** Reads what that user could read: files of theirs, and those of root that everybody may read. */
function createReaderFor(uid: number): (file: string) => Promise<string> {
  return async (file) => {
    const text = (await readOwnedFile(file, uid)) ?? (await readPublicFile(file))
    if (text !== undefined) return text
    throw Object.assign(new Error('it is neither the file of the user who runs the mirror nor readable by everyone'), {
      code: 'EACCES',
    })
  }
}

/** What is said of an address besides, and what has to be trusted there. Only where one speaks TLS is a certificate read. */
async function createCaResolver(
  caches: readonly string[],
  { tls }: Config,
  caFile: string | undefined,
  read: ((file: string) => Promise<string>) | undefined,
) {
  const certificate = caches.some(isSecure) ? await findCertificate(tls, caFile, read) : undefined
  return (address: ClientAddress, doubt: string | undefined): CheckedAddress => {
    if (certificate && isSecure(address.cache)) {
      const { hostname } = new URL(address.cache)
      const strange = certificate.isFor(hostname) ? undefined : describeCertificateMismatch(hostname)
      const warning = [doubt, strange].filter((text) => text !== undefined).join(' ') || undefined
      return { ...address, warning, ca: certificate.ca }
    }
    if (caFile === undefined) return { ...address, warning: doubt }
    throw new MirrorError(`The mirror at ${address.cache} does not speak TLS, so it has no CA.`, {
      exit: exitCode.usage,
      hints: ['Leave --ca away, or set "tls" in mirror.yaml and: mirror up'],
    })
  }
}

/** A mirror refuses requests for a name that is not its own (421), and clients then go to the origin in silence. */
function describeUnknownName(cache: string, { allowedHosts }: Config): string | undefined {
  const { hostname } = new URL(cache)
  const isAddress = isIP(hostname.replace(/^\[|\]$/g, '')) !== 0
  if (isAddress || ownNames.includes(hostname) || machineNames().includes(hostname)) return undefined
  if (allowedHosts.some((name) => name.toLowerCase() === hostname)) return undefined
  return `The mirror there answers to the name ${hostname} only if its mirror.yaml has it: allowedHosts: [${hostname}]`
}

function isSecure(url: string): boolean {
  return url.startsWith('https:')
}

function listRegistries({ upstreams, defaultUpstream }: Config): string[] {
  return [...new Set(['docker.io', ...builtInUpstreams, ...Object.keys(upstreams), defaultUpstream])]
}

function describeCertificateMismatch(hostname: string): string {
  return `The mirror's certificate does not name ${hostname}, so this client will refuse it: have it issued for that name as well (subjectAltName).`
}

/** Without a slash at its end. */
function parseMirrorUrl(text: string): string {
  const url = URL.canParse(text) ? new URL(text) : undefined
  const plain =
    url && url.pathname === '/' && url.search === '' && url.hash === '' && url.username === '' && url.password === ''
  if (plain && (url.protocol === 'http:' || url.protocol === 'https:')) return `${url.protocol}//${url.host}`
  throw new MirrorError(`${JSON.stringify(text)} is not the URL of a mirror.`, {
    exit: exitCode.usage,
    hints: ['--mirror http://127.0.0.1:5055   (scheme, host and port, nothing else)'],
  })
}

/** The registry for pushes beside a cache that was named: the same host, with the port that the mirror there has, or shall have. */
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
    (own) => own === url || (isLoopback(own) && isLoopback(url) && getPort(own) === getPort(url)),
  )
}

function getPort(url: string | undefined): string | undefined {
  if (url === undefined) return undefined
  const { port, protocol } = new URL(url)
  return port || (protocol === 'https:' ? '443' : '80')
}

/**
 * Why the running mirror, a plain process, does not serve a network, by its own words; undefined where it does not say, or
 * serves all that it shall.
 */
async function explainUnservedNetworks(
  here: FoundMirror,
  networks: readonly string[],
  kindNetwork: string,
): Promise<((network: string) => UnservedNetwork | undefined) | undefined> {
  const { endpoints, runtime } = here.running
  if (runtime !== 'process' || networks.every((name) => endpoints.networks[name] !== undefined)) return undefined
  const reports = await fetchNetworkReports(here)
  if (reports === undefined) return undefined
  // Where no engine has answered so far, the mirror has nothing to say of any network.
  const isSilent = Object.values(reports).every(({ reason }) => reason === engineProblem)
  return (network) => {
    const { reason } = reports[network] ?? {}
    if (isSilent)
      return {
        why: 'and no Docker engine answers the mirror, so it has no address there',
        hints: ['docker info   (says whether Docker runs; start it, then run this again)'],
      }
    if (reason === undefined) return undefined
    if (reason !== networkProblem)
      return { why: `and the mirror cannot listen there: ${reason.replace(/\.$/, '')}`, hints: ['mirror logs'] }
    const make = network === kindNetwork ? 'mirror configure kind' : `docker network create ${network}`
    return { why: 'which does not exist yet', hints: [`${make}   (makes it; then run this again)`] }
  }
}

async function fetchNetworkReports(here: FoundMirror) {
  try {
    return (await adminClientHere(here).status()).networks
  } catch (error) {
    if (error instanceof MirrorError) return undefined
    throw error
  }
}

const maxWaitMs = 5000
const pollMs = 100

/** Waits until the running mirror answers on a network that exists; not for ever, for its port may be taken there. */
export async function waitUntilServed(surroundings: Surroundings, network: string, clock: Clock): Promise<void> {
  const { stateFile } = mirrorPaths(surroundings)
  const end = clock.monotonic() + maxWaitMs
  while (clock.monotonic() < end) {
    if ((await findRunning(stateFile))?.endpoints.networks[network] !== undefined) return
    await clock.sleep(pollMs)
  }
}
