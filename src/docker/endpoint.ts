import { createHash } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { errnoOf } from '../lib/errors.ts'
import { parseSshHost, type SshEndpoint } from '../runtime/ssh-endpoint.ts'

/** Where a Docker engine is spoken to. */
export type DockerEndpoint =
  | { readonly kind: 'socket'; readonly path: string }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number; readonly tlsFolder: string | undefined }
  | SshEndpoint

export interface DockerEndpointInput {
  /** As `process.platform`. */
  platform: string
  env: Readonly<Record<string, string | undefined>>
  homedir: string
}

/** What names the engine that the `docker` command would speak to. */
export interface DockerChoice {
  /** For people: `DOCKER_HOST`, `The Docker context remote`. */
  readonly by: string
  /** As it stands there; undefined for a context that nobody has made. */
  readonly host: string | undefined
  /** Where its certificates are. */
  readonly tlsFolder: string | undefined
}

/**
 * DOCKER_HOST, DOCKER_CONTEXT, the current context; undefined for the platform's own engine.
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
  const context = env['DOCKER_CONTEXT'] || stringAt(await readJson(join(folder, 'config.json')), 'currentContext')
  if (!context || context === 'default') return undefined
  const id = createHash('sha256').update(context).digest('hex')
  const meta = await readJson(join(folder, 'contexts', 'meta', id, 'meta.json'))
  const tls = join(folder, 'contexts', 'tls', id, 'docker')
  return {
    by: `The Docker context ${context}`,
    host: stringAt(meta, 'Endpoints', 'docker', 'Host'),
    tlsFolder: (await isFolder(tls)) ? tls : undefined,
  }
}

/** The engine that the `docker` command would speak to; undefined where what names it names no address. */
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
    // Somebody else's file: whatever is wrong with it, Docker will say.
    if (error instanceof SyntaxError || errnoOf(error) !== undefined) return undefined
    throw error
  }
}

function stringAt(value: unknown, ...keys: string[]): string | undefined {
  let at = value
  for (const key of keys) at = typeof at === 'object' && at !== null ? (at as Record<string, unknown>)[key] : undefined
  return typeof at === 'string' ? at : undefined
}

async function isFolder(path: string): Promise<boolean> {
  try {
    await readdir(path)
    return true
  } catch (error) {
    if (errnoOf(error) === undefined) throw error
    return false
  }
}
