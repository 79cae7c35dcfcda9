import { containerConfig, containerPorts } from '../../app/container/container-config.ts'
import { type HandedFiles, hashOfFiles, readHandedFiles } from '../../app/container/handed-archive.ts'
import { handedCertificates } from '../../app/container/handed-certificates.ts'
import { handedFiles } from '../../app/container/outside.ts'
import { type Config, configHashes, type ListenAddress } from '../../config/config.ts'
import type { MirrorPaths, Surroundings } from '../../config/paths.ts'
import type { EngineInfo } from '../../docker/engine.ts'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { makeFolder } from '../../lib/fs.ts'
import { parseSize } from '../../lib/units.ts'
import { isLoopbackAddress } from '../../server/request-guard.ts'
import { proxyVariables, proxyWarnings, readProxies } from '../../upstream/proxy.ts'
import { type ContainerWish, imageUser, volumeName } from './spec.ts'

export interface WishInput {
  readonly surroundings: Surroundings
  readonly paths: MirrorPaths
  readonly config: Config
  readonly version: string
  /** Registries whose credentials are handed over. */
  readonly credentials: readonly string[]
}

/** The container that the configuration means, but for what only the engine knows. */
export interface Wish {
  readonly wish: Omit<ContainerWish, 'image' | 'networks'>
  readonly files: HandedFiles
  /** What a user should know about it. */
  readonly warnings: string[]
}

const extraCaFile = 'extra-ca.pem'
const defaultMemory = 512 * 1024 ** 2
const leastMemory = 64 * 1024 ** 2

/** Throws a MirrorError (exit 2) for files that cannot be read and settings that cannot be. */
export async function makeWish(input: WishInput, info: EngineInfo): Promise<Wish> {
  const { surroundings, paths, config, credentials } = input
  const { env } = surroundings
  const ports = containerPorts(config)
  const inside = containerConfig(config, ports, credentials)
  const certificates = await handedCertificates(env)
  const files = {
    ...(await readHandedFiles(inside.files)),
    ...(certificates && { [extraCaFile]: certificates }),
    [handedFiles.config]: inside.text,
  }
  const folder = env['MIRROR_DATA'] ? paths.dataDir : undefined
  if (folder !== undefined) await makeFolder(folder)
  // Networks come and go without a new container.
  const { networks: _, ...hashes } = configHashes(config, folder ?? volumeName)
  return {
    files,
    warnings: [...addressWarnings(config), ...containerProxyWarnings(env)],
    wish: {
      version: input.version,
      owner: paths.stateDir,
      configHashes: hashes,
      files: hashOfFiles(files),
      ports,
      data: folder === undefined ? { volume: volumeName } : { folder },
      user: userFor(folder, info),
      memory: memoryOf(env['MIRROR_MEMORY']),
      env: proxyEnvironment(env),
      extraCa: certificates ? extraCaFile : undefined,
      engine: info,
      isEnclosed: isEnclosed(info, surroundings.platform),
    },
  }
}

/** A folder of the caller's is written to as the caller, whom a rootless engine calls root. */
function userFor(folder: string | undefined, { rootless }: EngineInfo): string {
  if (folder === undefined) return imageUser
  if (rootless || process.getuid === undefined || process.getgid === undefined) return rootless ? '0:0' : imageUser
  return `${process.getuid()}:${process.getgid()}`
}

/** Docker Desktop, and any engine for Linux containers on another system, lives in a virtual machine. */
function isEnclosed({ rootless, system }: EngineInfo, platform: Surroundings['platform']): boolean {
  return rootless || system === 'Docker Desktop' || platform !== 'linux'
}

function memoryOf(text: string | undefined): number {
  if (text === undefined || text === '') return defaultMemory
  const size = parseSize(text)
  if (size !== undefined && size >= leastMemory) return size
  throw new MirrorError(`${JSON.stringify(text)} is no amount of memory: a size of at least 64MiB.`, {
    exit: exitCode.usage,
    hints: ['mirror up --runtime container --memory 512MiB'],
  })
}

function proxyEnvironment(env: Surroundings['env']): Record<string, string> {
  return Object.fromEntries(proxyVariables.flatMap((name) => (env[name] ? [[name, env[name]]] : [])))
}

function containerProxyWarnings(env: Surroundings['env']): string[] {
  const proxies = [...readProxies(env).all]
  const local = proxies.filter(([, { isLocal }]) => isLocal)
  const telling = proxies.filter(([, { credential }]) => credential && credential.password !== '')
  return [
    ...proxyWarnings(env),
    ...local.map(([name]) => `${name} names a proxy on this machine's loopback, which a container cannot reach`),
    ...telling.map(([name]) => `${name} holds a password, which whoever may use Docker sees in docker inspect`),
  ]
}

function addressWarnings({ cache, registry }: Config): string[] {
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
