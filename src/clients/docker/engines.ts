import { readdir, readFile, readlink, realpath } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import { createDockerEngine } from '../../docker/dockerode-engine.ts'
import { type DockerEndpoint, findDockerEndpoint, renderDockerHost } from '../../docker/endpoint.ts'
import type { DockerEngineInfo } from '../../docker/engine.ts'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { ifVisible } from '../../lib/fs.ts'
import type { ClientLocation, Machine } from '../types.ts'

/** Holds the socket that `docker` uses by default. */
export const defaultSocket = '/var/run/docker.sock'

type EngineMachine = Pick<Machine, 'platform' | 'env' | 'home'>

/** Holds an engine that answers. */
export interface FoundEngine {
  readonly endpoint: DockerEndpoint
  readonly info: DockerEngineInfo
  /** Is undefined when the engine does not run on this machine, or when several processes listen at the endpoint. */
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

/** Lists the programs to try for dockerd. On Linux, an ordinary user's PATH lacks its folder. */
export function listDockerdPrograms(platform: string): readonly string[] {
  return platform === 'linux' ? ['dockerd', '/usr/sbin/dockerd'] : ['dockerd']
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

/** Describes a running dockerd of this machine. */
export interface DockerdProcess {
  readonly pid: number
  /** Holds the path of its executable; undefined without permission to read it. */
  readonly program: string | undefined
  readonly args: readonly string[]
  /** Holds its working directory, which relative arguments start from; undefined without permission to read it. */
  readonly folder: string | undefined
  /** Is true when it shares this process's network namespace, and so 127.0.0.1; undefined without permission to read it. */
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
  const readProcessLink = (name: string) => ifVisible(readlink(`/proc/${pid}/${name}`))
  const [program, folder, network, ownNetwork] = await Promise.all([
    readProcessLink('exe'),
    readProcessLink('cwd'),
    readProcessLink('ns/net'),
    ifVisible(readlink('/proc/self/ns/net')),
  ])
  return { pid, program, folder, args, sharesNetwork: network === undefined ? undefined : network === ownNetwork }
}

/** Checks that the process has an open socket that listens at one of the paths. */
async function isListening(pid: string, paths: readonly (string | undefined)[]): Promise<boolean> {
  // Read the fields Num RefCount Protocol Flags Type St Inode Path. Flag 00010000 marks a listening socket.
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

/** Distinguishes the engines, which differ in the paths of their files and in their location. */
export type DockerKind = 'system' | 'rootless' | 'desktop' | 'orbstack' | 'colima' | 'vm' | 'file'

/** Locates the configuration files of an engine, and the engine itself. */
export interface DockerInstallation {
  readonly kind: DockerKind
  readonly scope: 'system' | 'user'
  readonly title: string
  /** Is undefined when the settings of the engine are not a file of this machine. */
  readonly daemonJson: string | undefined
  readonly certsFolder: string | undefined
  readonly location: ClientLocation
}

/** Determines the kind of an engine from its answer to `docker info`. */
export function getDockerKind(info: DockerEngineInfo, { platform, env }: Machine): DockerKind {
  if (info.operatingSystem === 'Docker Desktop') {
    // Treat it as a virtual machine in a WSL distribution, which cannot see the settings: they are files of Windows.
    return env['WSL_DISTRO_NAME'] ? 'vm' : 'desktop'
  }
  if (info.operatingSystem === 'OrbStack' || info.hostName === 'orbstack') return 'orbstack'
  if (/^colima(-|$)/.test(info.hostName)) return 'colima'
  if (platform !== 'linux') return 'vm'
  return info.isRootless ? 'rootless' : 'system'
}

/** Returns the file paths and the location of an engine. `dockerd`: its process, and the value of its `--config-file`. */
export function locateInstallation(
  kind: Exclude<DockerKind, 'file'>,
  machine: Machine,
  dockerd: { readonly process: DockerdProcess; readonly configFile: string | undefined } | undefined,
): DockerInstallation {
  const { home, root, env, detached } = machine
  switch (kind) {
    case 'system': {
      const folder = getSystemFolder(machine)
      const given = dockerd?.configFile
      const daemonJson =
        given === undefined || dockerd === undefined
          ? join(folder, 'daemon.json')
          : resolveDockerdPath(dockerd.process, given)
      return {
        kind,
        scope: 'system',
        title: `system (${dirname(daemonJson)})`,
        daemonJson,
        // Leave out a snap, which sees its own folders in place of the system's.
        certsFolder: dockerd?.process.program?.startsWith('/snap/')
          ? undefined
          : join(root, 'etc', 'docker', 'certs.d'),
        location: dockerd?.process.sharesNetwork === false ? toIsolatedLocation('dockerd') : { in: 'host' },
      }
    }
    case 'rootless': {
      const settings = (!detached && env['XDG_CONFIG_HOME']) || join(home, '.config')
      const given = dockerd?.configFile
      const folder = join(settings, 'docker')
      return {
        kind,
        scope: 'user',
        title: `rootless Docker of this user (${folder})`,
        daemonJson:
          given === undefined || dockerd === undefined
            ? join(folder, 'daemon.json')
            : resolveDockerdPath(dockerd.process, given),
        certsFolder: join(folder, 'certs.d'),
        location: detached || dockerd?.process.sharesNetwork ? { in: 'host' } : toIsolatedLocation('rootless Docker'),
      }
    }
    case 'desktop': {
      const daemonJson = join(home, '.docker', 'daemon.json')
      const title = `Docker Desktop (${daemonJson})`
      // Leave out the folder, because it is unknown if the virtual machine reads folders for registries.
      return {
        kind,
        scope: 'user',
        title,
        daemonJson,
        certsFolder: undefined,
        location: toVmLocation('Docker Desktop'),
      }
    }
    case 'orbstack': {
      const daemonJson = join(home, '.orbstack', 'config', 'docker.json')
      const title = `OrbStack (${daemonJson})`
      return { kind, scope: 'user', title, daemonJson, certsFolder: undefined, location: toVmLocation('OrbStack') }
    }
    case 'colima':
      return {
        kind,
        scope: 'user',
        title: 'Colima (the "docker" section of its own configuration)',
        daemonJson: undefined,
        certsFolder: undefined,
        location: toVmLocation('Colima'),
      }
    case 'vm':
      return {
        kind,
        scope: 'user',
        title: 'a virtual machine (settings of the program that runs it)',
        daemonJson: undefined,
        certsFolder: undefined,
        location: toVmLocation("Docker's engine"),
      }
  }
}

function getSystemFolder({ platform, root, env, detached }: Machine): string {
  if (platform !== 'win32') return join(root, 'etc', 'docker')
  return join((!detached && env['ProgramData']) || join(root, 'ProgramData'), 'docker', 'config')
}

function toVmLocation(what: string): ClientLocation {
  return { in: 'vm', what, hostName: 'host.docker.internal' }
}

function toIsolatedLocation(what: string): ClientLocation {
  return {
    in: 'isolated',
    what,
    why: 'it has a network of its own, and 127.0.0.1 there is not this machine',
    hints: [
      '1. systemctl --user edit docker   (add: [Service] Environment="DOCKERD_ROOTLESS_ROOTLESSKIT_DISABLE_HOST_LOOPBACK=false")',
      '2. systemctl --user restart docker',
      '3. mirror up   (after this line in mirror.yaml: allowedHosts: ["10.0.2.2"])',
      '4. mirror configure docker --mirror http://10.0.2.2:PORT   (its address of this machine then)',
    ],
  }
}
