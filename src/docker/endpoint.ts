import { createHash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { getErrno } from '../lib/errors.ts'
import { isLoopbackAddress, getNetworkInterfaces } from '../lib/network.ts'

/** Address of a Docker engine. */
export type DockerEndpoint =
  | { readonly kind: 'socket'; readonly path: string }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number; readonly tlsFolder: string | undefined }
  | SshEndpoint

interface DockerEndpointInput {
  /** Holds the value of `process.platform`. */
  platform: string
  env: Readonly<Record<string, string | undefined>>
  homedir: string
}

/** Names the setting that chooses the engine of the `docker` command. */
interface DockerChoice {
  /** Names the setting in messages: `DOCKER_HOST`, `The Docker context remote`. */
  readonly by: string
  /** Holds the value of the setting; undefined for a context that does not exist. */
  readonly host: string | undefined
  /** Holds the folder of its certificates. */
  readonly tlsFolder: string | undefined
}

/**
 * Reads DOCKER_HOST, DOCKER_CONTEXT or the current context, in this order; undefined for the platform's default engine.
 * https://docs.docker.com/engine/manage-resources/contexts/
 */
export async function findDockerChoice({
  env,
  homedir,
}: Pick<DockerEndpointInput, 'env' | 'homedir'>): Promise<DockerChoice | undefined> {
  const folder = env['DOCKER_CONFIG'] || join(homedir, '.docker')
  if (env['DOCKER_HOST']) {
    const tlsFolder = env['DOCKER_TLS_VERIFY'] ? resolve(env['DOCKER_CERT_PATH'] || folder) : undefined
    return { by: 'DOCKER_HOST', host: env['DOCKER_HOST'], tlsFolder }
  }
  const context = env['DOCKER_CONTEXT'] || readStringAt(await readJson(join(folder, 'config.json')), 'currentContext')
  if (!context || context === 'default') return undefined
  const id = createHash('sha256').update(context).digest('hex')
  const meta = await readJson(join(folder, 'contexts', 'meta', id, 'meta.json'))
  const tls = join(folder, 'contexts', 'tls', id, 'docker')
  return {
    by: `The Docker context ${context}`,
    host: readStringAt(meta, 'Endpoints', 'docker', 'Host'),
    tlsFolder: (await isFolder(tls)) ? tls : undefined,
  }
}

/** Finds the engine that the `docker` command would use; undefined when the setting is not a valid address. */
export async function findDockerEndpoint(input: DockerEndpointInput): Promise<DockerEndpoint | undefined> {
  const choice = await findDockerChoice(input)
  if (choice === undefined)
    return { kind: 'socket', path: input.platform === 'win32' ? '//./pipe/docker_engine' : '/var/run/docker.sock' }
  return choice.host === undefined ? undefined : parseHost(choice.host, choice.tlsFolder)
}

function parseHost(host: string, tlsFolder: string | undefined): DockerEndpoint | undefined {
  if (host.startsWith('ssh:')) return parseSshHost(host)
  const socket = /^(?:unix|npipe):\/\/(.+)$/.exec(host)?.[1]
  if (socket !== undefined) return { kind: 'socket', path: socket }
  const tcp = /^(?:tcp|https?):\/\/(\[[^\]]+\]|[^:/]+)(?::(\d+))?\/?$/.exec(host)
  if (tcp === null) return undefined
  const port = tcp[2] === undefined ? (tlsFolder === undefined ? 2375 : 2376) : Number(tcp[2])
  return { kind: 'tcp', host: tcp[1]!.replace(/^\[|\]$/g, ''), port, tlsFolder }
}

async function readJson(path: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(path, 'utf8')) as unknown
  } catch (error) {
    // Ignores a broken file of Docker, which reports the problem itself.
    if (error instanceof SyntaxError || getErrno(error) !== undefined) return undefined
    throw error
  }
}

function readStringAt(value: unknown, ...keys: string[]): string | undefined {
  let at = value
  for (const key of keys) at = typeof at === 'object' && at !== null ? (at as Record<string, unknown>)[key] : undefined
  return typeof at === 'string' ? at : undefined
}

async function isFolder(path: string): Promise<boolean> {
  try {
    await readdir(path)
    return true
  } catch (error) {
    if (getErrno(error) === undefined) throw error
    return false
  }
}

/** Renders the endpoint as a value of DOCKER_HOST, also when another setting chose it. */
export function renderDockerHost(endpoint: DockerEndpoint): string {
  if (endpoint.kind === 'socket')
    return `${endpoint.path.startsWith('//./pipe/') ? 'npipe' : 'unix'}://${endpoint.path}`
  const { kind, host, port } = endpoint
  const user = endpoint.kind === 'ssh' && endpoint.user !== undefined ? `${encodeURIComponent(endpoint.user)}@` : ''
  return `${kind}://${user}${host.includes(':') ? `[${host}]` : host}${port === undefined ? '' : `:${port}`}`
}

/**
 * Returns whether an engine runs on another machine, where it publishes ports and mounts folders. ssh counts as remote even to
 * localhost, because virtual machines are reached like that.
 */
export function isRemoteEngine(endpoint: DockerEndpoint): boolean {
  if (endpoint.kind !== 'tcp') return endpoint.kind === 'ssh'
  const { host } = endpoint
  return !(
    host === 'localhost' ||
    isLoopbackAddress(host) ||
    getNetworkInterfaces().some(({ address }) => address === host)
  )
}

/** Parses a recorded endpoint; undefined when it is invalid. */
export function parseRecordedEndpoint(value: Record<string, unknown>): DockerEndpoint | undefined {
  const { kind, path, host, user, port, tlsFolder } = value
  if (kind === 'socket' && typeof path === 'string') return { kind, path }
  if (typeof host !== 'string') return undefined
  const numbered = typeof port === 'number' ? port : undefined
  if (kind === 'ssh') return { kind, host, user: typeof user === 'string' ? user : undefined, port: numbered }
  if (kind !== 'tcp' || numbered === undefined) return undefined
  return { kind, host, port: numbered, tlsFolder: typeof tlsFolder === 'string' ? tlsFolder : undefined }
}

/** Names a machine whose Docker engine the user's own ssh reaches; ssh's configuration decides the undefined parts. */
export interface SshEndpoint {
  readonly kind: 'ssh'
  readonly host: string
  readonly user: string | undefined
  readonly port: number | undefined
}

/**
 * Parses `ssh://[user@]host[:port]`; undefined for anything else, for example a password, a path or a host that looks like an
 * option, like in `docker`. https://docs.docker.com/engine/security/protect-access/
 */
function parseSshHost(text: string): SshEndpoint | undefined {
  const found = /^ssh:\/\/(?:([^@:/?#\s]+)@)?(\[[\da-f:.]+(?:%[\w.-]+)?\]|[^@:/?#[\]\s]+)(?::(\d{1,5}))?\/?$/i.exec(
    text,
  )
  const host = found?.[2]?.replace(/^\[|\]$/g, '')
  const user = decodeUser(found?.[1])
  if (host === undefined || host.startsWith('-') || (found?.[1] !== undefined && user === undefined)) return undefined
  return { kind: 'ssh', host, user, port: found?.[3] === undefined ? undefined : Number(found[3]) }
}

function decodeUser(text: string | undefined): string | undefined {
  try {
    return text && decodeURIComponent(text)
  } catch (error) {
    if (error instanceof URIError) return undefined
    throw error
  }
}
