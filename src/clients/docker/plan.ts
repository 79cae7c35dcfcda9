import { BlockList, isIP } from 'node:net'
import { basename, dirname, join } from 'node:path'
import type { DockerEngineInfo } from '../../docker/engine.ts'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { originOf } from '../../oci/reference.ts'
import { majorAndMinor } from '../address.ts'
import { certificatesIn, hostsTomlWithout, isOurHostsToml, renderHostsToml } from '../containerd/hosts-toml.ts'
import { caChange, caFileName, hostsToTrust } from '../files/kinds.ts'
import type { ClientLocation, ConfigPlan, FileChange, FilesNow, Machine, MirrorForClient } from '../types.ts'
import {
  dockerForm,
  type DockerForm,
  type DockerTarget,
  firstWithFolders,
  insecureIn,
  isSameUrl,
  mirrorsIn,
  planDaemonJson,
  stripDaemonJson,
} from './daemon-json.ts'
import { type DockerdProcess, pathOf } from './engines.ts'

/**
 * What has to be written for an engine to come through the mirror. Throws a MirrorError (usage) for files and flags that leave
 * no safe way. https://docs.docker.com/engine/daemon/configure-registry/
 */
export function planDocker(mirror: MirrorForClient, target: DockerTarget, files: FilesNow): ConfigPlan {
  const form = dockerForm(target)
  if (form !== 'folders') refuseForMirrors(mirror, form)
  const forBuilds = buildsNeedFolders(mirror, target)
  const parts = [
    ...(form === 'folders' ? [] : [planDaemonJson(mirror, target, files)]),
    ...(form === 'mirrors' && !forBuilds ? [] : [planHostsFolders(mirror, target, files)]),
  ]
  const { certsFolder } = target
  const ca =
    certsFolder === undefined ? [] : caFiles(mirror, certsFolder).flatMap((path) => caChange(path, mirror.ca, files))
  return {
    changes: [...parts.flatMap(({ changes }) => changes), ...ca],
    notes: [
      sayForm(form, mirror, target),
      ...(form === 'mirrors' && forBuilds ? ['docker build reads the folders, and by them trusts the mirror.'] : []),
      ...parts.flatMap(({ notes }) => notes),
    ],
    todo: [...parts.flatMap(({ todo }) => todo), ...(certsFolder === undefined ? trustByHand(mirror) : [])],
  }
}

/**
 * Whether `docker build` would pass the mirror by without folders: it reads them whatever the image store, and trusts
 * registry-mirrors no further than Docker Hub itself.
 */
function buildsNeedFolders({ ca }: MirrorForClient, { certsFolder, version }: DockerTarget): boolean {
  return ca !== undefined && certsFolder !== undefined && (majorAndMinor(version)?.[0] ?? 0) >= firstWithFolders
}

/** For an engine whose folders cannot be written from here. */
export function trustByHand({ cache, ca }: Pick<MirrorForClient, 'cache' | 'ca'>): string[] {
  if (ca === undefined) return []
  const file = `~/.docker/certs.d/${new URL(cache).host}/ca.crt`
  return [`Have the engine trust the mirror's CA (Docker Desktop: as ${file}, and restart it)`]
}

/** dockerd looks here for what to trust at a host, with every pull. */
function caFiles(mirror: Pick<MirrorForClient, 'cache' | 'registry'>, certsFolder: string): string[] {
  return hostsToTrust(mirror).map((host) => join(certsFolder, host, caFileName))
}

/** Takes the mirror out of files that were changed after us. */
export function stripDocker(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  target: Pick<DockerTarget, 'daemonJson' | 'certsFolder'>,
  files: FilesNow,
): FileChange[] {
  const { daemonJson, certsFolder } = target
  const lists = stripDaemonJson(mirror, daemonJson, files)
  if (certsFolder === undefined) return lists
  const ca = caFiles(mirror, certsFolder).flatMap((path) => caChange(path, undefined, files))
  return [...lists, ...stripHostsFolders(mirror, certsFolder, files), ...ca]
}

function refuseForMirrors(mirror: MirrorForClient, form: DockerForm): void {
  const folders = 'mirror configure docker --client-version 28 --image-store containerd   (for such an engine)'
  const refuse = (message: string, hints: string[]): never => {
    throw new MirrorError(message, { exit: exitCode.usage, hints: form === 'both' ? [...hints, folders] : hints })
  }
  // dockerd asks its mirrors without saying for which registry, and means Docker Hub.
  if (mirror.defaultUpstream !== 'docker.io')
    refuse(
      `Docker would get images of ${mirror.defaultUpstream} for those of Docker Hub: registry-mirrors are for Docker Hub ` +
        'only, and the mirror takes requests without a name for its defaultUpstream.',
      ['Remove "defaultUpstream" from mirror.yaml, then: mirror up'],
    )
  if (new URL(mirror.cache).pathname !== '/')
    refuse(`dockerd takes no mirror with a path: ${mirror.cache}`, ['Give --mirror without one'])
  if (!mirror.fallback)
    refuse('dockerd always goes to Docker Hub when its mirrors fail: it cannot be told otherwise.', [
      'Leave --no-fallback away',
    ])
}

function sayForm(form: DockerForm, { cache }: MirrorForClient, { version, imageStore }: DockerTarget): string {
  const { host } = new URL(cache)
  const what = `Docker${version === undefined ? '' : ` ${version}`}`
  const others = `Other registries: docker pull ${host}/ghcr.io/OWNER/IMAGE, or Docker 28 with the containerd image store.`
  switch (form) {
    case 'folders':
      return `${what} with the containerd image store: every registry comes through the mirror, with no restart.`
    case 'mirrors': {
      const why = imageStore === 'classic' ? ' with the classic image store' : ''
      return `${what}${why} mirrors Docker Hub only. ${others}`
    }
    case 'both':
      return (
        'It is a guess which form this Docker understands, so both are written: registry-mirrors for Docker Hub, and a ' +
        'folder per registry for Docker 28 and later with the containerd image store.'
      )
  }
}

/**
 * A hosts.toml in a folder for each registry. Never `_default`: of a registry with two endpoints the engine forgets that it is
 * insecure, and the user's insecure registries would no longer be reached.
 */
function planHostsFolders(mirror: MirrorForClient, target: DockerTarget, files: FilesNow): ConfigPlan {
  const root = target.certsFolder!
  const insecure = [
    ...target.insecure,
    ...(target.flags['insecure-registry'] ?? []),
    ...insecureIn(target.daemonJson, files.text(target.daemonJson)),
  ]
  const others = otherMirrors(mirror, target, files)
  const changes: FileChange[] = []
  const notes: string[] = []
  for (const registry of mirror.registries) {
    const folder = join(root, registry)
    const path = join(folder, 'hosts.toml')
    const current = files.text(path)
    if (isInsecure(registry, insecure)) {
      notes.push(`${registry} is one of your insecure registries, and stays as it is.`)
    } else if (current !== undefined && !isOurHostsToml(current)) {
      notes.push(`${path} is not ours, and stays as it is: ${registry} does not come through the mirror.`)
    } else {
      const certificates = certificatesIn(namesIn(folder, files))
      const server = mirror.fallback ? originOf(registry) : mirror.cache
      const isHub = registry === 'docker.io'
      const mirrorCa = mirror.ca && `../${new URL(mirror.cache).host}/${caFileName}`
      const { referrers = false } = target
      const hosts = { server, mirror: mirror.cache, mirrorCa, referrers, ...(isHub && { others }), ...certificates }
      changes.push(...files.change(path, renderHostsToml(hosts)))
      if (isHub && others.length > 0)
        notes.push(`${others.join(' and ')} are named in ${path} as well: registry-mirrors are not asked beside it.`)
      if (Object.keys(certificates).length > 0)
        notes.push(`The certificates in ${folder} are named in its hosts.toml, or they would no longer be looked at.`)
    }
  }
  if (files.has(join(root, '_default', 'hosts.toml')))
    notes.push(
      `${join(root, '_default', 'hosts.toml')} no longer holds for registries that have a folder of their own.`,
    )
  if (!mirror.fallback) notes.push('With --no-fallback nothing can be pushed to these registries either.')
  return { changes, notes, todo: [] }
}

/** Takes the mirror out of every hosts.toml of ours. */
function stripHostsFolders({ cache }: { readonly cache: string }, root: string, files: FilesNow): FileChange[] {
  return files.paths
    .filter((path) => basename(path) === 'hosts.toml' && dirname(dirname(path)) === root)
    .flatMap((path) => {
      const text = files.text(path)!
      return isOurHostsToml(text) ? files.change(path, hostsTomlWithout(text, cache, basename(dirname(path)))) : []
    })
}

/** The mirrors of Docker Hub that it has by daemon.json or by a flag, and would no longer be asked. */
function otherMirrors({ cache }: MirrorForClient, target: DockerTarget, files: FilesNow): string[] {
  const text = files.text(target.daemonJson)
  const named = [
    ...target.mirrors,
    ...(target.flags['registry-mirror'] ?? []),
    ...((text === undefined ? undefined : mirrorsIn(target.daemonJson, text)) ?? []),
  ]
  return [...new Set(named.map((url) => url.replace(/\/+$/, '')))].filter((url) => !isSameUrl(url, cache))
}

function namesIn(folder: string, files: FilesNow): string[] {
  return files.paths.filter((path) => dirname(path) === folder).map((path) => basename(path))
}

/** By name, by a network in CIDR form, or because it is on this machine. */
function isInsecure(registry: string, entries: readonly string[]): boolean {
  const { hostname } = new URL(`http://${registry}`)
  const address = hostname.replace(/^\[|\]$/g, '')
  if (hostname === 'localhost' || entries.some((entry) => entry.toLowerCase() === registry)) return true
  const family = isIP(address)
  if (family === 0) return false
  const networks = new BlockList()
  for (const entry of [...entries, '127.0.0.0/8', '::1/128']) {
    const [, network, bits] = /^([0-9a-fA-F.:]+)\/(\d{1,3})$/.exec(entry) ?? []
    const version = isIP(network ?? '')
    // dockerd takes what is no network for a name.
    if (version !== 0 && Number(bits) <= (version === 4 ? 32 : 128))
      networks.addSubnet(network!, Number(bits), version === 4 ? 'ipv4' : 'ipv6')
  }
  return networks.check(address, family === 4 ? 'ipv4' : 'ipv6')
}

/** Whose engine it is, which says where its files are and where it lives. */
export type DockerKind = 'system' | 'rootless' | 'desktop' | 'orbstack' | 'colima' | 'vm' | 'file'

/** An engine's files, and where it lives. */
export interface DockerLocation {
  readonly kind: DockerKind
  readonly scope: 'system' | 'user'
  readonly title: string
  /** Undefined for an engine whose settings are not a file of this machine. */
  readonly daemonJson: string | undefined
  readonly certsFolder: string | undefined
  readonly home: ClientLocation
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
export function locationOf(
  kind: Exclude<DockerKind, 'file'>,
  machine: Machine,
  dockerd: { readonly process: DockerdProcess; readonly configFile: string | undefined } | undefined,
): DockerLocation {
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

function inVm(what: string): ClientLocation {
  return { in: 'vm', what, hostName: 'host.docker.internal' }
}

function apart(what: string): ClientLocation {
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
