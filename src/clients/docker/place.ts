import { join } from 'node:path'
import { observeDocker } from '../../app/configure/docker-observation.ts'
import { dockerReload, reloadCommand } from '../../app/configure/docker-reload.ts'
import type { DockerSite } from '../../app/configure/docker-site.ts'
import { validateDaemonJson } from '../../app/configure/validate-daemon-json.ts'
import { createDockerodeEngine } from '../../docker/dockerode.ts'
import type { DockerEndpoint } from '../../docker/endpoint.ts'
import { systemClock } from '../../lib/time.ts'
import type { DockerdProcess } from '../../runtime/dockerd-process.ts'
import type { ConfigPlan, MirrorForClient } from '../client-config.ts'
import { dockerForm, type DockerTarget } from '../docker-target.ts'
import { localFiles } from '../files/local.ts'
import type { ClientPlace, Machine } from '../types.ts'
import { majorAndMinor } from '../version.ts'
import { planDocker, stripDocker, trustByHand } from './plan.ts'

export interface DockerPlaceOptions {
  readonly machine: Machine
  readonly site: DockerSite
  readonly target: DockerTarget
  /** Undefined: there is nobody to speak to. */
  readonly endpoint: DockerEndpoint | undefined
  readonly dockerd: DockerdProcess | undefined
  /** How sure all this is. */
  readonly notes: readonly string[]
}

const pullMs = 90_000
/** Until then BuildKit keeps the mirrors that dockerd was started with. */
const firstWithLiveBuilds = 26

/** One engine as a place for a configuration. */
export function dockerPlace(options: DockerPlaceOptions): ClientPlace {
  const { machine, site, target, endpoint, dockerd, notes } = options
  const { kind, scope, title, home } = site
  const { daemonJson, certsFolder, version, imageStore } = target
  const form = dockerForm(target)
  const hangsUp = endpoint !== undefined && form !== 'folders' && (kind === 'system' || kind === 'rootless')
  return {
    id: idOf(site, machine),
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
    home,
    files: localFiles,
    wants: { files: [daemonJson], trees: certsFolder === undefined ? [] : [certsFolder] },
    plan(mirror, files) {
      const plan = planDocker(mirror, target, files)
      const takesNotice = plan.changes.some(({ path }) => path === daemonJson)
      return {
        changes: plan.changes,
        notes: [...notes, ...plan.notes],
        todo: takesNotice ? [...plan.todo, ...afterwards(options)] : plan.todo,
      }
    },
    strip: (mirror, files) => stripDocker(mirror, target, files),
    ...(!machine.detached &&
      (kind === 'system' || kind === 'rootless') && {
        async validate(changes) {
          const change = changes.find(({ path }) => path === daemonJson)
          if (change) await validateDaemonJson(change, dockerd?.program ?? 'dockerd', machine.runCommand)
        },
      }),
    ...(!machine.detached && {
      afterUndo: (paths: readonly string[]) => (paths.includes(daemonJson) ? untilUndone(options) : []),
    }),
    ...(endpoint && { observe: ({ cache }) => observeDocker(options, cache) }),
    ...(hangsUp && {
      reload: dockerReload({ endpoint, daemonJson, version, dockerd, isRootless: kind === 'rootless' }, systemClock),
    }),
    ...(endpoint && { pull: (image) => createDockerodeEngine(endpoint).tryPull(image, pullMs) }),
    reasons: [{ why: 'docker is not configured for this mirror', fix: 'mirror configure docker' }],
  }
}

/** An engine whose settings are no file of this machine: what to put there goes to stdout. */
export function dockerPlaceByHand(options: Omit<DockerPlaceOptions, 'target'>): ClientPlace {
  const { site, endpoint, notes } = options
  const { kind, scope, title, home } = site
  return {
    id: kind,
    title,
    details: { kind, scope, ...(endpoint !== undefined && { endpoint: JSON.stringify(endpoint) }) },
    home,
    files: localFiles,
    wants: { files: [], trees: [] },
    plan: (mirror) => planByHand(mirror, kind, notes),
    strip: () => [],
    ...(endpoint && { pull: (image) => createDockerodeEngine(endpoint).tryPull(image, pullMs) }),
    reasons: [
      {
        why: 'the settings of the virtual machine do not name the mirror, or it was not restarted since',
        fix: "docker info --format '{{.RegistryConfig.Mirrors}}'",
      },
    ],
  }
}

function planByHand({ cache, ca }: MirrorForClient, kind: DockerSite['kind'], notes: readonly string[]): ConfigPlan {
  const { host } = new URL(cache)
  const settings = {
    'registry-mirrors': [cache],
    ...(cache.startsWith('http:') && { 'insecure-registries': [host] }),
  }
  const trust = trustByHand({ cache, ca })
  if (kind === 'colima')
    return {
      changes: [],
      notes: [...notes, 'Docker in Colima mirrors Docker Hub only, and reads what Colima gives it.'],
      todo: ['colima edit   (put this where "docker: {}" stands)', ...trust, 'colima restart'],
      // JSON is YAML.
      output: `docker: ${JSON.stringify(settings)}\n`,
    }
  return {
    changes: [],
    notes: [...notes, "This Docker's settings are kept by the program that runs its virtual machine."],
    todo: ['Add this to its engine settings (Docker Desktop: Settings, Docker Engine), and restart it there', ...trust],
    output: `${JSON.stringify(settings, null, 2)}\n`,
  }
}

/** Engines of the system with files of their own are places of their own. */
function idOf({ kind, daemonJson = kind }: DockerSite, { root }: Machine): string {
  const isUsual = daemonJson === join(root, 'etc', 'docker', 'daemon.json')
  return kind === 'file' || (kind === 'system' && !isUsual) ? daemonJson : kind
}

/** What makes an engine take notice whose settings are read by another program. */
const restarts: Partial<Record<DockerSite['kind'], string>> = {
  desktop: 'Restart Docker Desktop: docker desktop restart',
  orbstack: 'Restart its engine: orb restart docker',
}

/** What makes the engine take notice of its changed daemon.json. */
function afterwards({ site, target, endpoint, dockerd }: DockerPlaceOptions): string[] {
  const restart = restarts[site.kind]
  if (restart !== undefined) return [restart]
  switch (site.kind) {
    case 'file':
      return []
    default: {
      const command = reloadCommand(dockerd, site.kind === 'rootless')
      const major = majorAndMinor(target.version)?.[0]
      return [
        `${command}   (dockerd reads its file again${endpoint === undefined ? '' : '; --reload does it for you'})`,
        ...(major === undefined || major < firstWithLiveBuilds
          ? [
              'docker build (BuildKit) before Docker 26 uses it only after a restart of dockerd, which stops containers.',
            ]
          : []),
      ]
    }
  }
}

/** What makes an engine forget the mirror that mirror cannot reload; the others are asked what they still have. */
function untilUndone({ site: { kind } }: DockerPlaceOptions): string[] {
  const restart = restarts[kind]
  return restart === undefined ? [] : [restart]
}
