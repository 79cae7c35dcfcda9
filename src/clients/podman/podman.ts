import { join, resolve } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { filesOfPodmanMachine, runningPodmanMachines } from '../../app/configure/podman-machine.ts'
import { pullByPodman } from '../../app/configure/podman-pull.ts'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import type { ClientHome } from '../address.ts'
import type { FilePort } from '../file-port.ts'
import { localFiles } from '../files/local.ts'
import { dropInFolderIn, mainFileIn, type PodmanFiles, podmanWants } from '../podman-files.ts'
import { stripPodman } from '../podman-strip.ts'
import type { ClientAdapter, ClientPlace, Machine, PlaceDetails, Reason } from '../types.ts'
import { isAtLeast } from '../version.ts'
import { observePodman } from './observation.ts'
import { planPodman, podmanCertificates } from './plan.ts'

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

  async places(machine, { scope, clientVersion }) {
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

function placeOf(machine: Machine, details: PlaceDetails): ClientPlace {
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

function surroundings(machine: Machine, name: string | undefined): { home: ClientHome; files: FilePort } {
  if (name === undefined) return { home: { in: 'host' }, files: localFiles }
  return {
    home: { in: 'vm', what: `the podman machine ${name}`, hostName: 'host.containers.internal' },
    files: filesOfPodmanMachine(machine.runCommand, name),
  }
}

function layoutOf(machine: Machine, details: PlaceDetails): PodmanFiles {
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
function otherReadersOf(machine: Machine, details: PlaceDetails): { who: string; files: PodmanFiles }[] {
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
  { scope, machine: name }: PlaceDetails,
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
