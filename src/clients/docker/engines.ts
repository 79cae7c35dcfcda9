import { readdir, readFile, readlink, realpath } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import { createDockerEngine } from '../../docker/dockerode-engine.ts'
import { type DockerEndpoint, findDockerEndpoint, renderDockerHost } from '../../docker/endpoint.ts'
import type { DockerEngineInfo } from '../../docker/engine.ts'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { ifVisible } from '../../lib/fs.ts'
import type { Machine } from '../types.ts'

/** The socket that `docker` uses by default. */
export const defaultSocket = '/var/run/docker.sock'

type EngineMachine = Pick<Machine, 'platform' | 'env' | 'home'>

/** An engine that answers. */
export interface FoundEngine {
  readonly endpoint: DockerEndpoint
  readonly info: DockerEngineInfo
  /** Undefined when it does not run on this machine, or when several processes listen at the endpoint. */
  readonly dockerd: DockerdProcess | undefined
}

/**
 * Finds the engine that the `docker` command uses and, unless the user has chosen one, the engines at the other well-known
 * sockets. Throws MirrorError (missing) for an engine on another machine, because its files are not on this one.
 */
export async function findEngines(machine: EngineMachine): Promise<FoundEngine[]> {
  const engines = await Promise.all((await listEndpoints(machine)).map(findEngine))
  return engines.filter((engine) => engine !== undefined)
}

/** Checks that an engine of this machine answers. */
export async function hasEngine(machine: EngineMachine): Promise<boolean> {
  try {
    return (await findEngines(machine)).length > 0
  } catch (error) {
    if (error instanceof MirrorError) return false
    throw error
  }
}

async function findEngine(endpoint: DockerEndpoint): Promise<FoundEngine | undefined> {
  const info = await createDockerEngine(endpoint).findInfo()
  return info && !info.isPodman ? { endpoint, info, dockerd: await findDockerd(endpoint) } : undefined
}

async function listEndpoints({ platform, env, home }: EngineMachine): Promise<DockerEndpoint[]> {
  const chosen = await findDockerEndpoint({ platform, env, homedir: home })
  const isHere = chosen?.kind === 'socket' || (chosen?.kind === 'tcp' && /^(localhost|127\..*|::1)$/.test(chosen.host))
  if (!isHere) {
    const where = chosen === undefined ? 'a connection that only the docker command can use' : renderDockerHost(chosen)
    throw new MirrorError(`The Docker engine is at ${where}, so its files are on another machine.`, {
      exit: exitCode.missing,
      hints: [
        'mirror configure docker --mirror URL   (on that machine)',
        'docker context use default   (selects the engine of this machine)',
      ],
    })
  }
  const isChosen = Boolean(env['DOCKER_HOST']) || chosen.kind === 'tcp' || chosen.path !== defaultSocket
  if (isChosen || platform === 'win32') return [chosen]
  const others = [
    ...(env['XDG_RUNTIME_DIR'] ? [join(env['XDG_RUNTIME_DIR'], 'docker.sock')] : []),
    ...['.docker/desktop/docker.sock', '.docker/run/docker.sock', '.colima/default/docker.sock'].map((path) =>
      join(home, path),
    ),
    join(home, '.orbstack', 'run', 'docker.sock'),
  ]
  const sockets = new Map<string, string>()
  for (const path of [chosen.path, ...others]) {
    const real = await ifVisible(realpath(path))
    if (real !== undefined && !sockets.has(real)) sockets.set(real, path)
  }
  return [...sockets.values()].map((path) => ({ kind: 'socket', path }))
}

/** A running dockerd of this machine. */
export interface DockerdProcess {
  readonly pid: number
  /** The path of its executable; undefined without permission to read it. */
  readonly program: string | undefined
  readonly args: readonly string[]
  /** Its working directory, which relative arguments start from; undefined without permission to read it. */
  readonly folder: string | undefined
  /** True when it shares this process's network namespace, and so 127.0.0.1; undefined without permission to read it. */
  readonly sharesNetwork: boolean | undefined
}

/**
 * Finds the dockerd that listens at the endpoint, by proc(5). Undefined without /proc, for an engine on another or a virtual
 * machine, and when several processes match.
 */
export async function findDockerd(endpoint: DockerEndpoint): Promise<DockerdProcess | undefined> {
  if (endpoint.kind !== 'socket') return undefined
  const paths = [endpoint.path, await ifVisible(realpath(endpoint.path))]
  const found: DockerdProcess[] = []
  for (const entry of (await ifVisible(readdir('/proc'))) ?? []) {
    if (!/^\d+$/.test(entry)) continue
    const commandLine = await ifVisible(readFile(`/proc/${entry}/cmdline`, 'utf8'))
    const [name = '', ...args] = (commandLine ?? '').split('\0').slice(0, -1)
    if (basename(name) === 'dockerd' && (await isListening(entry, paths)))
      found.push(await readProcess(Number(entry), args))
  }
  return found.length === 1 ? found[0] : undefined
}

/** Resolves a path among the arguments of dockerd to an absolute one. */
export function resolveDockerdPath({ folder }: DockerdProcess, path: string): string {
  return resolve(folder ?? '/', path)
}

async function readProcess(pid: number, args: string[]): Promise<DockerdProcess> {
  const linkOf = (name: string) => ifVisible(readlink(`/proc/${pid}/${name}`))
  const [program, folder, network, ownNetwork] = await Promise.all([
    linkOf('exe'),
    linkOf('cwd'),
    linkOf('ns/net'),
    ifVisible(readlink('/proc/self/ns/net')),
  ])
  return { pid, program, folder, args, sharesNetwork: network === undefined ? undefined : network === ownNetwork }
}

/** Checks that the process has an open socket that listens at one of the paths. */
async function isListening(pid: string, paths: readonly (string | undefined)[]): Promise<boolean> {
  // Fields: Num RefCount Protocol Flags Type St Inode Path. Flag 00010000 marks a listening socket.
  const lines = ((await ifVisible(readFile(`/proc/${pid}/net/unix`, 'utf8'))) ?? '').split('\n')
  const inodes = lines.flatMap((line) => {
    const fields = line.trim().split(/\s+/)
    return fields[3] === '00010000' && paths.includes(fields[7]) ? [fields[6]!] : []
  })
  if (inodes.length === 0) return false
  const files = await ifVisible(readdir(`/proc/${pid}/fd`))
  // Accept another user's process: its open files are unreadable, but its network namespace has the socket.
  if (files === undefined) return true
  for (const file of files) {
    const target = await ifVisible(readlink(`/proc/${pid}/fd/${file}`))
    if (inodes.some((inode) => target === `socket:[${inode}]`)) return true
  }
  return false
}
