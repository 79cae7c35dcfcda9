import { readdir, readFile, readlink, realpath } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import { createDockerodeEngine } from '../../docker/dockerode.ts'
import { type DockerEndpoint, findDockerEndpoint, engineHost } from '../../docker/endpoint.ts'
import type { DockerEngineInfo } from '../../docker/engine.ts'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { ifVisible } from '../../lib/fs.ts'
import type { Machine } from '../types.ts'

/** Where `docker` looks when nothing else was chosen. */
export const usualSocket = '/var/run/docker.sock'

type EngineMachine = Pick<Machine, 'platform' | 'env' | 'home'>

/** An engine that answers. */
export interface FoundEngine {
  readonly endpoint: DockerEndpoint
  readonly info: DockerEngineInfo
  /** Undefined when it does not run beside us, or could not be told from others. */
  readonly dockerd: DockerdProcess | undefined
}

/**
 * The engine that the `docker` command speaks to and, where nothing else was chosen, those at the other usual sockets. Throws a
 * MirrorError (missing) for one on another machine, whose files are not here.
 */
export async function findEngines(machine: EngineMachine): Promise<FoundEngine[]> {
  const engines = await Promise.all((await endpointsOf(machine)).map(lookAt))
  return engines.filter((engine) => engine !== undefined)
}

/** Whether one of this machine answers. */
export async function hasEngine(machine: EngineMachine): Promise<boolean> {
  try {
    return (await findEngines(machine)).length > 0
  } catch (error) {
    if (error instanceof MirrorError) return false
    throw error
  }
}

async function lookAt(endpoint: DockerEndpoint): Promise<FoundEngine | undefined> {
  const info = await createDockerodeEngine(endpoint).info()
  return info && !info.isPodman ? { endpoint, info, dockerd: await findDockerd(endpoint) } : undefined
}

async function endpointsOf({ platform, env, home }: EngineMachine): Promise<DockerEndpoint[]> {
  const chosen = await findDockerEndpoint({ platform, env, homedir: home })
  const isHere = chosen?.kind === 'socket' || (chosen?.kind === 'tcp' && /^(localhost|127\..*|::1)$/.test(chosen.host))
  if (!isHere) {
    const where = chosen === undefined ? 'a way that only docker itself knows' : engineHost(chosen)
    throw new MirrorError(`Docker's engine is reached by ${where}: its files are on another machine.`, {
      exit: exitCode.missing,
      hints: [
        'mirror configure docker --mirror URL   (on that machine)',
        'docker context use default   (for the engine of this one)',
      ],
    })
  }
  const isChosen = Boolean(env['DOCKER_HOST']) || chosen.kind === 'tcp' || chosen.path !== usualSocket
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

/** A dockerd of this machine. */
export interface DockerdProcess {
  readonly pid: number
  /** Its program; undefined when this user may not see it. */
  readonly program: string | undefined
  readonly args: readonly string[]
  /** What relative paths among its arguments start from; undefined when this user may not see it. */
  readonly folder: string | undefined
  /** Whether its network, and so its 127.0.0.1, is ours; undefined when this user may not see it. */
  readonly sharesNetwork: boolean | undefined
}

/**
 * The dockerd that listens at the endpoint, by proc(5); undefined where there is no /proc, for an engine on another machine or in
 * a virtual one, and when it cannot be told which of several it is.
 */
export async function findDockerd(endpoint: DockerEndpoint): Promise<DockerdProcess | undefined> {
  if (endpoint.kind !== 'socket') return undefined
  const paths = [endpoint.path, await ifVisible(realpath(endpoint.path))]
  const found: DockerdProcess[] = []
  for (const entry of (await ifVisible(readdir('/proc'))) ?? []) {
    if (!/^\d+$/.test(entry)) continue
    const commandLine = await ifVisible(readFile(`/proc/${entry}/cmdline`, 'utf8'))
    const [name = '', ...args] = (commandLine ?? '').split('\0').slice(0, -1)
    if (basename(name) === 'dockerd' && (await listens(entry, paths))) found.push(await look(Number(entry), args))
  }
  return found.length === 1 ? found[0] : undefined
}

/** A path among its arguments, as this process would open it. */
export function pathOf({ folder }: DockerdProcess, path: string): string {
  return resolve(folder ?? '/', path)
}

async function look(pid: number, args: string[]): Promise<DockerdProcess> {
  const linkOf = (name: string) => ifVisible(readlink(`/proc/${pid}/${name}`))
  const [program, folder, network, ours] = await Promise.all([
    linkOf('exe'),
    linkOf('cwd'),
    linkOf('ns/net'),
    ifVisible(readlink('/proc/self/ns/net')),
  ])
  return { pid, program, folder, args, sharesNetwork: network === undefined ? undefined : network === ours }
}

/** Whether one of the sockets at those paths, in its own network, is among its open files. */
async function listens(pid: string, paths: readonly (string | undefined)[]): Promise<boolean> {
  // Num RefCount Protocol Flags Type St Inode Path; flag 00010000 is that of one that listens.
  const lines = ((await ifVisible(readFile(`/proc/${pid}/net/unix`, 'utf8'))) ?? '').split('\n')
  const inodes = lines.flatMap((line) => {
    const fields = line.trim().split(/\s+/)
    return fields[3] === '00010000' && paths.includes(fields[7]) ? [fields[6]!] : []
  })
  if (inodes.length === 0) return false
  const files = await ifVisible(readdir(`/proc/${pid}/fd`))
  // Another user's: that its network has the socket is all there is to see.
  if (files === undefined) return true
  for (const file of files) {
    const target = await ifVisible(readlink(`/proc/${pid}/fd/${file}`))
    if (inodes.some((inode) => target === `socket:[${inode}]`)) return true
  }
  return false
}
