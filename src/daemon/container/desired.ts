import { readFile } from 'node:fs/promises'
import { isIPv6 } from 'node:net'
import { basename } from 'node:path'
import * as tls from 'node:tls'
import { type Config, configHashes, type ListenAddress, renderConfig } from '../../config/config.ts'
import type { MirrorPaths } from '../../config/paths.ts'
import { engineHost } from '../../docker/endpoint.ts'
import type { DockerEngine, DockerEngineInfo, PublishedPort } from '../../docker/engine.ts'
import { errnoOf, exitCode, MirrorError } from '../../lib/errors.ts'
import { makeFolder } from '../../lib/fs.ts'
import { isLoopbackAddress, machineNames } from '../../lib/network.ts'
import type { Surroundings } from '../../lib/process.ts'
import { fileFailureReason } from '../../lib/system-errors.ts'
import { parseSize } from '../../lib/units.ts'
import { parseRegistryHost } from '../../oci/reference.ts'
import { proxyVariables, proxyWarnings, readProxies } from '../../upstream/proxy.ts'
import { type ExportedFiles, hashFiles, readExportedFiles } from './credentials.ts'
import { type ContainerPorts, type DesiredContainer, exportedFileNames, imageUser, volumeName } from './spec.ts'

interface DesiredContainerInput {
  readonly surroundings: Surroundings
  readonly paths: MirrorPaths
  readonly config: Config
  readonly version: string
  /** Registries whose credentials are handed over. */
  readonly credentials: readonly string[]
}

/** The container that the configuration means, but for what only the engine knows. */
interface PreparedDesired {
  readonly container: Omit<DesiredContainer, 'image' | 'networks'>
  readonly files: ExportedFiles
  /** What a user should know about it. */
  readonly warnings: string[]
}

const extraCaFile = 'extra-ca.pem'
const defaultMemory = 512 * 1024 ** 2
const minMemory = 64 * 1024 ** 2

/** Throws a MirrorError (exit 2) for files that cannot be read and settings that cannot be. */
export async function prepareDesired(input: DesiredContainerInput, info: DockerEngineInfo): Promise<PreparedDesired> {
  const { surroundings, paths, config, credentials } = input
  const { env } = surroundings
  const ports = toContainerPorts(config)
  const inside = createContainerConfig(config, ports, credentials)
  const certificates = await readExtraCertificates(env)
  const files = {
    ...(await readExportedFiles(inside.files)),
    ...(certificates && { [extraCaFile]: certificates }),
    [exportedFileNames.config]: inside.text,
  }
  const folder = env['MIRROR_DATA'] ? paths.dataDir : undefined
  if (folder !== undefined) await makeFolder(folder)
  // Networks come and go without a new container.
  const { networks: _, ...hashes } = configHashes(config, folder ?? volumeName)
  return {
    files,
    warnings: [...listAddressWarnings(config), ...listProxyWarnings(env)],
    container: {
      version: input.version,
      owner: paths.stateDir,
      configHashes: hashes,
      files: hashFiles(files),
      ports,
      data: folder === undefined ? { volume: volumeName } : { folder },
      user: chooseUser(folder, info),
      memory: parseMemory(env['MIRROR_MEMORY']),
      env: pickProxyVariables(env),
      extraCa: certificates ? extraCaFile : undefined,
      engine: info,
      isInVm: isEngineInVm(info, surroundings.platform),
    },
  }
}

/** A folder of the caller's is written to as the caller, whom a rootless engine calls root. */
function chooseUser(folder: string | undefined, { isRootless }: DockerEngineInfo): string {
  if (folder === undefined) return imageUser
  if (isRootless || process.getuid === undefined || process.getgid === undefined) return isRootless ? '0:0' : imageUser
  return `${process.getuid()}:${process.getgid()}`
}

/** Docker Desktop, and any engine for Linux containers on another system, lives in a virtual machine. */
function isEngineInVm({ isRootless, operatingSystem }: DockerEngineInfo, platform: Surroundings['platform']): boolean {
  return isRootless || operatingSystem === 'Docker Desktop' || platform !== 'linux'
}

function parseMemory(text: string | undefined): number {
  if (text === undefined || text === '') return defaultMemory
  const size = parseSize(text)
  if (size !== undefined && size >= minMemory) return size
  throw new MirrorError(`${JSON.stringify(text)} is no amount of memory: a size of at least 64MiB.`, {
    exit: exitCode.usage,
    hints: ['mirror up --runtime container --memory 512MiB'],
  })
}

function pickProxyVariables(env: Surroundings['env']): Record<string, string> {
  return Object.fromEntries(proxyVariables.flatMap((name) => (env[name] ? [[name, env[name]]] : [])))
}

function listProxyWarnings(env: Surroundings['env']): string[] {
  const proxies = [...readProxies(env).all]
  const local = proxies.filter(([, { isLocal }]) => isLocal)
  const telling = proxies.filter(([, { credential }]) => credential && credential.password !== '')
  return [
    ...proxyWarnings(env),
    ...local.map(([name]) => `${name} names a proxy on this machine's loopback, which a container cannot reach`),
    ...telling.map(([name]) => `${name} holds a password, which whoever may use Docker sees in docker inspect`),
  ]
}

function listAddressWarnings({ cache, registry }: Config): string[] {
  const listening = [cache.listen, registry.listen]
  const others = listening.flat().filter((address) => !isLocal(address))
  const further = listening.flatMap(([first, ...more]) =>
    more.filter((address) => isLocal(address) && address.port !== first?.port),
  )
  return [
    ...others.map(({ host }) => `a container is published on 127.0.0.1 only, so nobody is served on ${host}`),
    ...further.map(({ port }) => `a container is published on its first port only, so nobody is served on ${port}`),
  ]
}

function isLocal({ host }: ListenAddress): boolean {
  return isLoopbackAddress(host) || host === 'localhost'
}

/** What a mirror in a container is told: a mirror.yaml, and the files it names. */
interface ContainerConfig {
  /** As JSON, which is YAML. */
  readonly text: string
  /** Files of this machine by their names beside that mirror.yaml. */
  readonly files: Readonly<Record<string, string>>
}

/** On the container's own addresses, IPv4 and IPv6, on the ports that are configured; free ones become the usual ones. */
export function toContainerPorts({ cache, registry, admin }: Config): ContainerPorts {
  return {
    cache: toPublishedPort(cache.listen, 5055),
    registry: registry.enabled ? toPublishedPort(registry.listen, 5001) : undefined,
    admin: toPublishedPort(admin.listen, 5056),
  }
}

function toPublishedPort([first]: ListenAddress[], usual: number): PublishedPort {
  const outside = first?.port ?? 0
  return { inside: outside === 0 ? usual : outside, outside }
}

/**
 * The same configuration for the inside of a container: other addresses, files that were handed over, no networks to look
 * for, and credentials only for the registries whose credentials are handed over.
 */
export function createContainerConfig(
  config: Config,
  ports: ContainerPorts,
  handedOver: readonly string[],
): ContainerConfig {
  const files: Record<string, string> = {}
  /** A name of its own for each file; two may be called `ca.pem`. */
  const exportFile = (path: string) => {
    const known = Object.keys(files).find((name) => files[name] === path)
    const name = known ?? `${Object.keys(files).length}-${basename(path).replaceAll(/[^\w.-]/g, '_')}`
    files[name] = path
    return `./${name}`
  }
  const { cache, registry, tls } = config
  const inside = renderConfig({
    ...config,
    cache: { ...cache, listen: allAddresses(ports.cache.inside) },
    registry: {
      ...registry,
      listen: allAddresses(ports.registry?.inside ?? 5001),
      auth: registry.auth && { htpasswd: exportFile(registry.auth.htpasswd) },
    },
    admin: { listen: allAddresses(ports.admin.inside) },
    networks: [],
    allowedHosts: listHostNames(config),
    upstreams: Object.fromEntries(
      Object.entries(config.upstreams).map(([host, upstream]) => [
        host,
        {
          ...upstream,
          ca: upstream.ca === undefined ? undefined : exportFile(upstream.ca),
          credentials: { from: handedOver.includes(host) ? 'docker-config' : 'anonymous' },
        },
      ]),
    ),
    // Its authority is for clients' configuration, which is written here.
    tls: tls && { cert: exportFile(tls.cert), key: exportFile(tls.key), ca: undefined },
  })
  const exported = Object.fromEntries(handedOver.map((host) => [host, { credentials: 'docker-config' }]))
  const document = { ...inside, upstreams: { ...exported, ...inside.upstreams } }
  return { text: `${JSON.stringify(document, null, 2)}\n`, files }
}

/** IPv4 comes in there, too. */
const allAddresses = (port: number) => [{ host: '::', port }]

/** A container does not know by which names and addresses clients reach the machine that it runs on. */
function listHostNames({ allowedHosts, cache, registry, admin }: Config): string[] {
  const listening = [cache, registry, admin].flatMap(({ listen }) => listen.map(({ host }) => host))
  const outside = [...machineNames(), ...listening].filter((host) => isHostAddress(host) && isName(host))
  return [...new Set([...allowedHosts, ...outside])]
}

function isHostAddress(host: string): boolean {
  return host !== '0.0.0.0' && host !== '::' && !isLoopbackAddress(host)
}

/** A machine may have a name that no configuration takes. */
function isName(host: string): boolean {
  return parseRegistryHost(isIPv6(host) ? `[${host}]` : host) !== undefined
}

/**
 * PEM text of the authorities that Node trusts on this machine beyond its own: those of NODE_EXTRA_CA_CERTS, and of the system
 * where Node is told to use them. A container has neither. Throws a MirrorError (exit 2) for a file that cannot be read.
 */
async function readExtraCertificates(env: Readonly<Record<string, string | undefined>>): Promise<string | undefined> {
  const file = env['NODE_EXTRA_CA_CERTS']
  const own = file ? [await readCertificates(file)] : []
  const all = [...own, ...(usesSystemStore(env) ? readSystemCertificates() : [])].filter((text) => text.trim() !== '')
  return all.length === 0 ? undefined : all.map((text) => `${text.trim()}\n`).join('')
}

/** https://nodejs.org/api/cli.html#node_use_system_ca1 */
function usesSystemStore(env: Readonly<Record<string, string | undefined>>): boolean {
  return env['NODE_USE_SYSTEM_CA'] === '1' || /--use-(system|openssl)-ca\b/.test(env['NODE_OPTIONS'] ?? '')
}

/** Newer Node only; older Node knows no NODE_USE_SYSTEM_CA either. In an order that does not change. */
function readSystemCertificates(): string[] {
  if (!('getCACertificates' in tls) || typeof tls.getCACertificates !== 'function') return []
  return [...new Set(tls.getCACertificates('system') as string[])].toSorted()
}

async function readCertificates(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8')
  } catch (cause) {
    if (errnoOf(cause) === undefined) throw cause
    throw new MirrorError(`The file ${path} of NODE_EXTRA_CA_CERTS cannot be read: ${fileFailureReason(cause)}.`, {
      exit: exitCode.usage,
      cause,
    })
  }
}

/** What a user should know of an engine whose network hears all that is said to it. */
export function listClearTextWarnings({
  endpoint,
  isRemote: isElsewhere,
}: Pick<DockerEngine, 'endpoint' | 'isRemote'>): string[] {
  if (!isElsewhere || endpoint.kind !== 'tcp' || endpoint.tlsFolder !== undefined) return []
  return [
    `the Docker engine at ${engineHost(endpoint)} is spoken to in the clear: whoever is on the way may use it, and reads what is handed over`,
  ]
}

/** Throws a MirrorError (exit 2) when a folder is asked for that would be another machine's. */
export function refuseRemoteFolder(
  { endpoint, isRemote: isElsewhere }: Pick<DockerEngine, 'endpoint' | 'isRemote'>,
  env: Surroundings['env'],
): void {
  if (!isElsewhere || !env['MIRROR_DATA']) return
  throw new MirrorError(
    `With the Docker engine at ${engineHost(endpoint)} there is no --data: the folder would be that machine's, and whose it is there is not known here.`,
    { exit: exitCode.usage, hints: [`leave --data out: the volume ${volumeName} of that engine keeps what is cached`] },
  )
}
