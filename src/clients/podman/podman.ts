import { rm } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { createTemporaryFolder } from '../../lib/fs.ts'
import { isObject, parseObject } from '../../lib/json.ts'
import type { CommandResult, RunCommand } from '../../lib/process.ts'
import { describeProgramFailure, isAtLeast } from '../address.ts'
import { localFiles } from '../files/local.ts'
import { createShellFiles } from '../files/remote.ts'
import type {
  ClientAdapter,
  ClientLocation,
  ConfigTarget,
  ConfigTargetDetails,
  FilePort,
  Machine,
  Observation,
  Reason,
} from '../types.ts'
import { inspectPodman } from './inspect.ts'
import { planPodman, getCertificatesFolder, stripPodman } from './plan.ts'
import { findPodmanRoute, getDropInFolder, getMainFile, type PodmanLayout, listConfigFiles } from './registries-conf.ts'
import { findRunningServices, getRestartCommand } from './services.ts'

/** Configures podman, buildah and skopeo, which read the same files. */
export const podmanAdapter: ClientAdapter = {
  client: 'podman',
  summary: 'Podman, Buildah and Skopeo: a drop-in beside registries.conf',

  async find(machine) {
    if (machine.detached) return undefined
    for (const program of ['podman', 'buildah', 'skopeo']) {
      const version = await getVersion(machine, program)
      if (version !== undefined) return `${program} ${version}`
    }
    return undefined
  },

  async findTargets(machine, { scope, clientVersion }) {
    const { primary, others } = await findReaders(machine, clientVersion)
    const found = {
      era: primary.era,
      ...(primary.version === undefined && { guessed: 'yes' }),
      ...(primary.program === 'skopeo' && { program: 'skopeo' }),
      ...(others.length > 0 && { others: JSON.stringify(others) }),
    }
    if (machine.platform !== 'linux' && !machine.detached) {
      const names = await listRunningMachines(machine.runCommand)
      if (names.length === 0) throw createNoMachineError()
      return names.map((name) => toConfigTarget(machine, { ...found, scope: 'system', machine: name }))
    }
    const user = toConfigTarget(machine, { ...found, scope: 'user' })
    const system = toConfigTarget(machine, { ...found, scope: 'system' })
    if (scope !== undefined) return [scope === 'user' ? user : system]
    const systemFirst = machine.detached || (process.getuid?.() === 0 && !(await hasOwnMainFile(machine, primary.era)))
    return systemFirst ? [system, user] : [user, system]
  },

  restoreTarget: toConfigTarget,
}

/** Describes a program that reads these files. */
interface Reader {
  readonly program: Program
  readonly era: Era
  /** Is undefined if unknown. */
  readonly version: string | undefined
}

type Program = keyof typeof firstModernVersions
/** Distinguishes the rules by which a program reads the files. */
type Era = 'modern' | 'before 6'

/** Holds the first versions with the rules of podman 6, which all three programs have from one library. */
const firstModernVersions = { podman: [6, 0], buildah: [1, 44], skopeo: [1, 23] } as const

function getEra(program: Program, version: string | undefined): Era {
  const [major, minor] = firstModernVersions[program]
  return isAtLeast(version, major, minor) ? 'modern' : 'before 6'
}

/** Finds the program to write for, and the other installed ones. */
async function findReaders(
  machine: Machine,
  clientVersion: string | undefined,
): Promise<{ primary: Reader; others: readonly Reader[] }> {
  const installed: Reader[] = []
  for (const program of Object.keys(firstModernVersions) as Program[]) {
    const version = machine.detached ? undefined : await getVersion(machine, program)
    if (version !== undefined) installed.push({ program, version, era: getEra(program, version) })
  }
  const requested = clientVersion && {
    program: 'podman' as const,
    version: clientVersion,
    era: getEra('podman', clientVersion),
  }
  const primary = requested || installed[0] || { program: 'podman', version: undefined, era: 'before 6' }
  const others = installed.filter(({ program }) => program !== primary.program)
  return { primary, others }
}

function toConfigTarget(machine: Machine, details: ConfigTargetDetails): ConfigTarget {
  const { scope, machine: name, guessed } = details
  const layout = getLayout(machine, details)
  const others = getOtherReaders(machine, details)
  const target = { files: layout, scope: scope === 'user' ? ('user' as const) : ('system' as const), others }
  const inputs = [layout, ...others.map((other) => other.files)].map(listConfigFiles)
  const files = [...new Set(inputs.flatMap((one) => one.files))]
  const trees = [...new Set(inputs.flatMap((one) => one.trees))]
  const folder = getDropInFolder(scope === 'user' ? layout.user! : layout.system.at(-1)!)
  const causes = getCauses(details, layout, machine.env['CONTAINER_HOST'])
  const owner = name === undefined ? (scope === 'user' ? 'user' : 'system') : `the podman machine ${name}`
  return {
    id: name === undefined ? target.scope : `machine ${name}`,
    title: `${owner} (${folder})`,
    details,
    ...getLocation(machine, name),
    inputs: { files, trees: [...trees, getCertificatesFolder(target)] },
    plan(mirror, files) {
      const plan = planPodman(mirror, target, files)
      const guess = 'The version of podman is assumed to be before 6. Set another one with --client-version.'
      return guessed === undefined ? plan : { ...plan, notes: [...plan.notes, guess] }
    },
    strip: (mirror, files) => stripPodman(mirror, target, files),
    inspect: (cache, files) => inspectPodman(cache, target, files),
    findRoute: (cache, image, files) => findPodmanRoute(cache, image, layout, files),
    ...(!machine.detached && {
      pull: (image: string) => pullByPodman(machine.runCommand, image, name),
      observe: ({ cache }: { readonly cache: string }) => observePodman(machine, cache, name, causes),
    }),
    reasons: [{ why: 'podman is not configured for this mirror', fix: causes.configure, isUnconfigured: true }],
  }
}

function getLocation(machine: Machine, name: string | undefined): { location: ClientLocation; files: FilePort } {
  if (name === undefined) return { location: { in: 'host' }, files: localFiles }
  return {
    location: { in: 'vm', what: `the podman machine ${name}`, hostName: 'host.containers.internal' },
    files: createMachineFiles(machine.runCommand, name),
  }
}

function getLayout(machine: Machine, details: ConfigTargetDetails): PodmanLayout {
  const { era, machine: name, program, scope } = details
  const modern = era === 'modern'
  if (name !== undefined) {
    const system = ['/usr/share/containers', '/etc/containers']
    return { system, user: undefined, named: undefined, modern }
  }
  const { root, env, detached, cwd } = machine
  const resolveFile = (variable: string) => {
    const path = detached ? undefined : env[variable]
    return path ? resolve(cwd, path) : undefined
  }
  // Ignore the variable for older versions of skopeo, which do not read it.
  const ignoresVariable = program === 'skopeo' && !modern
  const named =
    resolveFile('CONTAINERS_REGISTRIES_CONF') ?? (modern ? undefined : resolveFile('REGISTRIES_CONFIG_PATH'))
  return {
    system: ['usr/share/containers', 'etc/containers'].map((folder) => join(root, folder)),
    user: getUserFolder(machine, modern),
    named: ignoresVariable ? undefined : named,
    ...(modern && { override: resolveFile('CONTAINERS_REGISTRIES_CONF_OVERRIDE') }),
    modern,
    // Assume root for a system drop-in below --root.
    uid: detached ? (scope === 'system' ? 0 : undefined) : process.getuid?.(),
  }
}

/** Returns the readers whose rules differ from those of the program that the files are written for. */
function getOtherReaders(machine: Machine, details: ConfigTargetDetails): { name: string; files: PodmanLayout }[] {
  const { scope, others = '[]' } = details
  const layout = getLayout(machine, details)
  const programs = (JSON.parse(others) as Reader[])
    .map(({ program, era, version }) => ({
      name: `${program} ${version}`,
      files: getLayout(machine, { ...details, era, program }),
    }))
    .filter(({ files }) => !isDeepStrictEqual(files, layout))
  if (scope !== 'system' || !layout.modern || layout.uid !== 0) return programs
  const rootless = { ...layout, user: undefined, named: undefined, override: undefined, uid: undefined }
  return [...programs, { name: 'Users without root', files: rootless }]
}

/** Returns the user's folder. Versions before 6 ignore `XDG_CONFIG_HOME`. */
function getUserFolder({ home, env, detached }: Machine, modern: boolean): string {
  const config = modern && !detached ? env['XDG_CONFIG_HOME'] : undefined
  return join(config ?? join(home, '.config'), 'containers')
}

/** Returns whether a registries.conf of this user keeps podman from reading the system's drop-ins. */
async function hasOwnMainFile(machine: Machine, era: Era): Promise<boolean> {
  if (era === 'modern') return false
  return (await localFiles.read(getMainFile(getUserFolder(machine, false)))) !== undefined
}

async function getVersion({ runCommand }: Machine, program: string): Promise<string | undefined> {
  const result = await runCommand(program, ['--version'], { timeoutMs: 5000 })
  return result?.exitCode === 0 ? /\d+\.\d+[\w.~-]*/.exec(result.stdout)?.[0] : undefined
}

function getCauses(
  { scope, machine: name }: ConfigTargetDetails,
  layout: PodmanLayout,
  remote: string | undefined,
): { readonly configure: string; readonly others: readonly Reason[] } {
  return {
    configure: name === undefined ? `mirror configure podman --scope ${scope}` : 'mirror configure podman',
    others: [
      ...(scope === 'system' && layout.user !== undefined && process.geteuid?.() !== 0
        ? [{ why: `Your files below ${layout.user} replace the system's`, fix: 'mirror configure podman --scope user' }]
        : []),
      ...(layout.named === undefined
        ? []
        : [
            {
              why: layout.modern
                ? `CONTAINERS_REGISTRIES_CONF names ${layout.named}, and podman reads no drop-ins beside it`
                : `CONTAINERS_REGISTRIES_CONF names ${layout.named}, which may have other settings`,
              fix: 'unset CONTAINERS_REGISTRIES_CONF',
            },
          ]),
      ...(remote === undefined
        ? []
        : [{ why: `podman pulls at ${remote}, which reads other files`, fix: 'unset CONTAINER_HOST' }]),
      ...(name === undefined
        ? []
        : [
            {
              why: 'the machine does not reach this host',
              fix: `podman machine ssh ${name} curl -sS http://host.containers.internal:5055/v2/`,
            },
          ]),
    ],
  }
}

function createNoMachineError(): MirrorError {
  return new MirrorError('podman has no running machine to configure.', {
    exit: exitCode.missing,
    hints: ['podman machine start'],
  })
}

const machineTimeoutMs = 30_000

/** Lists podman's running machines, the default one first; none without podman. */
async function listRunningMachines(runCommand: RunCommand): Promise<string[]> {
  const result = await runCommand('podman', ['machine', 'list', '--format', 'json'], { timeoutMs: machineTimeoutMs })
  if (result?.exitCode !== 0) return []
  const machines = JSON.parse(result.stdout || '[]') as { Name?: string; Default?: boolean; Running?: boolean }[]
  return machines
    .filter(({ Name, Running }) => Name !== undefined && Running === true)
    .toSorted((one, other) => Number(other.Default ?? false) - Number(one.Default ?? false))
    .map(({ Name }) => Name!.replace(/\*$/, ''))
}

/** Accesses the files of a podman machine, as its root. */
function createMachineFiles(runCommand: RunCommand, name: string): FilePort {
  return createShellFiles(`the podman machine ${name}`, (script) =>
    // Pass the script by stdin: ssh passes arguments through another shell.
    runCommand('podman', ['machine', 'ssh', name, 'sudo', 'sh', '-s'], { input: script, timeoutMs: machineTimeoutMs }),
  )
}

const pullTimeoutMs = 120_000

/**
 * Pulls an image by the first installed one of podman, buildah and skopeo, and removes it. `machine`: pulls by podman in that
 * machine. Resolves to the failure of the pull. Throws a MirrorError (missing) if none is installed.
 */
async function pullByPodman(
  runCommand: RunCommand,
  image: string,
  machine: string | undefined,
): Promise<{ readonly failed: string | undefined }> {
  const run = (file: string, ...args: string[]) => runCommand(file, args, { timeoutMs: pullTimeoutMs })
  const connection = machine === undefined ? [] : ['--connection', machine]
  const byPodman = await run('podman', ...connection, 'pull', '--quiet', image)
  if (byPodman) {
    if (byPodman.exitCode === 0) await run('podman', ...connection, 'image', 'rm', image)
    return { failed: describePodmanFailure(byPodman) }
  }
  const byBuildah = await run('buildah', 'pull', '--quiet', image)
  if (byBuildah) {
    if (byBuildah.exitCode === 0) await run('buildah', 'rmi', image)
    return { failed: describePodmanFailure(byBuildah) }
  }
  const folder = await createTemporaryFolder('mirror-check-')
  try {
    const bySkopeo = await run('skopeo', 'copy', '--quiet', `docker://${image}`, `dir:${folder}`)
    if (bySkopeo) return { failed: describePodmanFailure(bySkopeo) }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
  throw new MirrorError('Neither podman nor buildah nor skopeo is installed, so no image can be pulled.', {
    exit: exitCode.missing,
  })
}

function describePodmanFailure({ exitCode, stderr, stdout }: CommandResult): string | undefined {
  if (exitCode === 0) return undefined
  return stderr.trim() || stdout.trim() || (exitCode === undefined ? 'the pull timed out' : `exit code ${exitCode}`)
}

const infoTimeoutMs = 20_000

/** Observes the mirrors that podman and the running podman services have for Docker Hub. `causes`: further reasons to report. */
async function observePodman(
  { runCommand, env, platform }: Pick<Machine, 'runCommand' | 'env' | 'platform'>,
  cache: string,
  vm: string | undefined,
  causes: { readonly configure: string; readonly others: readonly Reason[] },
): Promise<Observation> {
  const { host } = new URL(cache)
  const query = (...args: string[]) =>
    runCommand('podman', [...args, 'info', '--format', 'json'], { timeoutMs: infoTimeoutMs })
  const queryMirrors = async (...args: string[]) => getHubMirrors(await query(...args))
  const result = await query(...(vm === undefined ? [] : ['--connection', vm]))
  const own = getHubMirrors(result)
  const failure = describeProgramFailure('podman info', result)
  const services = vm === undefined && platform === 'linux' ? await findRunningServices(env) : []
  const observedServices = await Promise.all(
    services.map(async (service) => ({ ...service, mirrors: await queryMirrors('--url', `unix://${service.socket}`) })),
  )
  const has = (mirrors: readonly string[] | undefined) => mirrors?.some((one) => one.split('/', 1)[0] === host)
  const answering = observedServices.filter(({ mirrors }) => mirrors !== undefined)
  const stale = has(own) === true ? answering.filter(({ mirrors }) => !has(mirrors)) : []
  const inUse = has(own) === true && stale.length > 0 ? false : has(own)
  return {
    inUse,
    ...(failure !== undefined && { failure }),
    saw: [
      own === undefined
        ? (failure ?? (result === undefined ? 'podman is not installed.' : 'podman info does not answer.'))
        : `podman info lists ${describeMirrors(own)} of docker.io.`,
      ...answering.map(
        ({ pid, mirrors }) => `The podman service (pid ${pid}) has ${describeMirrors(mirrors!)} of docker.io.`,
      ),
    ],
    reasons: [
      ...stale.map(({ pid }) => ({
        why: `The podman service (pid ${pid}) has cached its old configuration`,
        fix: getRestartCommand(pid),
      })),
      ...(has(own) === true
        ? [{ why: `podman did not reach ${cache}`, fix: `curl -sS ${cache}/v2/` }]
        : own === undefined
          ? [{ why: 'podman is not configured for this mirror', fix: causes.configure, isUnconfigured: true as const }]
          : [
              {
                why: 'podman is not configured for this mirror, or another file replaces its drop-in',
                fix: causes.configure,
              },
            ]),
      ...causes.others,
    ],
    todo: stale.map(({ pid }) => `${getRestartCommand(pid)}   (the podman service has cached its old configuration)`),
  }
}

function describeMirrors(mirrors: readonly string[]): string {
  return mirrors.length === 0
    ? 'no mirror'
    : `${mirrors.join(', ')} as ${mirrors.length === 1 ? 'the mirror' : 'mirrors'}`
}

/** Returns the locations of Docker Hub's mirrors; undefined if podman did not answer. */
function getHubMirrors(result: Awaited<ReturnType<RunCommand>>): readonly string[] | undefined {
  const info = result?.exitCode === 0 ? parseObject(result.stdout) : undefined
  if (info === undefined) return undefined
  const registries = isObject(info['registries']) ? info['registries'] : {}
  const hub = registries['docker.io']
  const mirrors: unknown = isObject(hub) ? hub['Mirrors'] : undefined
  return (Array.isArray(mirrors) ? mirrors : []).flatMap((one: unknown) =>
    isObject(one) && typeof one['Location'] === 'string' ? [one['Location']] : [],
  )
}
