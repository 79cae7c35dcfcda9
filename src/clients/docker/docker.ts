import { join, resolve } from 'node:path'
import { createDockerEngine } from '../../docker/dockerode-engine.ts'
import type { DockerEndpoint } from '../../docker/endpoint.ts'
import { MirrorError } from '../../lib/errors.ts'
import { systemClock } from '../../lib/time.ts'
import { allSupportReferrers, isAtLeast } from '../address.ts'
import { localFiles } from '../files/local.ts'
import type { ClientAdapter, ClientOptions, ConfigPlan, ConfigTarget, Machine, MirrorForClient } from '../types.ts'
import { type DockerTarget, getDockerForm, parseDockerdFlags, validateDaemonJson } from './daemon-json.ts'
import { buildsAfterReload, createDockerReload, getReloadCommand, observeDocker } from './dockerd.ts'
import {
  defaultSocket,
  type DockerdProcess,
  type DockerInstallation,
  type DockerKind,
  findEngines,
  type FoundEngine,
  getDockerKind,
  listDockerdPrograms,
  locateInstallation,
} from './engines.ts'
import { inspectDocker } from './inspect.ts'
import { listTrustSteps, planDocker, stripDocker } from './plan.ts'

/** Configures the Docker engine: of the system, rootless, or in a virtual machine. */
export const dockerAdapter: ClientAdapter = {
  client: 'docker',
  summary: "daemon.json, or a folder per registry for Docker 28 and later with containerd's image store",

  async find(machine) {
    const engines = await findEngines(machine).catch((error: unknown) => {
      // Leave out an engine on another machine: it is not a client of this machine.
      if (error instanceof MirrorError) return []
      throw error
    })
    const [engine] = engines
    if (engine) return `docker ${engine.info.version} (${engine.info.imageStore} image store)`
    const installed = await findInstalledDockerd(machine)
    return installed && `docker ${installed.version} (no engine answers)`
  },

  async findTargets(machine, options) {
    if (options.file !== undefined) return [createFileTarget(machine, options.file, options)]
    if (machine.detached) return [await createDefaultTarget(machine, options, undefined)]
    const engines = await findEngines(machine)
    const candidates = engines.map((engine) => ({ engine, installation: getInstallation(engine, machine) }))
    const fitting = candidates.filter(
      ({ installation }) => options.scope === undefined || installation.scope === options.scope,
    )
    if (fitting.length > 0)
      return Promise.all(
        fitting.map(({ engine, installation }) => createFoundTarget(machine, installation, engine, options)),
      )
    return [await createDefaultTarget(machine, options, await findInstalledDockerd(machine))]
  },

  restoreTarget(machine, details) {
    const { kind = 'system', scope, daemonJson, certsFolder, version, imageStore, endpoint } = details
    const installation: DockerInstallation = {
      ...locateInstallation(kind === 'file' ? 'system' : (kind as Exclude<DockerKind, 'file'>), machine, undefined),
      kind: kind as DockerKind,
      scope: scope === 'user' ? 'user' : 'system',
      daemonJson,
      certsFolder,
    }
    const common = {
      machine,
      installation,
      endpoint:
        endpoint === undefined ? getDefaultEndpoint(installation, machine) : (JSON.parse(endpoint) as DockerEndpoint),
      dockerd: undefined,
      notes: [],
    }
    if (daemonJson === undefined) return createManualTarget(common)
    return createConfigTarget({
      ...common,
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

/** Returns the socket of an engine that did not run when its files were written; undefined when the socket is unknown. */
function getDefaultEndpoint({ kind, daemonJson }: DockerInstallation, machine: Machine): DockerEndpoint | undefined {
  const defaultInstallation = locateInstallation('system', machine, undefined)
  const isDefault = kind === 'system' && daemonJson === defaultInstallation.daemonJson
  return isDefault && !machine.detached && machine.platform === 'linux'
    ? { kind: 'socket', path: defaultSocket }
    : undefined
}

function getInstallation({ info, dockerd }: FoundEngine, machine: Machine): DockerInstallation {
  const kind = getDockerKind(info, machine) as Exclude<DockerKind, 'file'>
  const configFile = dockerd && parseDockerdFlags(dockerd.args)['config-file']?.at(-1)
  return locateInstallation(kind, machine, dockerd && { process: dockerd, configFile })
}

/** Creates the target of an engine that answers. */
async function createFoundTarget(
  machine: Machine,
  installation: DockerInstallation,
  engine: FoundEngine,
  options: ClientOptions,
): Promise<ConfigTarget> {
  const { endpoint, info, dockerd } = engine
  const { daemonJson, certsFolder } = installation
  const isHidden = installation.kind === 'system' && machine.platform === 'linux' && dockerd === undefined
  const notes = isHidden
    ? [
        'No dockerd was found behind the socket. If it runs in a container or VM, it does not see these files; verify with --check.',
      ]
    : []
  const common = { machine, installation, endpoint, dockerd, notes }
  if (daemonJson === undefined) return createManualTarget(common)
  return createConfigTarget({
    ...common,
    target: {
      daemonJson,
      certsFolder,
      version: options.clientVersion ?? info.version,
      imageStore: options.imageStore ?? info.imageStore,
      referrers: await supportsReferrers(machine, options.clientVersion ?? info.version),
      mirrors: info.mirrors,
      insecure: info.insecure,
      flags: dockerd ? parseDockerdFlags(dockerd.args) : {},
    },
  })
}

/** Creates the target of an engine that does not answer, with the default paths. */
async function createDefaultTarget(
  machine: Machine,
  options: ClientOptions,
  installed: InstalledDockerd | undefined,
): Promise<ConfigTarget> {
  const { platform, detached } = machine
  const kind = detached || platform === 'linux' ? (options.scope === 'user' ? 'rootless' : 'system') : 'desktop'
  const installation = locateInstallation(kind, machine, undefined)
  const version = options.clientVersion ?? installed?.version
  const guessed = version === undefined ? 'its version and image store are a guess' : 'its image store is a guess'
  const isKnown = version !== undefined && options.imageStore !== undefined
  return createConfigTarget({
    machine,
    installation,
    endpoint: undefined,
    dockerd: undefined,
    notes: detached || isKnown ? [] : [`No Docker engine answers: ${guessed}.`],
    target: {
      ...createDockerTarget(installation.daemonJson!, installation.certsFolder, version, options),
      referrers: await supportsReferrers(machine, version),
      flags: kind === 'system' && installed ? installed.flags : {},
    },
  })
}

/** Checks Docker, and containerd and nerdctl because these may read Docker's folders. */
async function supportsReferrers(machine: Machine, version: string | undefined): Promise<boolean> {
  return isAtLeast(version, 29, 1) && allSupportReferrers(machine, ['containerd', 'nerdctl'])
}

/** Creates the target of a daemon.json that the user names with `--file`. */
function createFileTarget(machine: Machine, file: string, options: ClientOptions): ConfigTarget {
  const daemonJson = resolve(machine.cwd, file)
  const installation: DockerInstallation = {
    kind: 'file',
    scope: 'user',
    title: daemonJson,
    daemonJson,
    certsFolder: undefined,
    location: { in: 'host' },
  }
  const target = createDockerTarget(daemonJson, undefined, options.clientVersion, options)
  return createConfigTarget({ machine, installation, endpoint: undefined, dockerd: undefined, notes: [], target })
}

function createDockerTarget(
  daemonJson: string,
  certsFolder: string | undefined,
  version: string | undefined,
  { imageStore }: ClientOptions,
): DockerTarget {
  return { daemonJson, certsFolder, version, imageStore, mirrors: [], insecure: [], flags: {} }
}

interface InstalledDockerd {
  readonly version: string
  /** Holds the flags of its systemd unit. */
  readonly flags: DockerTarget['flags']
}

/** Finds the dockerd program of this machine, running or not. */
async function findInstalledDockerd({ platform, runCommand }: Machine): Promise<InstalledDockerd | undefined> {
  const timeoutMs = 3000
  let printed: Awaited<ReturnType<typeof runCommand>>
  for (const program of listDockerdPrograms(platform))
    printed ??= await runCommand(program, ['--version'], { timeoutMs })
  const version = /^Docker version (\S+?),? /.exec(printed?.stdout ?? '')?.[1]
  if (version === undefined) return undefined
  const unit = await runCommand('systemctl', ['show', '--property=ExecStart', 'docker.service'], { timeoutMs })
  // Parse `ExecStart={ path=/usr/bin/dockerd ; argv[]=/usr/bin/dockerd -H fd:// ; ignore_errors=no ; … }`.
  const commandLine = /argv\[\]=(.*?) ;/.exec(unit?.stdout ?? '')?.[1] ?? ''
  return { version, flags: parseDockerdFlags(commandLine.split(' ')) }
}

interface DockerTargetOptions {
  readonly machine: Machine
  readonly installation: DockerInstallation
  readonly target: DockerTarget
  /** Is undefined when no engine answers. */
  readonly endpoint: DockerEndpoint | undefined
  readonly dockerd: DockerdProcess | undefined
  /** Holds the notes of the plan about guesses. */
  readonly notes: readonly string[]
}

const pullTimeoutMs = 90_000
/** Creates the target for an engine with a daemon.json on this machine. */
function createConfigTarget(options: DockerTargetOptions): ConfigTarget {
  const { machine, installation, target, endpoint, dockerd, notes } = options
  const { kind, scope, title, location } = installation
  const { daemonJson, certsFolder, version, imageStore } = target
  const form = getDockerForm(target)
  const canReload = endpoint !== undefined && form !== 'folders' && (kind === 'system' || kind === 'rootless')
  return {
    id: getTargetId(installation, machine),
    title,
    details: {
      kind,
      scope,
      daemonJson,
      ...(kind === 'file' && { file: daemonJson }),
      ...(certsFolder !== undefined && { certsFolder }),
      ...(version !== undefined && { version }),
      ...(imageStore !== undefined && { imageStore }),
      ...(endpoint !== undefined && { endpoint: JSON.stringify(endpoint) }),
    },
    location,
    files: localFiles,
    inputs: { files: [daemonJson], trees: certsFolder === undefined ? [] : [certsFolder] },
    plan(mirror, files) {
      const plan = planDocker(mirror, target, files)
      const changesDaemonJson = plan.changes.some(({ path }) => path === daemonJson)
      return {
        changes: plan.changes,
        notes: [...notes, ...plan.notes],
        todo: changesDaemonJson ? [...plan.todo, ...listReloadSteps(options)] : plan.todo,
      }
    },
    strip: (mirror, files) => stripDocker(mirror, target, files),
    inspect: (cache, files) => inspectDocker(cache, target, files),
    ...(!machine.detached &&
      (kind === 'system' || kind === 'rootless') && {
        async validate(changes) {
          const change = changes.find(({ path }) => path === daemonJson)
          if (change) await validateDaemonJson(change, dockerd?.program ?? 'dockerd', machine.runCommand)
        },
      }),
    ...(!machine.detached && {
      listUndoSteps: (paths: readonly string[]) => (paths.includes(daemonJson) ? listUndoSteps(options) : []),
    }),
    ...(endpoint && { observe: (mirror) => observeDocker(options, mirror) }),
    ...(canReload && {
      reload: createDockerReload(
        { endpoint, daemonJson, version, dockerd, isRootless: kind === 'rootless' },
        systemClock,
      ),
    }),
    ...(endpoint && { pull: (image) => createDockerEngine(endpoint).images.tryPull(image, pullTimeoutMs) }),
    reasons: [{ why: 'docker is not configured for this mirror', fix: 'mirror configure docker' }],
  }
}

/** Creates the target for an engine whose settings are not a file of this machine: its plan prints the settings on stdout. */
function createManualTarget(options: Omit<DockerTargetOptions, 'target'>): ConfigTarget {
  const { installation, endpoint, notes } = options
  const { kind, scope, title, location } = installation
  return {
    id: kind,
    title,
    details: { kind, scope, ...(endpoint !== undefined && { endpoint: JSON.stringify(endpoint) }) },
    location,
    files: localFiles,
    inputs: { files: [], trees: [] },
    plan: (mirror) => planByHand(mirror, kind, notes),
    strip: () => [],
    ...(endpoint && { pull: (image) => createDockerEngine(endpoint).images.tryPull(image, pullTimeoutMs) }),
    reasons: [
      {
        why: 'the settings of the virtual machine do not name the mirror, or it was not restarted since',
        fix: "docker info --format '{{.RegistryConfig.Mirrors}}'",
      },
    ],
  }
}

function planByHand(
  { cache, ca }: MirrorForClient,
  kind: DockerInstallation['kind'],
  notes: readonly string[],
): ConfigPlan {
  const { host } = new URL(cache)
  const settings = {
    'registry-mirrors': [cache],
    ...(cache.startsWith('http:') && { 'insecure-registries': [host] }),
  }
  const trust = listTrustSteps({ cache, ca })
  if (kind === 'colima')
    return {
      changes: [],
      notes: [...notes, 'Docker in Colima mirrors Docker Hub only, and takes its settings from Colima.'],
      todo: ['colima edit   (replace "docker: {}" by the line on stdout)', ...trust, 'colima restart'],
      // Print JSON because it is valid YAML on one line.
      output: `docker: ${JSON.stringify(settings)}\n`,
    }
  return {
    changes: [],
    notes: [...notes, "The program that runs this engine's virtual machine keeps its settings."],
    todo: ['Add this to its engine settings (Docker Desktop: Settings, Docker Engine), and restart it there', ...trust],
    output: `${JSON.stringify(settings, null, 2)}\n`,
  }
}

/** Identifies a system engine with its own daemon.json by that path, any other by its kind. */
function getTargetId({ kind, daemonJson = kind }: DockerInstallation, { root }: Machine): string {
  const isDefault = daemonJson === join(root, 'etc', 'docker', 'daemon.json')
  return kind === 'file' || (kind === 'system' && !isDefault) ? daemonJson : kind
}

/** Maps engines whose settings another program reads to their restart commands. */
const restartSteps: Partial<Record<DockerInstallation['kind'], string>> = {
  desktop: 'Restart Docker Desktop: docker desktop restart',
  orbstack: 'Restart its engine: orb restart docker',
}

/** Lists the steps until the engine has applied its changed daemon.json. */
function listReloadSteps({ installation, target, endpoint, dockerd }: DockerTargetOptions): string[] {
  const restart = restartSteps[installation.kind]
  if (restart !== undefined) return [restart]
  switch (installation.kind) {
    case 'file':
      return []
    default: {
      const command = getReloadCommand(dockerd, installation.kind === 'rootless')
      return [
        `${command}   (dockerd reads its file again${endpoint === undefined ? '' : '; --reload does it for you'})`,
        ...(buildsAfterReload(target.version)
          ? []
          : [
              'docker build (BuildKit) before Docker 26 uses the mirror only after a restart of dockerd, which stops containers.',
            ]),
      ]
    }
  }
}

/** Lists the restart of an engine that mirror cannot reload; `observeDocker` asks the other engines for their mirrors. */
function listUndoSteps({ installation: { kind } }: DockerTargetOptions): string[] {
  const restart = restartSteps[kind]
  return restart === undefined ? [] : [restart]
}
