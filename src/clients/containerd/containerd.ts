import { join, posix } from 'node:path'
import { getErrno, exitCode, isConnectionFailure, MirrorError } from '../../lib/errors.ts'
import { ifVisible, pathExists } from '../../lib/fs.ts'
import { isObject, parseObject } from '../../lib/json.ts'
import type { RunCommand } from '../../lib/process.ts'
import { allSupportReferrers, describeProgramFailure, isAtLeast, parseContainerdVersion } from '../address.ts'
import { localFiles } from '../files/local.ts'
import type {
  ClientAdapter,
  ClientLocation,
  ConfigTarget,
  ConfigTargetDetails,
  Machine,
  Observation,
  Reason,
} from '../types.ts'
import {
  type ContainerdFile,
  dumpContainerdConfig,
  readConfigFiles,
  readContainerdConfig,
  runConfigDump,
} from './config-toml.ts'
import { createCriClient, CriError, criUnimplemented, pullTimeoutMs } from './cri.ts'
import { namesMirror } from './hosts-toml.ts'
import { type ContainerdTarget, inspectContainerd, planContainerd, stripContainerd } from './plan.ts'

const defaultSocket = '/run/containerd/containerd.sock'

/** Configures containerd, as kubelets and nerdctl use it. */
export const containerdAdapter: ClientAdapter = {
  client: 'containerd',
  summary: 'containerd and nerdctl: hosts.toml files for the registries',

  async find(machine) {
    const version = await getContainerdVersion(machine)
    return version === undefined ? undefined : `containerd ${version}`
  },

  async findTargets(machine, { scope, clientVersion }) {
    if (machine.platform !== 'linux' && !machine.detached)
      throw new MirrorError('containerd is only supported on Linux.', {
        exit: exitCode.missing,
        hints: ['mirror configure containerd --root DIR   (files to be copied to where it runs)'],
      })
    const version = clientVersion ?? (await getContainerdVersion(machine))
    const findSystemTarget = () => findTarget(machine, 'system', version)
    const findUserTarget = () => findTarget(machine, 'user', version)
    if (scope !== undefined) return [await findTarget(machine, scope, version)]
    if (!(await runsRootless(machine))) return [await findSystemTarget()]
    return process.getuid?.() === 0
      ? [await findSystemTarget(), await findUserTarget()]
      : [await findUserTarget(), await findSystemTarget()]
  },

  restoreTarget: (machine, details) => toConfigTarget(machine, details, undefined),
}

/** Finds a target by the configuration that containerd itself reports, where it can be asked. */
async function findTarget(
  machine: Machine,
  scope: 'user' | 'system',
  version: string | undefined,
): Promise<ConfigTarget> {
  const config = getConfigFolder(machine, scope)
  const dump = scope === 'system' ? await dumpContainerdConfig(machine) : undefined
  const [main, ...imports] = await readConfigFiles(machine, posix.join(config, 'config.toml'))
  const own = readContainerdConfig(main!, version, imports)
  const { configPaths, address } =
    dump === undefined ? own : readContainerdConfig({ name: main!.name, text: dump }, version)
  // Fall back to folders that the files name in a section that containerd does not read.
  const [firstPaths] = [configPaths, own.ineffectivePaths].filter((paths) => paths.length > 0)
  const folders = firstPaths ?? [posix.join(config, 'certs.d')]
  return toConfigTarget(
    machine,
    {
      scope,
      folders: folders.join(':'),
      imports: imports.map(({ name }) => name).join('\n'),
      ...((await knowsReferrers(machine, version, folders[0]!)) && { referrers: 'yes' }),
      ...(version !== undefined && { version }),
      ...(address !== undefined && { socket: address }),
    },
    dump,
  )
}

function toConfigTarget(machine: Machine, details: ConfigTargetDetails, dump: string | undefined): ConfigTarget {
  const { version, socket = defaultSocket } = details
  const scope = details['scope'] === 'user' ? 'user' : 'system'
  const [hosts, ...others] = details['folders']!.split(':')
  const config = getConfigFolder(machine, scope)
  const locate = (name: string) => ({ name, path: join(machine.root, name) })
  const target: ContainerdTarget = {
    hosts: locate(hosts!),
    otherFolders: [...new Set([...others, posix.join(config, '..', 'docker', 'certs.d')])]
      .filter((folder) => folder !== hosts)
      .map((folder) => locate(folder).path),
    configFile: locate(posix.join(config, 'config.toml')),
    imports: (details['imports'] ?? '').split('\n').filter(Boolean).map(locate),
    referrers: details['referrers'] === 'yes',
    dump,
    version,
    rootless: scope === 'user',
    nerdctlFile: locate(posix.join(config, '..', 'nerdctl', 'nerdctl.toml')),
  }
  return {
    id: scope,
    title: `${scope === 'user' ? 'your rootless containerd' : 'system'} (${target.hosts.path})`,
    details,
    location: getClientLocation(scope),
    files: localFiles,
    readAtEachPull: true,
    inputs: {
      files: [target.configFile.path, ...target.imports.map(({ path }) => path), target.nerdctlFile.path],
      trees: [target.hosts.path, ...target.otherFolders],
    },
    plan(mirror, files) {
      const plan = planContainerd(mirror, target, files)
      const guess = machine.detached
        ? 'The version of containerd is assumed to be before 2.0. Set another one with --client-version.'
        : 'containerd was not found, so its version is assumed. Set it with --client-version.'
      return version === undefined ? { ...plan, notes: [...plan.notes, guess] } : plan
    },
    strip: (mirror, files) => stripContainerd(mirror, target.hosts.path, files),
    inspect: (cache, files) => inspectContainerd(target, files, cache),
    ...(!machine.detached && {
      pull: (image: string) =>
        pullByContainerd({ runCommand: machine.runCommand, socket, hostsFolder: target.hosts.path }, image),
      observe: ({ cache }: { readonly cache: string }) =>
        observeContainerd({ machine, socket, target, dump: scope === 'system' }, cache),
    }),
    reasons: [
      { why: 'containerd is not configured for this mirror', fix: 'mirror configure containerd', isUnconfigured: true },
      {
        why: `config_path is not set to ${hosts}, or containerd was not restarted since`,
        fix: 'containerd config dump | grep config_path; sudo systemctl restart containerd',
      },
      {
        why: 'config_path names several folders, which containerd 2.1 and later may not support',
        fix: `config_path = "${hosts}"   (in ${target.configFile.name})`,
      },
      ...(target.referrers
        ? [
            {
              why: 'containerd or nerdctl is older than 2.2 now, and ignores hosts.toml files that name "referrers"',
              fix: 'mirror configure containerd',
            },
          ]
        : []),
      { why: 'containerd could not read a hosts.toml', fix: 'journalctl -u containerd | grep hosts.toml' },
    ],
  }
}

/** Returns the configuration folder, without the prefix of `--root`. */
function getConfigFolder({ home, env, detached }: Machine, scope: 'user' | 'system'): string {
  if (scope === 'system') return '/etc/containerd'
  if (detached) return '/.config/containerd'
  return join(env['XDG_CONFIG_HOME'] ?? join(home, '.config'), 'containerd')
}

function getClientLocation(scope: 'user' | 'system'): ClientLocation {
  if (scope === 'system') return { in: 'host' }
  return {
    in: 'isolated',
    what: 'A rootless containerd',
    why: 'it has its own network, where 127.0.0.1 is not this machine',
    hints: ['make the cache listen on an address of this machine, too: "cache.listen" in mirror.yaml'],
  }
}

async function getContainerdVersion({ runCommand, detached }: Machine): Promise<string | undefined> {
  if (detached) return undefined
  const result = await runCommand('containerd', ['--version'], { timeoutMs: 5000 })
  return result?.exitCode === 0 ? parseContainerdVersion(result.stdout) : undefined
}

/** Returns whether all readers of hosts.toml files in this folder know the capability `referrers`. */
async function knowsReferrers(machine: Machine, version: string | undefined, folder: string): Promise<boolean> {
  // Rule out Docker's folders: dockerd reads them with other versions of the same code.
  if (!isAtLeast(version, 2, 2) || folder.endsWith('/docker/certs.d')) return false
  return allSupportReferrers(machine, ['nerdctl'])
}

async function runsRootless({ env, detached }: Machine): Promise<boolean> {
  const runtimeFolder = env['XDG_RUNTIME_DIR']
  return !detached && runtimeFolder !== undefined && pathExists(join(runtimeFolder, 'containerd-rootless'))
}

interface ContainerdAccess {
  readonly runCommand: RunCommand
  readonly socket: string
  /** Holds the root of its hosts folders, for `ctr --hosts-dir`. */
  readonly hostsFolder: string
}

/**
 * Pulls an image as a kubelet does, and removes it; by ctr where containerd has no CRI. Resolves to the failure of the pull.
 * Throws a MirrorError (missing) if no containerd answers.
 */
async function pullByContainerd(
  access: ContainerdAccess,
  image: string,
): Promise<{ readonly failed: string | undefined }> {
  const cri = createCriClient(access.socket, pullTimeoutMs)
  try {
    await cri.pullImage(image)
    await cri.removeImage(image)
    return { failed: undefined }
  } catch (error) {
    if (error instanceof CriError) {
      return error.status === criUnimplemented ? pullByCtr(access, image) : { failed: error.message }
    }
    if (!isConnectionFailure(error)) throw error
    throw createUnreachableError(access.socket, error)
  }
}

async function pullByCtr(
  { runCommand, socket, hostsFolder }: ContainerdAccess,
  image: string,
): Promise<{ readonly failed: string | undefined }> {
  const runCtr = (...args: string[]) =>
    runCommand('ctr', ['--address', socket, 'images', ...args], { timeoutMs: pullTimeoutMs })
  const pulled = await runCtr('pull', '--hosts-dir', hostsFolder, image)
  if (pulled === undefined)
    throw new MirrorError('containerd has no CRI here, and ctr is not installed, so no image can be pulled.', {
      exit: exitCode.missing,
    })
  if (pulled.exitCode !== 0) return { failed: pulled.stderr.trim() || pulled.stdout.trim() }
  await runCtr('rm', '--sync', image)
  return { failed: undefined }
}

function createUnreachableError(socket: string, cause: unknown): MirrorError {
  const denied = getErrno(cause) === 'EACCES' || getErrno(cause) === 'EPERM'
  return new MirrorError(denied ? `Only root can connect to ${socket}.` : `No containerd answers at ${socket}.`, {
    exit: exitCode.missing,
    hints: denied ? ['sudo mirror configure containerd --check'] : ['sudo systemctl start containerd'],
    cause,
  })
}

const statusTimeoutMs = 5000

interface ObservedContainerd {
  readonly machine: Machine
  readonly socket: string
  readonly target: ContainerdTarget
  /** Is true if `containerd config dump` prints the configuration of this containerd. */
  readonly dump: boolean
}

/** Observes containerd's configuration, the running containerd, and the hosts.toml for Docker Hub. */
async function observeContainerd(
  { machine, socket, target, dump }: ObservedContainerd,
  cache: string,
): Promise<Observation> {
  const hosts = target.hosts.name
  const dumped = dump ? await runConfigDump(machine) : undefined
  const failure = describeProgramFailure('containerd config dump', dumped)
  const written = await readConfigPaths(dumped?.exitCode === 0 ? dumped.stdout : undefined, target)
  const live = await queryConfigPaths(socket)
  const hostsToml = await findHostsToml(target.hosts.path, cache)
  const has = (paths: readonly string[] | undefined) => paths?.includes(hosts)
  const isStale = has(written) === true && has(live) === false
  const inUse = !hostsToml.names ? false : (has(live) ?? (has(written) === false ? false : undefined))
  return {
    inUse,
    ...(failure !== undefined && { failure }),
    saw: [
      ...(failure === undefined ? [] : [failure]),
      ...(written === undefined
        ? []
        : [`config_path in the configuration (containerd config dump) is ${describePaths(written)}.`]),
      live === undefined
        ? 'The running containerd does not report its config_path. Restart it if it was not restarted since config_path was set.'
        : `config_path in the running containerd is ${describePaths(live)}.`,
      hostsToml.description,
    ],
    reasons: findReasons({
      hosts,
      written,
      live,
      isStale,
      names: hostsToml.names,
      cache,
      file: target.configFile.name,
    }),
    todo: isStale ? [restartCommand] : [],
  }
}

const restartCommand =
  'sudo systemctl restart containerd   (it runs with an older configuration; containers keep running)'

interface Findings {
  readonly hosts: string
  readonly written: readonly string[] | undefined
  readonly live: readonly string[] | undefined
  readonly isStale: boolean
  readonly names: boolean
  readonly cache: string
  readonly file: string
}

function findReasons({ hosts, written, live, isStale, names, cache, file }: Findings): Reason[] {
  if (!names) return [{ why: 'containerd is not configured for this mirror', fix: 'mirror configure containerd' }]
  if (isStale) return [{ why: 'containerd was not restarted since config_path was set', fix: restartCommand }]
  if (written !== undefined && !written.includes(hosts))
    return [
      {
        why: `config_path is not set to ${hosts}`,
        fix: `mirror configure containerd --dry-run   (says what ${file} needs)`,
      },
    ]
  const isUnsure = live === undefined
  return [
    ...((written?.length ?? 0) > 1
      ? [
          {
            why: 'config_path names several folders, which containerd 2.1 and later may not support',
            fix: `config_path = "${hosts}"   (in ${file})`,
          },
        ]
      : []),
    ...(isUnsure ? [{ why: 'containerd was not restarted since config_path was set', fix: restartCommand }] : []),
    {
      why: `containerd could not read a hosts.toml, or did not reach ${cache}`,
      fix: 'journalctl -u containerd -n 50   (only its log has the reason)',
    },
  ]
}

function describePaths(paths: readonly string[]): string {
  return paths.length === 0 ? 'not set' : paths.join(':')
}

async function readConfigPaths(
  dump: string | undefined,
  target: ContainerdTarget,
): Promise<readonly string[] | undefined> {
  const { configFile, imports, version } = target
  try {
    if (dump !== undefined) return readContainerdConfig({ name: configFile.name, text: dump }, version).configPaths
    const [main, ...others] = await Promise.all([configFile, ...imports].map(readConfigFile))
    return readContainerdConfig(main!, version, others).configPaths
  } catch (error) {
    if (error instanceof MirrorError) return undefined
    throw error
  }
}

async function readConfigFile({
  name,
  path,
}: {
  readonly name: string
  readonly path: string
}): Promise<ContainerdFile> {
  return { name, text: Buffer.from((await ifVisible(localFiles.read(path)))?.bytes ?? []).toString() }
}

/** Asks the running containerd for its `config_path`; undefined where it reports none, as 2.0 and 2.1. */
async function queryConfigPaths(socket: string): Promise<readonly string[] | undefined> {
  try {
    const { config } = await createCriClient(socket, statusTimeoutMs).getInfo()
    const registry = config === undefined ? undefined : parseObject(config)?.['registry']
    const path = isObject(registry) ? registry['configPath'] : undefined
    return typeof path === 'string' ? path.split(':').filter(Boolean) : undefined
  } catch (error) {
    if (error instanceof CriError || getErrno(error) !== undefined) return undefined
    throw error
  }
}

/** Finds the hosts.toml that containerd reads for Docker Hub. */
async function findHostsToml(
  folder: string,
  cache: string,
): Promise<{ readonly names: boolean; readonly description: string }> {
  for (const name of ['docker.io', '_default']) {
    const path = join(folder, name, 'hosts.toml')
    const state = await ifVisible(localFiles.read(path))
    if (state === undefined) continue
    const names = namesMirror(Buffer.from(state.bytes).toString(), cache)
    return { names, description: `${path} ${names ? 'names' : 'does not name'} ${cache}.` }
  }
  return { names: false, description: `There is no hosts.toml for docker.io in ${folder}.` }
}
