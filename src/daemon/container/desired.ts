import { readFile } from 'node:fs/promises'
import { isIPv6 } from 'node:net'
import { basename } from 'node:path'
import * as tls from 'node:tls'
import { type Config, hashConfig, type ListenAddress, toConfigDocument } from '../../config/config.ts'
import type { MirrorPaths } from '../../config/paths.ts'
import { renderDockerHost } from '../../docker/endpoint.ts'
import type { DockerEngine, DockerEngineInfo, PublishedPort } from '../../docker/engine.ts'
import { getErrno, exitCode, MirrorError } from '../../lib/errors.ts'
import { makeFolder } from '../../lib/fs.ts'
import { isLoopbackAddress, getMachineNames } from '../../lib/network.ts'
import type { CommandEnvironment } from '../../lib/process.ts'
import { getFileFailureReason } from '../../lib/system-errors.ts'
import { parseSize } from '../../lib/units.ts'
import { parseRegistryHost } from '../../oci/reference.ts'
import { proxyVariables, getProxyWarnings, readProxies } from '../../upstream/proxy.ts'
import { type ExportedFiles, hashFiles, readExportedFiles } from './credentials.ts'
import { type ContainerPorts, type DesiredContainer, exportedFileNames, imageUser, volumeName } from './spec.ts'

interface DesiredContainerInput {
  readonly surroundings: CommandEnvironment
  readonly paths: MirrorPaths
  readonly config: Config
  readonly version: string
  /** Holds the registries whose credentials are exported. */
  readonly credentials: readonly string[]
}

/** Holds the container that the configuration asks for, without what only the engine knows. */
interface PreparedDesired {
  readonly container: Omit<DesiredContainer, 'image' | 'networks'>
  readonly files: ExportedFiles
  readonly warnings: string[]
}

const extraCaFile = 'extra-ca.pem'
const defaultMemory = 512 * 1024 ** 2
const minMemory = 64 * 1024 ** 2

/** Prepares the desired container. Throws a MirrorError (exit 2) for unreadable files and invalid settings. */
export async function prepareDesired(input: DesiredContainerInput, info: DockerEngineInfo): Promise<PreparedDesired> {
  const { surroundings, paths, config, credentials } = input
  const { env } = surroundings
  const ports = toContainerPorts(config)
  const containerConfig = createContainerConfig(config, ports, credentials)
  const certificates = await readExtraCertificates(env)
  const files = {
    ...(await readExportedFiles(containerConfig.files)),
    ...(certificates && { [extraCaFile]: certificates }),
    [exportedFileNames.config]: containerConfig.text,
  }
  const folder = env['MIRROR_DATA'] ? paths.dataDir : undefined
  if (folder !== undefined) await makeFolder(folder)
  // Leaves out the networks, whose change needs no new container.
  const { networks: _, ...hashes } = hashConfig(config, folder ?? volumeName)
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

/** Chooses the user of the container: for a folder the caller, who is root inside of a rootless engine. */
function chooseUser(folder: string | undefined, { isRootless }: DockerEngineInfo): string {
  if (folder === undefined) return imageUser
  if (isRootless || process.getuid === undefined || process.getgid === undefined) return isRootless ? '0:0' : imageUser
  return `${process.getuid()}:${process.getgid()}`
}

/**
 * Returns whether the engine runs in a virtual machine: Docker Desktop, and every engine for Linux containers on another system.
 */
function isEngineInVm(
  { isRootless, operatingSystem }: DockerEngineInfo,
  platform: CommandEnvironment['platform'],
): boolean {
  return isRootless || operatingSystem === 'Docker Desktop' || platform !== 'linux'
}

function parseMemory(text: string | undefined): number {
  if (text === undefined || text === '') return defaultMemory
  const size = parseSize(text)
  if (size !== undefined && size >= minMemory) return size
  throw new MirrorError(`${JSON.stringify(text)} is not a valid amount of memory; it must be at least 64MiB.`, {
    exit: exitCode.usage,
    hints: ['mirror up --runtime container --memory 512MiB'],
  })
}

function pickProxyVariables(env: CommandEnvironment['env']): Record<string, string> {
  return Object.fromEntries(proxyVariables.flatMap((name) => (env[name] ? [[name, env[name]]] : [])))
}

function listProxyWarnings(env: CommandEnvironment['env']): string[] {
  const proxies = [...readProxies(env).all]
  const local = proxies.filter(([, { isLocal }]) => isLocal)
  const withPassword = proxies.filter(([, { credential }]) => credential && credential.password !== '')
  return [
    ...getProxyWarnings(env),
    ...local.map(([name]) => `${name} names a proxy on this machine's loopback, which a container cannot reach`),
    ...withPassword.map(
      ([name]) => `${name} holds a password, which every user of Docker can read with docker inspect`,
    ),
  ]
}

function listAddressWarnings({ cache, registry }: Config): string[] {
  const listening = [cache.listen, registry.listen]
  const others = listening.flat().filter((address) => !isLocal(address))
  const furtherAddresses = listening.flatMap(([first, ...more]) =>
    more.filter((address) => isLocal(address) && address.port !== first?.port),
  )
  return [
    ...others.map(({ host }) => `a container is published on 127.0.0.1 only, so no client is served on ${host}`),
    ...furtherAddresses.map(
      ({ port }) => `a container is published on its first port only, so no client is served on ${port}`,
    ),
  ]
}

function isLocal({ host }: ListenAddress): boolean {
  return isLoopbackAddress(host) || host === 'localhost'
}

/** Holds the mirror.yaml for a mirror in a container, and the files that it names. */
interface ContainerConfig {
  /** Holds the text of the mirror.yaml in JSON, which is YAML. */
  readonly text: string
  /** Maps names beside that mirror.yaml to paths on this machine. */
  readonly files: Readonly<Record<string, string>>
}

/** Chooses the ports of the container: the configured ones, and the default one for any free port. */
export function toContainerPorts({ cache, registry, admin }: Config): ContainerPorts {
  return {
    cache: toPublishedPort(cache.listen, 5055),
    registry: registry.enabled ? toPublishedPort(registry.listen, 5001) : undefined,
    admin: toPublishedPort(admin.listen, 5056),
  }
}

function toPublishedPort([first]: ListenAddress[], defaultPort: number): PublishedPort {
  const hostPort = first?.port ?? 0
  return { inside: hostPort === 0 ? defaultPort : hostPort, outside: hostPort }
}

/**
 * Translates the configuration for the inside of a container: with other addresses, the exported files, no networks, and
 * credentials only for the registries in `exportedHosts`.
 */
export function createContainerConfig(
  config: Config,
  ports: ContainerPorts,
  exportedHosts: readonly string[],
): ContainerConfig {
  const files: Record<string, string> = {}
  /** Gives each file a unique name, because two may be called `ca.pem`. */
  const exportFile = (path: string) => {
    const existingName = Object.keys(files).find((name) => files[name] === path)
    const name = existingName ?? `${Object.keys(files).length}-${basename(path).replaceAll(/[^\w.-]/g, '_')}`
    files[name] = path
    return `./${name}`
  }
  const { cache, registry, tls } = config
  const translated = toConfigDocument({
    ...config,
    cache: { ...cache, listen: listenOnAllAddresses(ports.cache.inside) },
    registry: {
      ...registry,
      listen: listenOnAllAddresses(ports.registry?.inside ?? 5001),
      auth: registry.auth && { htpasswd: exportFile(registry.auth.htpasswd) },
    },
    admin: { listen: listenOnAllAddresses(ports.admin.inside) },
    networks: [],
    allowedHosts: listHostNames(config),
    upstreams: Object.fromEntries(
      Object.entries(config.upstreams).map(([host, upstream]) => [
        host,
        {
          ...upstream,
          ca: upstream.ca === undefined ? undefined : exportFile(upstream.ca),
          credentials: { from: exportedHosts.includes(host) ? 'docker-config' : 'anonymous' },
        },
      ]),
    ),
    // Leaves out `ca`, which is for configuring clients on the host.
    tls: tls && { cert: exportFile(tls.cert), key: exportFile(tls.key), ca: undefined },
  })
  const exported = Object.fromEntries(exportedHosts.map((host) => [host, { credentials: 'docker-config' }]))
  const document = { ...translated, upstreams: { ...exported, ...translated.upstreams } }
  return { text: `${JSON.stringify(document, null, 2)}\n`, files }
}

/** Listens on IPv4 as well. */
const listenOnAllAddresses = (port: number) => [{ host: '::', port }]

/** Lists the names and addresses of the host, which a container cannot know. */
function listHostNames({ allowedHosts, cache, registry, admin }: Config): string[] {
  const listening = [cache, registry, admin].flatMap(({ listen }) => listen.map(({ host }) => host))
  const hostNames = [...getMachineNames(), ...listening].filter((host) => isHostAddress(host) && isAcceptedName(host))
  return [...new Set([...allowedHosts, ...hostNames])]
}

function isHostAddress(host: string): boolean {
  return host !== '0.0.0.0' && host !== '::' && !isLoopbackAddress(host)
}

/** Returns whether a configuration accepts the name. */
function isAcceptedName(host: string): boolean {
  return parseRegistryHost(isIPv6(host) ? `[${host}]` : host) !== undefined
}

/**
 * Reads the certificates that Node trusts on this machine in addition to its own, as PEM: those of NODE_EXTRA_CA_CERTS, and of
 * the system when Node is set to use them. A container has neither. Throws a MirrorError (exit 2) for a file that cannot be read.
 */
async function readExtraCertificates(env: Readonly<Record<string, string | undefined>>): Promise<string | undefined> {
  const file = env['NODE_EXTRA_CA_CERTS']
  const own = file ? [await readCertificates(file)] : []
  const all = [...own, ...(usesSystemStore(env) ? readSystemCertificates() : [])].filter((text) => text.trim() !== '')
  return all.length === 0 ? undefined : all.map((text) => `${text.trim()}\n`).join('')
}

/** Reports whether Node is set to use the system's certificates. https://nodejs.org/api/cli.html#node_use_system_ca1 */
function usesSystemStore(env: Readonly<Record<string, string | undefined>>): boolean {
  return env['NODE_USE_SYSTEM_CA'] === '1' || /--use-(system|openssl)-ca\b/.test(env['NODE_OPTIONS'] ?? '')
}

/** Reads the system's certificates in a stable order. Older Node has neither this function nor NODE_USE_SYSTEM_CA. */
function readSystemCertificates(): string[] {
  if (!('getCACertificates' in tls) || typeof tls.getCACertificates !== 'function') return []
  return [...new Set(tls.getCACertificates('system') as string[])].toSorted()
}

async function readCertificates(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8')
  } catch (cause) {
    if (getErrno(cause) === undefined) throw cause
    throw new MirrorError(`The file ${path} of NODE_EXTRA_CA_CERTS cannot be read: ${getFileFailureReason(cause)}.`, {
      exit: exitCode.usage,
      cause,
    })
  }
}

/** Warns of an engine whose connection is not encrypted. */
export function listClearTextWarnings({ endpoint, isRemote }: Pick<DockerEngine, 'endpoint' | 'isRemote'>): string[] {
  if (!isRemote || endpoint.kind !== 'tcp' || endpoint.tlsFolder !== undefined) return []
  return [
    `the Docker engine at ${renderDockerHost(endpoint)} is reached over plain TCP (unencrypted): others on the network can use it and read credentials`,
  ]
}

/** Throws a MirrorError (exit 2) for a data folder with a remote engine, because the folder would be on that machine. */
export function refuseRemoteFolder(
  { endpoint, isRemote }: Pick<DockerEngine, 'endpoint' | 'isRemote'>,
  env: CommandEnvironment['env'],
): void {
  if (!isRemote || !env['MIRROR_DATA']) return
  throw new MirrorError(
    `--data does not work with the Docker engine at ${renderDockerHost(endpoint)}, because the folder would be on that machine.`,
    { exit: exitCode.usage, hints: [`Omit --data: the volume ${volumeName} of that engine keeps the cache`] },
  )
}
