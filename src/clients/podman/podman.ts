import { readdir, readFile, rm } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { ifVisible, temporaryFolder } from '../../lib/fs.ts'
import { isObject, parseObject } from '../../lib/json.ts'
import type { CommandResult, RunCommand } from '../../lib/process.ts'
import { isAtLeast } from '../address.ts'
import { localFiles } from '../files/local.ts'
import { shellFiles } from '../files/remote.ts'
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
import { planPodman, podmanCertificates, stripPodman } from './plan.ts'
import { dropInFolderIn, mainFileIn, type PodmanFiles, podmanWants } from './registries-conf.ts'

/** podman, buildah and skopeo, which read the same files. */
export const podmanAdapter: ClientAdapter = {
  client: 'podman',
  summary: 'Podman, Buildah and Skopeo: a drop-in beside registries.conf',

  async find(machine) {
    if (machine.detached) return undefined
    for (const program of ['podman', 'buildah', 'skopeo']) {
      const version = await versionOf(machine, program)
      if (version !== undefined) return `${program} ${version}`
    }
    return undefined
  },

  async targets(machine, { scope, clientVersion }) {
    const { primary, others } = await readersOn(machine, clientVersion)
    const found = {
      era: primary.era,
      ...(primary.version === undefined && { guessed: 'yes' }),
      ...(primary.program === 'skopeo' && { program: 'skopeo' }),
      ...(others.length > 0 && { others: JSON.stringify(others) }),
    }
    if (machine.platform !== 'linux' && !machine.detached) {
      const names = await runningPodmanMachines(machine.runCommand)
      if (names.length === 0) throw noPodmanMachine()
      return names.map((name) => placeOf(machine, { ...found, scope: 'system', machine: name }))
    }
    const user = placeOf(machine, { ...found, scope: 'user' })
    const system = placeOf(machine, { ...found, scope: 'system' })
    if (scope !== undefined) return [scope === 'user' ? user : system]
    const systemFirst = machine.detached || (process.getuid?.() === 0 && !(await hasItsOwn(machine, primary.era)))
    return systemFirst ? [system, user] : [user, system]
  },

  recall: placeOf,
}

/** One of the programs that read these files. */
interface Reader {
  readonly program: Program
  readonly era: Era
  /** Undefined: nobody knows. */
  readonly version: string | undefined
}

type Program = keyof typeof firstModern
/** By which rules the files are read. */
type Era = 'modern' | 'before 6'

/** The first versions with the rules of podman 6, which all three have from one library. */
const firstModern = { podman: [6, 0], buildah: [1, 44], skopeo: [1, 23] } as const

function eraOf(program: Program, version: string | undefined): Era {
  const [major, minor] = firstModern[program]
  return isAtLeast(version, major, minor) ? 'modern' : 'before 6'
}

/** The program to write for, and the others that are here. */
async function readersOn(
  machine: Machine,
  clientVersion: string | undefined,
): Promise<{ primary: Reader; others: readonly Reader[] }> {
  const here: Reader[] = []
  for (const program of Object.keys(firstModern) as Program[]) {
    const version = machine.detached ? undefined : await versionOf(machine, program)
    if (version !== undefined) here.push({ program, version, era: eraOf(program, version) })
  }
  const given = clientVersion && {
    program: 'podman' as const,
    version: clientVersion,
    era: eraOf('podman', clientVersion),
  }
  const primary = given || here[0] || { program: 'podman', version: undefined, era: 'before 6' }
  const others = here.filter(({ program }) => program !== primary.program)
  return { primary, others }
}

function placeOf(machine: Machine, details: ConfigTargetDetails): ConfigTarget {
  const { scope, machine: name, guessed } = details
  const layout = layoutOf(machine, details)
  const others = otherReadersOf(machine, details)
  const target = { files: layout, scope: scope === 'user' ? ('user' as const) : ('system' as const), others }
  const wanted = [layout, ...others.map((other) => other.files)].map(podmanWants)
  const files = [...new Set(wanted.flatMap((one) => one.files))]
  const trees = [...new Set(wanted.flatMap((one) => one.trees))]
  const folder = dropInFolderIn(scope === 'user' ? layout.user! : layout.system.at(-1)!)
  const causes = causesFor(details, layout, machine.env['CONTAINER_HOST'])
  const whose = name === undefined ? (scope === 'user' ? 'user' : 'system') : `the podman machine ${name}`
  return {
    id: name === undefined ? target.scope : `machine ${name}`,
    title: `${whose} (${folder})`,
    details,
    ...surroundings(machine, name),
    wants: { files, trees: [...trees, podmanCertificates(target)] },
    plan(mirror, files) {
      const plan = planPodman(mirror, target, files)
      const guess = 'The version of podman is a guess: one before 6. Say it with --client-version otherwise.'
      return guessed === undefined ? plan : { ...plan, notes: [...plan.notes, guess] }
    },
    strip: (mirror, files) => stripPodman(mirror, target, files),
    ...(!machine.detached && {
      pull: (image: string) => pullByPodman(machine.runCommand, image, name),
      observe: ({ cache }: { readonly cache: string }) => observePodman(machine, cache, name, causes),
    }),
    reasons: [{ why: 'podman is not configured for this mirror', fix: causes.configure, isUnconfigured: true }],
  }
}

function surroundings(machine: Machine, name: string | undefined): { location: ClientLocation; files: FilePort } {
  if (name === undefined) return { location: { in: 'host' }, files: localFiles }
  return {
    location: { in: 'vm', what: `the podman machine ${name}`, hostName: 'host.containers.internal' },
    files: filesOfPodmanMachine(machine.runCommand, name),
  }
}

function layoutOf(machine: Machine, details: ConfigTargetDetails): PodmanFiles {
  const { era, machine: name, program, scope } = details
  const modern = era === 'modern'
  if (name !== undefined) {
    const system = ['/usr/share/containers', '/etc/containers']
    return { system, user: undefined, named: undefined, modern }
  }
  const { root, env, detached, cwd } = machine
  const fileIn = (variable: string) => {
    const path = detached ? undefined : env[variable]
    return path ? resolve(cwd, path) : undefined
  }
  // skopeo took no notice of the variable before.
  const isDeaf = program === 'skopeo' && !modern
  const named = fileIn('CONTAINERS_REGISTRIES_CONF') ?? (modern ? undefined : fileIn('REGISTRIES_CONFIG_PATH'))
  return {
    system: ['usr/share/containers', 'etc/containers'].map((folder) => join(root, folder)),
    user: userFolder(machine, modern),
    named: isDeaf ? undefined : named,
    ...(modern && { override: fileIn('CONTAINERS_REGISTRIES_CONF_OVERRIDE') }),
    modern,
    // What lies below --root for the system is read by root there, too.
    uid: detached ? (scope === 'system' ? 0 : undefined) : process.getuid?.(),
  }
}

/** Those who read the files of a place by other rules than the program that it is written for. */
function otherReadersOf(machine: Machine, details: ConfigTargetDetails): { who: string; files: PodmanFiles }[] {
  const { scope, others = '[]' } = details
  const layout = layoutOf(machine, details)
  const programs = (JSON.parse(others) as Reader[])
    .map(({ program, era, version }) => ({
      who: `${program} ${version}`,
      files: layoutOf(machine, { ...details, era, program }),
    }))
    .filter(({ files }) => !isDeepStrictEqual(files, layout))
  if (scope !== 'system' || !layout.modern || layout.uid !== 0) return programs
  const rootless = { ...layout, user: undefined, named: undefined, override: undefined, uid: undefined }
  return [...programs, { who: 'Users without root', files: rootless }]
}

/** Versions before 6 do not look at `XDG_CONFIG_HOME`. */
function userFolder({ home, env, detached }: Machine, modern: boolean): string {
  const config = modern && !detached ? env['XDG_CONFIG_HOME'] : undefined
  return join(config ?? join(home, '.config'), 'containers')
}

/** Whether this user's own registries.conf keeps podman from reading the system's drop-ins. */
async function hasItsOwn(machine: Machine, era: Era): Promise<boolean> {
  if (era === 'modern') return false
  return (await localFiles.read(mainFileIn(userFolder(machine, false)))) !== undefined
}

async function versionOf({ runCommand }: Machine, program: string): Promise<string | undefined> {
  const result = await runCommand(program, ['--version'], { timeoutMs: 5000 })
  return result?.exitCode === 0 ? /\d+\.\d+[\w.~-]*/.exec(result.stdout)?.[0] : undefined
}

function causesFor(
  { scope, machine: name }: ConfigTargetDetails,
  layout: PodmanFiles,
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
                : `CONTAINERS_REGISTRIES_CONF names ${layout.named}, which may say something else`,
              fix: 'unset CONTAINERS_REGISTRIES_CONF',
            },
          ]),
      ...(remote === undefined
        ? []
        : [{ why: `podman pulls at ${remote}, where other files count`, fix: 'unset CONTAINER_HOST' }]),
      ...(name === undefined
        ? []
        : [
            {
              why: 'The machine does not reach this one',
              fix: `podman machine ssh ${name} curl -sS http://host.containers.internal:5055/v2/`,
            },
          ]),
    ],
  }
}

function noPodmanMachine(): MirrorError {
  return new MirrorError('podman has no running virtual machine here whose files could be written.', {
    exit: exitCode.missing,
    hints: ['podman machine start'],
  })
}

const machineTimeoutMs = 30_000

/** The names of podman's virtual machines that run, its default first; none without podman. */
async function runningPodmanMachines(runCommand: RunCommand): Promise<string[]> {
  const result = await runCommand('podman', ['machine', 'list', '--format', 'json'], { timeoutMs: machineTimeoutMs })
  if (result?.exitCode !== 0) return []
  const machines = JSON.parse(result.stdout || '[]') as { Name?: string; Default?: boolean; Running?: boolean }[]
  return machines
    .filter(({ Name, Running }) => Name !== undefined && Running === true)
    .toSorted((one, other) => Number(other.Default ?? false) - Number(one.Default ?? false))
    .map(({ Name }) => Name!.replace(/\*$/, ''))
}

/** The files of such a machine; its root may write them all. */
function filesOfPodmanMachine(runCommand: RunCommand, name: string): FilePort {
  return shellFiles(`the podman machine ${name}`, (script) =>
    // The script goes in by stdin: ssh would have its arguments read by a shell once more.
    runCommand('podman', ['machine', 'ssh', name, 'sudo', 'sh', '-s'], { input: script, timeoutMs: machineTimeoutMs }),
  )
}

const pullTimeoutMs = 120_000

/**
 * Pulls an image by whichever of podman, buildah and skopeo is there, and removes it again; `machine`: by podman in that virtual
 * machine. Resolves to what it said when it failed. Throws a MirrorError (missing) when none is there.
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
    return { failed: complaint(byPodman) }
  }
  const byBuildah = await run('buildah', 'pull', '--quiet', image)
  if (byBuildah) {
    if (byBuildah.exitCode === 0) await run('buildah', 'rmi', image)
    return { failed: complaint(byBuildah) }
  }
  const folder = await temporaryFolder('mirror-check-')
  try {
    const bySkopeo = await run('skopeo', 'copy', '--quiet', `docker://${image}`, `dir:${folder}`)
    if (bySkopeo) return { failed: complaint(bySkopeo) }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
  throw new MirrorError('Neither podman nor buildah nor skopeo is installed, so nothing can be pulled by them.', {
    exit: exitCode.missing,
  })
}

function complaint({ exitCode, stderr, stdout }: CommandResult): string | undefined {
  if (exitCode === 0) return undefined
  return stderr.trim() || stdout.trim() || (exitCode === undefined ? 'it took too long' : `exit code ${exitCode}`)
}

const timeoutMs = 20_000

/** What podman itself, and the podman services that run, have for Docker Hub. `causes`: what else may explain it. */
async function observePodman(
  { runCommand, env, platform }: Pick<Machine, 'runCommand' | 'env' | 'platform'>,
  cache: string,
  vm: string | undefined,
  causes: { readonly configure: string; readonly others: readonly Reason[] },
): Promise<Observation> {
  const { host } = new URL(cache)
  const ask = async (...how: string[]) =>
    mirrorsIn(await runCommand('podman', [...how, 'info', '--format', 'json'], { timeoutMs }))
  const own = await ask(...(vm === undefined ? [] : ['--connection', vm]))
  const services = vm === undefined && platform === 'linux' ? await runningServices(env) : []
  const asked = await Promise.all(
    services.map(async (service) => ({ ...service, mirrors: await ask('--url', `unix://${service.socket}`) })),
  )
  const has = (mirrors: readonly string[] | undefined) => mirrors?.some((one) => one.split('/', 1)[0] === host)
  const answering = asked.filter(({ mirrors }) => mirrors !== undefined)
  const stale = has(own) === true ? answering.filter(({ mirrors }) => !has(mirrors)) : []
  const inUse = has(own) === true && stale.length > 0 ? false : has(own)
  return {
    inUse,
    saw: [
      own === undefined ? 'podman info cannot be asked.' : `podman info lists ${say(own)} of docker.io.`,
      ...answering.map(({ pid, mirrors }) => `The podman service (pid ${pid}) has ${say(mirrors!)} of docker.io.`),
    ],
    reasons: [
      ...(has(own) === true
        ? [{ why: `podman did not reach ${cache}`, fix: `curl -sS ${cache}/v2/` }]
        : own === undefined
          ? [{ why: 'podman is not configured for this mirror', fix: causes.configure, isUnconfigured: true as const }]
          : [
              { why: 'podman is not configured for this mirror, or another file replaces that', fix: causes.configure },
            ]),
      ...stale.map(({ pid }) => ({
        why: `The podman service (pid ${pid}) has cached its old configuration`,
        fix: restartOf(pid),
      })),
      ...causes.others,
    ],
    todo: stale.map(({ pid }) => `${restartOf(pid)}   (the podman service has cached its old configuration)`),
  }
}

function restartOf(pid: number): string {
  const isRoot = process.geteuid?.() === 0
  return isRoot
    ? `systemctl restart podman   (or end pid ${pid} and start it again)`
    : `systemctl --user restart podman   (or end pid ${pid} and start it again)`
}

function say(mirrors: readonly string[]): string {
  return mirrors.length === 0
    ? 'no mirror'
    : `${mirrors.join(', ')} as ${mirrors.length === 1 ? 'the mirror' : 'mirrors'}`
}

/** The locations of Docker Hub's mirrors; undefined where podman did not answer. */
function mirrorsIn(result: Awaited<ReturnType<RunCommand>>): readonly string[] | undefined {
  const info = result?.exitCode === 0 ? parseObject(result.stdout) : undefined
  if (info === undefined) return undefined
  const registries = isObject(info['registries']) ? info['registries'] : {}
  const hub = registries['docker.io']
  const mirrors: unknown = isObject(hub) ? hub['Mirrors'] : undefined
  return (Array.isArray(mirrors) ? mirrors : []).flatMap((one: unknown) =>
    isObject(one) && typeof one['Location'] === 'string' ? [one['Location']] : [],
  )
}

interface RunningService {
  readonly pid: number
  readonly socket: string
}

/** Each `podman system service` of this user, by proc(5): it reads registries.conf once. */
async function runningServices(env: Machine['env']): Promise<RunningService[]> {
  const isRoot = process.geteuid?.() === 0
  const usual = isRoot
    ? '/run/podman/podman.sock'
    : `${env['XDG_RUNTIME_DIR'] ?? `/run/user/${process.geteuid?.()}`}/podman/podman.sock`
  const found: RunningService[] = []
  for (const entry of (await ifVisible(readdir('/proc'))) ?? []) {
    if (!/^\d+$/.test(entry)) continue
    const words = ((await ifVisible(readFile(`/proc/${entry}/cmdline`, 'utf8'))) ?? '').split('\0').slice(0, -1)
    const at = words.indexOf('service')
    if (basename(words[0] ?? '') !== 'podman' || at < 1 || words[at - 1] !== 'system') continue
    const named = words.slice(at + 1).find((word) => /^(unix:\/\/)?\//.test(word))
    found.push({ pid: Number(entry), socket: named?.replace(/^unix:\/\//, '') ?? usual })
  }
  return found
}
