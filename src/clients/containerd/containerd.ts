import { join, posix } from 'node:path'
import { errnoOf, exitCode, isConnectionFailure, MirrorError } from '../../lib/errors.ts'
import { ifVisible, isThere } from '../../lib/fs.ts'
import { isObject, parseObject } from '../../lib/json.ts'
import type { RunCommand } from '../../lib/process.ts'
import { containerdVersionIn, isAtLeast, readersKnowReferrers } from '../address.ts'
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
import { type ContainerdFile, dumpOf, importsOf, readContainerdConfig } from './config-toml.ts'
import { criClient, CriError, criUnimplemented } from './cri.ts'
import { namesMirror } from './hosts-toml.ts'
import { type ContainerdTarget, planContainerd, stripContainerd } from './plan.ts'

const usualSocket = '/run/containerd/containerd.sock'

/** containerd, as kubelets and nerdctl use it. */
export const containerdAdapter: ClientAdapter = {
  client: 'containerd',
  summary: 'containerd and nerdctl: hosts.toml files for the registries',

  async find(machine) {
    const version = await versionOf(machine)
    return version === undefined ? undefined : `containerd ${version}`
  },

  async targets(machine, { scope, clientVersion }) {
    if (machine.platform !== 'linux' && !machine.detached)
      throw new MirrorError('containerd runs on Linux, and this is none.', {
        exit: exitCode.missing,
        hints: ['mirror configure containerd --root DIR   (files to be copied to where it runs)'],
      })
    const version = clientVersion ?? (await versionOf(machine))
    const system = () => placeFor(machine, 'system', version)
    const user = () => placeFor(machine, 'user', version)
    if (scope !== undefined) return [await placeFor(machine, scope, version)]
    if (!(await runsRootless(machine))) return [await system()]
    return process.getuid?.() === 0 ? [await system(), await user()] : [await user(), await system()]
  },

  recall: (machine, details) => placeOf(machine, details, undefined),
}

/** Looks at what containerd itself says of its configuration, where it may be asked. */
async function placeFor(
  machine: Machine,
  scope: 'user' | 'system',
  version: string | undefined,
): Promise<ConfigTarget> {
  const config = configFolder(machine, scope)
  const dump = scope === 'system' ? await dumpOf(machine) : undefined
  const [main, ...imports] = await configFiles(machine, posix.join(config, 'config.toml'))
  const own = readContainerdConfig(main!, version, imports)
  const { configPaths, address } =
    dump === undefined ? own : readContainerdConfig({ name: main!.name, text: dump }, version)
  // Folders that are named where containerd does not look are meant all the same.
  const [named] = [configPaths, own.meantPaths].filter((paths) => paths.length > 0)
  const folders = named ?? [posix.join(config, 'certs.d')]
  return placeOf(
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

function placeOf(machine: Machine, details: ConfigTargetDetails, dump: string | undefined): ConfigTarget {
  const { version, socket = usualSocket } = details
  const scope = details['scope'] === 'user' ? 'user' : 'system'
  const [hosts, ...others] = details['folders']!.split(':')
  const config = configFolder(machine, scope)
  const named = (name: string) => ({ name, path: join(machine.root, name) })
  const target: ContainerdTarget = {
    hosts: named(hosts!),
    elsewhere: [...new Set([...others, posix.join(config, '..', 'docker', 'certs.d')])]
      .filter((folder) => folder !== hosts)
      .map((folder) => named(folder).path),
    configFile: named(posix.join(config, 'config.toml')),
    imports: (details['imports'] ?? '').split('\n').filter(Boolean).map(named),
    referrers: details['referrers'] === 'yes',
    dump,
    version,
    rootless: scope === 'user',
    nerdctlFile: named(posix.join(config, '..', 'nerdctl', 'nerdctl.toml')),
  }
  return {
    id: scope,
    title: `${scope === 'user' ? 'your rootless containerd' : 'system'} (${target.hosts.path})`,
    details,
    location: homeOf(scope),
    files: localFiles,
    readAtEachPull: true,
    wants: {
      files: [target.configFile.path, ...target.imports.map(({ path }) => path), target.nerdctlFile.path],
      trees: [target.hosts.path, ...target.elsewhere],
    },
    plan(mirror, files) {
      const plan = planContainerd(mirror, target, files)
      const guess = machine.detached
        ? 'The version of containerd is a guess: one before 2.0. Say it with --client-version otherwise.'
        : 'No containerd was found, so its version is a guess: say it with --client-version.'
      return version === undefined ? { ...plan, notes: [...plan.notes, guess] } : plan
    },
    strip: (mirror, files) => stripContainerd(mirror, target.hosts.path, files),
    ...(!machine.detached && {
      pull: (image: string) =>
        pullByContainerd({ runCommand: machine.runCommand, socket, hostsFolder: target.hosts.path }, image),
      observe: ({ cache }: { readonly cache: string }) =>
        observeContainerd({ machine, socket, target, dump: scope === 'system' }, cache),
    }),
    reasons: [
      { why: 'It is not configured', fix: 'mirror configure containerd', isUnconfigured: true },
      {
        why: `config_path is not set to ${hosts}, or containerd was not restarted since`,
        fix: 'containerd config dump | grep config_path; sudo systemctl restart containerd',
      },
      {
        why: 'config_path names several folders, which versions since 2.1 may not understand',
        fix: `config_path = "${hosts}"   (in ${target.configFile.name})`,
      },
      ...(target.referrers
        ? [
            {
              why: 'containerd or nerdctl is older than 2.2 now, and passes over hosts.toml files that name "referrers"',
              fix: 'mirror configure containerd',
            },
          ]
        : []),
      { why: 'containerd could not read a hosts.toml', fix: 'journalctl -u containerd | grep hosts.toml' },
    ],
  }
}

/** Where its configuration is, in the machine's own words: without what `--root` puts before it. */
function configFolder({ home, env, detached }: Machine, scope: 'user' | 'system'): string {
  if (scope === 'system') return '/etc/containerd'
  if (detached) return '/.config/containerd'
  return join(env['XDG_CONFIG_HOME'] ?? join(home, '.config'), 'containerd')
}

function homeOf(scope: 'user' | 'system'): ClientLocation {
  if (scope === 'system') return { in: 'host' }
  return {
    in: 'apart',
    what: 'A rootless containerd',
    why: 'it has a network of its own, where 127.0.0.1 is another',
    hints: ['have the cache listen on an address of this machine, too: "cache.listen" in mirror.yaml'],
  }
}

async function versionOf({ runCommand, detached }: Machine): Promise<string | undefined> {
  if (detached) return undefined
  const result = await runCommand('containerd', ['--version'], { timeoutMs: 5000 })
  return result?.exitCode === 0 ? containerdVersionIn(result.stdout) : undefined
}

/** Whether all who read hosts.toml files in this folder know the capability `referrers`. */
async function knowsReferrers(machine: Machine, version: string | undefined, folder: string): Promise<boolean> {
  // The folders of Docker are read by other versions of the same code.
  if (!isAtLeast(version, 2, 2) || folder.endsWith('/docker/certs.d')) return false
  return readersKnowReferrers(machine, ['nerdctl'])
}

/** config.toml with what it imports, as far as that is there; an empty text where there is none. */
async function configFiles({ root }: Machine, name: string): Promise<ContainerdFile[]> {
  const found: ContainerdFile[] = []
  const pending = [name]
  for (const next of pending) {
    if (found.some((file) => file.name === next)) continue
    for (const path of await namesLike(root, next)) {
      const file = await localFiles.read(join(root, path))
      if (file === undefined && path !== name) continue
      const read = { name: path, text: Buffer.from(file?.bytes ?? []).toString() }
      found.push(read)
      pending.push(...importsOf(read))
    }
  }
  return found
}

/** The files that a name with `*` stands for. */
async function namesLike(root: string, name: string): Promise<string[]> {
  const folder = posix.dirname(name)
  if (!name.includes('*') || folder.includes('*')) return [name]
  const paths = (await localFiles.list(join(root, folder))).map((path) =>
    posix.join(folder, path.slice(join(root, folder).length)),
  )
  const pattern = new RegExp(
    `^${name
      .split('*')
      .map((part) => part.replaceAll(/[.+^${}()|[\]\\?]/g, '\\$&'))
      .join('[^/]*')}$`,
  )
  return paths.filter((path) => pattern.test(path))
}

async function runsRootless({ env, detached }: Machine): Promise<boolean> {
  const runtimeFolder = env['XDG_RUNTIME_DIR']
  return !detached && runtimeFolder !== undefined && isThere(join(runtimeFolder, 'containerd-rootless'))
}

const patienceMs = 120_000

interface ContainerdAccess {
  readonly runCommand: RunCommand
  readonly socket: string
  /** Where its hosts folders are, for ctr, which has to be told. */
  readonly hostsFolder: string
}

/**
 * Pulls an image as a kubelet would, and removes it again; by ctr where containerd does not speak to kubelets. Resolves to what
 * was said when it failed. Throws a MirrorError (missing) when no containerd answers.
 */
async function pullByContainerd(
  access: ContainerdAccess,
  image: string,
): Promise<{ readonly failed: string | undefined }> {
  const cri = criClient(access.socket, patienceMs)
  try {
    await cri.pullImage(image)
    await cri.removeImage(image)
    return { failed: undefined }
  } catch (error) {
    if (error instanceof CriError) {
      return error.status === criUnimplemented ? pullByCtr(access, image) : { failed: error.message }
    }
    if (!isConnectionFailure(error)) throw error
    throw unreachable(access.socket, error)
  }
}

async function pullByCtr(
  { runCommand, socket, hostsFolder }: ContainerdAccess,
  image: string,
): Promise<{ readonly failed: string | undefined }> {
  const ctr = (...args: string[]) =>
    runCommand('ctr', ['--address', socket, 'images', ...args], { timeoutMs: patienceMs })
  const pulled = await ctr('pull', '--hosts-dir', hostsFolder, image)
  if (pulled === undefined)
    throw new MirrorError('containerd does not speak to kubelets here, and there is no ctr to pull by instead.', {
      exit: exitCode.missing,
    })
  if (pulled.exitCode !== 0) return { failed: pulled.stderr.trim() || pulled.stdout.trim() }
  await ctr('rm', '--sync', image)
  return { failed: undefined }
}

function unreachable(socket: string, cause: unknown): MirrorError {
  const denied = errnoOf(cause) === 'EACCES' || errnoOf(cause) === 'EPERM'
  return new MirrorError(denied ? `Only root may speak to ${socket}.` : `No containerd answers at ${socket}.`, {
    exit: exitCode.missing,
    hints: denied ? ['sudo mirror configure containerd --check'] : ['sudo systemctl start containerd'],
    cause,
  })
}

const statusMs = 5000

interface ObservedContainerd {
  readonly machine: Machine
  readonly socket: string
  readonly target: ContainerdTarget
  /** Whether `containerd config dump` is about this one. */
  readonly dump: boolean
}

/** What containerd's configuration, the running containerd, and the hosts.toml for Docker Hub say. */
async function observeContainerd(
  { machine, socket, target, dump }: ObservedContainerd,
  cache: string,
): Promise<Observation> {
  const hosts = target.hosts.name
  const written = await configPathsIn(dump ? await dumpOf(machine) : undefined, target)
  const live = await liveConfigPaths(socket)
  const hostsToml = await findHostsToml(target.hosts.path, cache)
  const has = (paths: readonly string[] | undefined) => paths?.includes(hosts)
  const isStale = has(written) === true && has(live) === false
  const inUse = !hostsToml.names ? false : (has(live) ?? (has(written) === false ? false : undefined))
  return {
    inUse,
    saw: [
      ...(written === undefined
        ? []
        : [`config_path in the configuration (containerd config dump) is ${say(written)}.`]),
      live === undefined
        ? 'The running containerd does not tell its config_path: restart it if it was not restarted since that was set.'
        : `config_path in the running containerd is ${say(live)}.`,
      hostsToml.says,
    ],
    reasons: reasonsFor({ hosts, written, live, isStale, names: hostsToml.names, cache, file: target.configFile.name }),
    todo: isStale ? [restart] : [],
  }
}

const restart = 'sudo systemctl restart containerd   (it runs with an older configuration; containers go on)'

interface Findings {
  readonly hosts: string
  readonly written: readonly string[] | undefined
  readonly live: readonly string[] | undefined
  readonly isStale: boolean
  readonly names: boolean
  readonly cache: string
  readonly file: string
}

function reasonsFor({ hosts, written, live, isStale, names, cache, file }: Findings): Reason[] {
  if (!names) return [{ why: 'containerd is not configured for this mirror', fix: 'mirror configure containerd' }]
  if (isStale) return [{ why: 'containerd was not restarted since config_path was set', fix: restart }]
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
            why: 'config_path names several folders, which versions since 2.1 may not understand',
            fix: `config_path = "${hosts}"   (in ${file})`,
          },
        ]
      : []),
    ...(isUnsure ? [{ why: 'containerd was not restarted since config_path was set', fix: restart }] : []),
    {
      why: `containerd could not read a hosts.toml, or did not reach ${cache}`,
      fix: 'journalctl -u containerd -n 50   (it says why in its log only)',
    },
  ]
}

function say(paths: readonly string[]): string {
  return paths.length === 0 ? 'not set' : paths.join(':')
}

async function configPathsIn(
  dump: string | undefined,
  target: ContainerdTarget,
): Promise<readonly string[] | undefined> {
  const { configFile, imports, version } = target
  try {
    if (dump !== undefined) return readContainerdConfig({ name: configFile.name, text: dump }, version).configPaths
    const [main, ...others] = await Promise.all([configFile, ...imports].map(read))
    return readContainerdConfig(main!, version, others).configPaths
  } catch (error) {
    if (error instanceof MirrorError) return undefined
    throw error
  }
}

async function read({ name, path }: { readonly name: string; readonly path: string }): Promise<ContainerdFile> {
  return { name, text: Buffer.from((await ifVisible(localFiles.read(path)))?.bytes ?? []).toString() }
}

/** What the running containerd tells kubelets of its configuration; undefined where it tells none, as 2.0 and 2.1. */
async function liveConfigPaths(socket: string): Promise<readonly string[] | undefined> {
  try {
    const { config } = await criClient(socket, statusMs).info()
    const registry = config === undefined ? undefined : parseObject(config)?.['registry']
    const path = isObject(registry) ? registry['configPath'] : undefined
    return typeof path === 'string' ? path.split(':').filter(Boolean) : undefined
  } catch (error) {
    if (error instanceof CriError || errnoOf(error) !== undefined) return undefined
    throw error
  }
}

/** The file by which containerd gets images of Docker Hub. */
async function findHostsToml(
  folder: string,
  cache: string,
): Promise<{ readonly names: boolean; readonly says: string }> {
  for (const name of ['docker.io', '_default']) {
    const path = join(folder, name, 'hosts.toml')
    const state = await ifVisible(localFiles.read(path))
    if (state === undefined) continue
    const names = namesMirror(Buffer.from(state.bytes).toString(), cache)
    return { names, says: `${path} ${names ? 'names' : 'does not name'} ${cache}.` }
  }
  return { names: false, says: `There is no hosts.toml for docker.io in ${folder}.` }
}
