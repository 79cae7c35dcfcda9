import { join } from 'node:path'
import { createDockerEngine } from '../../docker/dockerode-engine.ts'
import type { DockerEndpoint } from '../../docker/endpoint.ts'
import { systemClock } from '../../lib/time.ts'
import { localFiles } from '../files/local.ts'
import type { ConfigPlan, ConfigTarget, Machine, MirrorForClient } from '../types.ts'
import { type DockerTarget, getDockerForm, validateDaemonJson } from './daemon-json.ts'
import { type DockerdProcess, type DockerInstallation, listBuildNotes } from './engines.ts'
import { inspectDocker } from './inspect.ts'
import { observeDocker } from './observe.ts'
import { listTrustSteps, planDocker, stripDocker } from './plan.ts'
import { createDockerReload, getReloadCommand } from './reload.ts'

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
export function createConfigTarget(options: DockerTargetOptions): ConfigTarget {
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
    ...(endpoint && { observe: ({ cache }) => observeDocker(options, cache) }),
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
export function createManualTarget(options: Omit<DockerTargetOptions, 'target'>): ConfigTarget {
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
        ...listBuildNotes(target.version),
      ]
    }
  }
}

/** Lists the restart of an engine that mirror cannot reload; `observeDocker` asks the other engines for their mirrors. */
function listUndoSteps({ installation: { kind } }: DockerTargetOptions): string[] {
  const restart = restartSteps[kind]
  return restart === undefined ? [] : [restart]
}
