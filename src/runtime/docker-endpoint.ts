import { createHash } from 'node:crypto'
import { readFile, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { errnoOf } from '../lib/errors.ts'

/** Where a Docker engine is spoken to. */
export type DockerEndpoint =
  | { readonly kind: 'socket'; readonly path: string }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number; readonly tlsFolder: string | undefined }

export interface DockerEndpointInput {
  platform: NodeJS.Platform
  env: Readonly<Record<string, string | undefined>>
  homedir: string
}

/**
 * The engine that the `docker` command would speak to: DOCKER_HOST, DOCKER_CONTEXT, the current context, the platform's own.
 * Undefined for one that only the command itself can reach (ssh). https://docs.docker.com/engine/manage-resources/contexts/
 */
export async function findDockerEndpoint({
  platform,
  env,
  homedir,
}: DockerEndpointInput): Promise<DockerEndpoint | undefined> {
  const own: DockerEndpoint = {
    kind: 'socket',
    path: platform === 'win32' ? '//./pipe/docker_engine' : '/var/run/docker.sock',
  }
  const folder = env['DOCKER_CONFIG'] || join(homedir, '.docker')
  const verifies = Boolean(env['DOCKER_TLS_VERIFY'])
  if (env['DOCKER_HOST']) return parseHost(env['DOCKER_HOST'], verifies ? env['DOCKER_CERT_PATH'] || folder : undefined)

  const context = env['DOCKER_CONTEXT'] || stringAt(await readJson(join(folder, 'config.json')), 'currentContext')
  if (!context || context === 'default') return own
  const id = createHash('sha256').update(context).digest('hex')
  const host = stringAt(
    await readJson(join(folder, 'contexts', 'meta', id, 'meta.json')),
    'Endpoints',
    'docker',
    'Host',
  )
  const tls = join(folder, 'contexts', 'tls', id, 'docker')
  return host === undefined ? undefined : parseHost(host, (await isFolder(tls)) ? tls : undefined)
}

function parseHost(host: string, tlsFolder: string | undefined): DockerEndpoint | undefined {
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
