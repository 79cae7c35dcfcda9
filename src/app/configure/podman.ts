import { join } from 'node:path'
import type { ClientHome } from '../../clients/client-address.ts'
import type { FilePort } from '../../clients/file-port.ts'
import { localFiles } from '../../clients/local-files.ts'
import { dropInFolderIn, mainFileIn, podmanWants, type PodmanFiles } from '../../clients/podman-files.ts'
import { planPodman, podmanCertificates } from '../../clients/podman.ts'
import { stripPodman } from '../../clients/podman-strip.ts'
import { MirrorError, exitCode } from '../../lib/errors.ts'
import type { ClientAdapter, ClientPlace, Machine, PlaceDetails } from './client-adapter.ts'
import { filesOfPodmanMachine, runningPodmanMachines } from './podman-machine.ts'
import { pullByPodman } from './podman-pull.ts'

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
    const version = clientVersion ?? (machine.detached ? undefined : await versionOf(machine, 'podman'))
    const era = Number.parseInt(version ?? '', 10) >= 6 ? 'modern' : 'before 6'
    const guessed = version === undefined ? { guessed: 'yes' } : undefined
    if (machine.platform !== 'linux' && !machine.detached) {
      const names = await runningPodmanMachines(machine.runCommand)
      if (names.length === 0) throw noPodmanMachine()
      return names.map((name) => placeOf(machine, { scope: 'system', era, machine: name, ...guessed }))
    }
    const user = placeOf(machine, { scope: 'user', era, ...guessed })
    const system = placeOf(machine, { scope: 'system', era, ...guessed })
    if (scope !== undefined) return [scope === 'user' ? user : system]
    const systemFirst = machine.detached || (process.getuid?.() === 0 && !(await hasItsOwn(machine, era)))
    return systemFirst ? [system, user] : [user, system]
  },

  recall: placeOf,
}

function placeOf(machine: Machine, details: PlaceDetails): ClientPlace {
  const { scope, machine: name, guessed } = details
  const layout = layoutOf(machine, details)
  const target = { files: layout, scope: scope === 'user' ? ('user' as const) : ('system' as const) }
  const { files, trees } = podmanWants(layout)
  const folder = dropInFolderIn(scope === 'user' ? layout.user! : layout.system.at(-1)!)
  const whose =
    name === undefined ? (scope === 'user' ? 'you alone' : 'the whole system') : `the podman machine ${name}`
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
    ...(!machine.detached && { pull: (image: string) => pullByPodman(machine.runCommand, image, name) }),
    reasons: reasonsFor(details, layout, machine.env['CONTAINER_HOST']),
  }
}

function surroundings(machine: Machine, name: string | undefined): { home: ClientHome; files: FilePort } {
  if (name === undefined) return { home: { in: 'host' }, files: localFiles }
  return {
    home: { in: 'vm', what: `the podman machine ${name}`, hostName: 'host.containers.internal' },
    files: filesOfPodmanMachine(machine.runCommand, name),
  }
}

function layoutOf(machine: Machine, { era, machine: name }: PlaceDetails): PodmanFiles {
  const modern = era === 'modern'
  if (name !== undefined) {
    const system = ['/usr/share/containers', '/etc/containers']
    return { system, user: undefined, named: undefined, modern }
  }
  const { root, env, detached } = machine
  return {
    system: ['usr/share/containers', 'etc/containers'].map((folder) => join(root, folder)),
    user: userFolder(machine, modern),
    named: detached ? undefined : env['CONTAINERS_REGISTRIES_CONF'],
    modern,
  }
}

/** Versions before 6 do not look at `XDG_CONFIG_HOME`. */
function userFolder({ home, env, detached }: Machine, modern: boolean): string {
  const config = modern && !detached ? env['XDG_CONFIG_HOME'] : undefined
  return join(config ?? join(home, '.config'), 'containers')
}

/** Whether this user's own registries.conf keeps podman from reading the system's drop-ins. */
async function hasItsOwn(machine: Machine, era: string): Promise<boolean> {
  if (era === 'modern') return false
  return (await localFiles.read(mainFileIn(userFolder(machine, false)))) !== undefined
}

async function versionOf({ runCommand }: Machine, program: string): Promise<string | undefined> {
  const result = await runCommand(program, ['--version'], { timeoutMs: 5000 })
  return result?.exitCode === 0 ? /\d+\.\d+[\w.~-]*/.exec(result.stdout)?.[0] : undefined
}

function reasonsFor(
  { scope, machine: name }: PlaceDetails,
  layout: PodmanFiles,
  remote: string | undefined,
): ClientPlace['reasons'] {
  const configure = name === undefined ? `mirror configure podman --scope ${scope}` : 'mirror configure podman'
  return [
    { why: 'It is not configured, or another file says something else about docker.io', fix: configure },
    ...(scope === 'system' && layout.user !== undefined
      ? [{ why: `Your files below ${layout.user} replace the system's`, fix: 'mirror configure podman --scope user' }]
      : []),
    ...(layout.named === undefined
      ? []
      : [
          {
            why: `CONTAINERS_REGISTRIES_CONF names ${layout.named}, which may say something else`,
            fix: 'unset CONTAINERS_REGISTRIES_CONF',
          },
        ]),
    ...(remote === undefined
      ? []
      : [{ why: `podman pulls at ${remote}, where other files count`, fix: 'unset CONTAINER_HOST' }]),
    name === undefined
      ? {
          why: 'A podman service that runs for long has read its files before',
          fix: `systemctl ${scope === 'user' ? '--user ' : ''}restart podman`,
        }
      : {
          why: 'The machine does not reach this one',
          fix: `podman machine ssh ${name} curl -sS http://host.containers.internal:5055/v2/`,
        },
  ]
}

function noPodmanMachine(): MirrorError {
  return new MirrorError('podman has no running virtual machine here whose files could be written.', {
    exit: exitCode.missing,
    hints: ['podman machine start'],
  })
}
