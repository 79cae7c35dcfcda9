import { dirname, join } from 'node:path'
import type { DockerEngineInfo } from '../../docker/engine.ts'
import type { ClientLocation, Machine } from '../types.ts'
import { type DockerdProcess, resolveDockerdPath } from './engines.ts'

/** The kinds of engines, which differ in the paths of their files and in their location. */
export type DockerKind = 'system' | 'rootless' | 'desktop' | 'orbstack' | 'colima' | 'vm' | 'file'

/** The configuration files of an engine, and its location. */
export interface DockerInstallation {
  readonly kind: DockerKind
  readonly scope: 'system' | 'user'
  readonly title: string
  /** Undefined when the settings of the engine are not a file of this machine. */
  readonly daemonJson: string | undefined
  readonly certsFolder: string | undefined
  readonly location: ClientLocation
}

/** Determines the kind of an engine from its answer to `docker info`. */
export function getDockerKind(info: DockerEngineInfo, { platform, env }: Machine): DockerKind {
  if (info.operatingSystem === 'Docker Desktop') {
    // A WSL distribution cannot see the settings of Docker Desktop, because they are files of Windows.
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
        // A snap sees its own folders in place of the system's.
        certsFolder: dockerd?.process.program?.startsWith('/snap/')
          ? undefined
          : join(root, 'etc', 'docker', 'certs.d'),
        location: dockerd?.process.sharesNetwork === false ? toApartLocation('dockerd') : { in: 'host' },
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
        location: detached || dockerd?.process.sharesNetwork ? { in: 'host' } : toApartLocation('rootless Docker'),
      }
    }
    case 'desktop': {
      const daemonJson = join(home, '.docker', 'daemon.json')
      const title = `Docker Desktop (${daemonJson})`
      // It is unknown if the virtual machine reads folders for registries.
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

function toApartLocation(what: string): ClientLocation {
  return {
    in: 'apart',
    what,
    why: 'it has a network of its own, and 127.0.0.1 there is not this machine',
    hints: [
      'systemctl --user edit docker   (Environment="DOCKERD_ROOTLESS_ROOTLESSKIT_DISABLE_HOST_LOOPBACK=false")',
      'allowedHosts: ["10.0.2.2"]   (in mirror.yaml, then: mirror up)',
      'mirror configure docker --mirror http://10.0.2.2:5055   (what it calls this machine then)',
    ],
  }
}
