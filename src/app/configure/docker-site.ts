import { dirname, join } from 'node:path'
import type { ClientHome } from '../../clients/address.ts'
import type { DockerEngineInfo } from '../../docker/engine.ts'
import { pathOf, type DockerdProcess } from '../../runtime/dockerd-process.ts'
import type { Machine } from '../../clients/types.ts'

/** Whose engine it is, which says where its files are and where it lives. */
export type DockerKind = 'system' | 'rootless' | 'desktop' | 'orbstack' | 'colima' | 'vm' | 'file'

/** An engine's files, and where it lives. */
export interface DockerSite {
  readonly kind: DockerKind
  readonly scope: 'system' | 'user'
  readonly title: string
  /** Undefined for an engine whose settings are not a file of this machine. */
  readonly daemonJson: string | undefined
  readonly certsFolder: string | undefined
  readonly home: ClientHome
}

/** Which kind of engine answers so. */
export function kindOf(info: DockerEngineInfo, { platform, env }: Machine): DockerKind {
  if (info.operatingSystem === 'Docker Desktop') {
    // In a distribution of WSL the settings of Docker Desktop are those of Windows, out of sight.
    return env['WSL_DISTRO_NAME'] ? 'vm' : 'desktop'
  }
  if (info.operatingSystem === 'OrbStack' || info.hostName === 'orbstack') return 'orbstack'
  if (/^colima(-|$)/.test(info.hostName)) return 'colima'
  if (platform !== 'linux') return 'vm'
  return info.isRootless ? 'rootless' : 'system'
}

/** Where an engine of that kind has its files. */
export function siteOf(
  kind: Exclude<DockerKind, 'file'>,
  machine: Machine,
  dockerd: { readonly process: DockerdProcess; readonly configFile: string | undefined } | undefined,
): DockerSite {
  const { home, root, env, detached } = machine
  switch (kind) {
    case 'system': {
      const folder = systemFolder(machine)
      const given = dockerd?.configFile
      const daemonJson =
        given === undefined || dockerd === undefined ? join(folder, 'daemon.json') : pathOf(dockerd.process, given)
      return {
        kind,
        scope: 'system',
        title: `system (${dirname(daemonJson)})`,
        daemonJson,
        // A snap sees folders of its own instead of the system's.
        certsFolder: dockerd?.process.program?.startsWith('/snap/')
          ? undefined
          : join(root, 'etc', 'docker', 'certs.d'),
        home: dockerd?.process.sharesNetwork === false ? apart('dockerd') : { in: 'host' },
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
          given === undefined || dockerd === undefined ? join(folder, 'daemon.json') : pathOf(dockerd.process, given),
        certsFolder: join(folder, 'certs.d'),
        home: detached || dockerd?.process.sharesNetwork ? { in: 'host' } : apart('rootless Docker'),
      }
    }
    case 'desktop': {
      const daemonJson = join(home, '.docker', 'daemon.json')
      const title = `Docker Desktop (${daemonJson})`
      // Whether its virtual machine sees folders for registries is not known.
      return { kind, scope: 'user', title, daemonJson, certsFolder: undefined, home: inVm('Docker Desktop') }
    }
    case 'orbstack': {
      const daemonJson = join(home, '.orbstack', 'config', 'docker.json')
      const title = `OrbStack (${daemonJson})`
      return { kind, scope: 'user', title, daemonJson, certsFolder: undefined, home: inVm('OrbStack') }
    }
    case 'colima':
      return {
        kind,
        scope: 'user',
        title: 'Colima (the "docker" section of its own configuration)',
        daemonJson: undefined,
        certsFolder: undefined,
        home: inVm('Colima'),
      }
    case 'vm':
      return {
        kind,
        scope: 'user',
        title: 'a virtual machine (settings of the program that runs it)',
        daemonJson: undefined,
        certsFolder: undefined,
        home: inVm("Docker's engine"),
      }
  }
}

function systemFolder({ platform, root, env, detached }: Machine): string {
  if (platform !== 'win32') return join(root, 'etc', 'docker')
  return join((!detached && env['ProgramData']) || join(root, 'ProgramData'), 'docker', 'config')
}

function inVm(what: string): ClientHome {
  return { in: 'vm', what, hostName: 'host.docker.internal' }
}

function apart(what: string): ClientHome {
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
