import { resolve } from 'node:path'
import type { DockerEndpoint } from '../../docker/endpoint.ts'
import { MirrorError } from '../../lib/errors.ts'
import { isAtLeast, readersKnowReferrers } from '../address.ts'
import type { ClientAdapter, ClientOptions, ConfigTarget, Machine } from '../types.ts'
import { dockerdFlags, type DockerTarget } from './daemon-json.ts'
import { findEngines, type FoundEngine, usualSocket } from './engines.ts'
import { dockerTarget, manualDockerTarget } from './place.ts'
import { type DockerKind, type DockerLocation, kindOf, locationOf } from './plan.ts'

/** Docker's engine, wherever it runs. */
export const dockerAdapter: ClientAdapter = {
  client: 'docker',
  summary: "daemon.json, or a folder per registry for Docker 28 and later with containerd's image store",

  async find(machine) {
    const engines = await findEngines(machine).catch((error: unknown) => {
      // One on another machine is none of this machine's.
      if (error instanceof MirrorError) return []
      throw error
    })
    const [engine] = engines
    if (engine) return `docker ${engine.info.version} (${engine.info.imageStore} image store)`
    const installed = await installedDockerd(machine)
    return installed && `docker ${installed.version} (no engine answers)`
  },

  async targets(machine, options) {
    if (options.file !== undefined) return [filePlace(machine, options.file, options)]
    if (machine.detached) return [await unseenPlace(machine, options, undefined)]
    const engines = await findEngines(machine)
    const places = engines.map((engine) => ({ engine, site: siteFor(engine, machine) }))
    const fitting = places.filter(({ site }) => options.scope === undefined || site.scope === options.scope)
    if (fitting.length > 0)
      return Promise.all(fitting.map(({ engine, site }) => seenPlace(machine, site, engine, options)))
    return [await unseenPlace(machine, options, await installedDockerd(machine))]
  },

  recall(machine, details) {
    const { kind = 'system', scope, daemonJson, certsFolder, version, imageStore, endpoint } = details
    const site: DockerLocation = {
      ...locationOf(kind === 'file' ? 'system' : (kind as Exclude<DockerKind, 'file'>), machine, undefined),
      kind: kind as DockerKind,
      scope: scope === 'user' ? 'user' : 'system',
      daemonJson,
      certsFolder,
    }
    const place = {
      machine,
      site,
      endpoint: endpoint === undefined ? usualEndpoint(site, machine) : (JSON.parse(endpoint) as DockerEndpoint),
      dockerd: undefined,
      notes: [],
    }
    if (daemonJson === undefined) return manualDockerTarget(place)
    return dockerTarget({
      ...place,
      target: {
        daemonJson,
        certsFolder,
        version,
        imageStore: imageStore as DockerTarget['imageStore'],
        mirrors: [],
        insecure: [],
        flags: {},
      },
    })
  },
}

/** Where the engine would be whose files were written while it was down. */
function usualEndpoint({ kind, daemonJson }: DockerLocation, machine: Machine): DockerEndpoint | undefined {
  const usual = locationOf('system', machine, undefined)
  const isUsual = kind === 'system' && daemonJson === usual.daemonJson
  return isUsual && !machine.detached && machine.platform === 'linux'
    ? { kind: 'socket', path: usualSocket }
    : undefined
}

function siteFor({ info, dockerd }: FoundEngine, machine: Machine): DockerLocation {
  const kind = kindOf(info, machine) as Exclude<DockerKind, 'file'>
  const configFile = dockerd && dockerdFlags(dockerd.args)['config-file']?.at(-1)
  return locationOf(kind, machine, dockerd && { process: dockerd, configFile })
}

/** An engine that answers. */
async function seenPlace(
  machine: Machine,
  site: DockerLocation,
  engine: FoundEngine,
  options: ClientOptions,
): Promise<ConfigTarget> {
  const { endpoint, info, dockerd } = engine
  const { daemonJson, certsFolder } = site
  const unseen = site.kind === 'system' && machine.platform === 'linux' && dockerd === undefined
  const notes = unseen
    ? ['No dockerd was found behind its socket: if it runs elsewhere, it does not see these files (--check tells).']
    : []
  const place = { machine, site, endpoint, dockerd, notes }
  if (daemonJson === undefined) return manualDockerTarget(place)
  return dockerTarget({
    ...place,
    target: {
      daemonJson,
      certsFolder,
      version: options.clientVersion ?? info.version,
      imageStore: options.imageStore ?? info.imageStore,
      referrers: await knowReferrers(machine, options.clientVersion ?? info.version),
      mirrors: info.mirrors,
      insecure: info.insecure,
      flags: dockerd ? dockerdFlags(dockerd.args) : {},
    },
  })
}

/** An engine that nobody answers for: the usual place. */
async function unseenPlace(
  machine: Machine,
  options: ClientOptions,
  installed: InstalledDockerd | undefined,
): Promise<ConfigTarget> {
  const { platform, detached } = machine
  const kind = detached || platform === 'linux' ? (options.scope === 'user' ? 'rootless' : 'system') : 'desktop'
  const site = locationOf(kind, machine, undefined)
  const version = options.clientVersion ?? installed?.version
  const guessed = version === undefined ? 'its version and image store are a guess' : 'its image store is a guess'
  const isKnown = version !== undefined && options.imageStore !== undefined
  return dockerTarget({
    machine,
    site,
    endpoint: undefined,
    dockerd: undefined,
    notes: detached || isKnown ? [] : [`No Docker engine answers: ${guessed}.`],
    target: {
      ...targetOf(site.daemonJson!, site.certsFolder, version, options),
      referrers: await knowReferrers(machine, version),
      flags: kind === 'system' && installed ? installed.flags : {},
    },
  })
}

/** containerd and nerdctl may read Docker's folders as well. */
async function knowReferrers(machine: Machine, version: string | undefined): Promise<boolean> {
  return isAtLeast(version, 29, 1) && readersKnowReferrers(machine, ['containerd', 'nerdctl'])
}

/** A daemon.json that the user names. */
function filePlace(machine: Machine, file: string, options: ClientOptions): ConfigTarget {
  const daemonJson = resolve(machine.cwd, file)
  const site: DockerLocation = {
    kind: 'file',
    scope: 'user',
    title: daemonJson,
    daemonJson,
    certsFolder: undefined,
    home: { in: 'host' },
  }
  const target = targetOf(daemonJson, undefined, options.clientVersion, options)
  return dockerTarget({ machine, site, endpoint: undefined, dockerd: undefined, notes: [], target })
}

function targetOf(
  daemonJson: string,
  certsFolder: string | undefined,
  version: string | undefined,
  { imageStore }: ClientOptions,
): DockerTarget {
  return { daemonJson, certsFolder, version, imageStore, mirrors: [], insecure: [], flags: {} }
}

interface InstalledDockerd {
  readonly version: string
  /** That systemd would start it with. */
  readonly flags: DockerTarget['flags']
}

/** The dockerd of this machine, though nobody can speak to it. */
async function installedDockerd({ runCommand }: Machine): Promise<InstalledDockerd | undefined> {
  const timeoutMs = 3000
  const said = await runCommand('dockerd', ['--version'], { timeoutMs })
  const version = /^Docker version (\S+?),? /.exec(said?.stdout ?? '')?.[1]
  if (version === undefined) return undefined
  const unit = await runCommand('systemctl', ['show', '--property=ExecStart', 'docker.service'], { timeoutMs })
  // `ExecStart={ path=/usr/bin/dockerd ; argv[]=/usr/bin/dockerd -H fd:// ; ignore_errors=no ; … }`
  const commandLine = /argv\[\]=(.*?) ;/.exec(unit?.stdout ?? '')?.[1] ?? ''
  return { version, flags: dockerdFlags(commandLine.split(' ')) }
}
