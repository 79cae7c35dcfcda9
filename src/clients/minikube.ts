import { join } from 'node:path'
import { getProgramVersion } from './address.ts'
import { pullByCrictl, pullTimeoutMs } from './containerd/cri.ts'
import { planNodeHostsFolders, getNodeHostsFolders, planHostsRemoval } from './containerd/hosts-toml.ts'
import { inspectHostsFolders, toContainerdReader } from './containerd/inspect-hosts.ts'
import { planCaFile, caFileName, getHostsToTrust } from './files/kinds.ts'
import { localFiles } from './files/local.ts'
import type {
  ClientAdapter,
  ConfigTarget,
  ConfigPlan,
  FileChange,
  FilesSnapshot,
  Machine,
  MirrorForClient,
} from './types.ts'

interface MinikubeTarget {
  /** Holds the folder that minikube copies to `/etc/containerd/certs.d` in its nodes. */
  readonly folder: string
  /** Holds the folder that minikube copies to `/etc/docker/certs.d`. */
  readonly dockerFolder: string
  readonly profile: string
  readonly join: (...parts: string[]) => string
}

/**
 * Plans files for nodes with containerd, which minikube copies at each start, and prints flags for nodes with Docker, which apply
 * at their creation. https://minikube.sigs.k8s.io/docs/handbook/filesync/
 */
function planMinikube(mirror: MirrorForClient, target: MinikubeTarget, files: FilesSnapshot): ConfigPlan {
  const { folder, profile, join } = target
  const { cache, defaultUpstream } = mirror
  const start = `minikube start --profile ${profile}`
  const isHub = defaultUpstream === 'docker.io'
  const isPlain = cache.startsWith('http:')
  const flags = [`--registry-mirror=${cache}`, ...(isPlain ? [`--insecure-registry=${new URL(cache).host}`] : [])]
  return {
    changes: [
      ...planNodeHostsFolders(getNodeHostsFolders(mirror, { referrers: false }), folder, files, join),
      ...listDockerCaFiles(mirror, target).flatMap((path) => planCaFile(path, mirror.ca, files)),
    ],
    notes: [
      'Nodes with containerd use the mirror for every registry, nodes with Docker for Docker Hub only.',
      ...(isHub
        ? []
        : [`No flags for Docker are printed: it would pull from ${defaultUpstream} instead of Docker Hub.`]),
    ],
    todo: [
      `with containerd: ${start} --container-runtime=containerd   (for an existing one: ${start})`,
      ...(isHub
        ? [`with Docker: ${start} --container-runtime=docker ${flags.join(' ')}   (applies at creation only)`]
        : []),
      `for nodes that are Docker containers, make the mirror listen on their network: mirror up --network ${profile}`,
    ],
    ...(isHub && { output: `${flags.join('\n')}\n` }),
  }
}

/** Implements ConfigTarget.strip. */
function stripMinikube(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  target: MinikubeTarget,
  files: FilesSnapshot,
): FileChange[] {
  return [
    ...planHostsRemoval(target.folder, mirror, files),
    ...listDockerCaFiles(mirror, target).flatMap((path) => planCaFile(path, undefined, files)),
  ]
}

function listDockerCaFiles(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  { dockerFolder, join }: MinikubeTarget,
): string[] {
  return getHostsToTrust(mirror).map((host) => join(dockerFolder, host, caFileName))
}

/** Configures minikube with any driver: this machine has the same name in the nodes of each. */
export const minikubeAdapter: ClientAdapter = {
  client: 'minikube',
  summary: 'minikube: files for nodes with containerd, flags for those with Docker',

  async find(machine) {
    const version = await getProgramVersion(machine, 'minikube', 'version', '--short')
    return version && `minikube ${version}`
  },

  async findTargets(machine, { cluster }) {
    return [createTarget(machine, cluster)]
  },

  restoreTarget: (machine, { cluster }) => createTarget(machine, cluster),
}

function createTarget(machine: Machine, cluster: string | undefined): ConfigTarget {
  const profile = cluster ?? 'minikube'
  const filesFolder = join(getMinikubeHome(machine), 'files', 'etc')
  const folder = join(filesFolder, 'containerd', 'certs.d')
  const dockerFolder = join(filesFolder, 'docker', 'certs.d')
  const target = { folder, dockerFolder, profile, join: (...parts: string[]) => join(...parts) }
  return {
    id: 'user',
    title: `nodes of minikube (${folder})`,
    details: { scope: 'user', ...(cluster !== undefined && { cluster }) },
    location: { in: 'vm', what: 'a node of minikube', hostName: 'host.minikube.internal' },
    files: localFiles,
    inputs: { files: [], trees: [folder, dockerFolder] },
    plan: (mirror, files) => planMinikube(mirror, target, files),
    strip: (mirror, files) => stripMinikube(mirror, target, files),
    inspect: (cache, files) => inspectHostsFolders([folder], toContainerdReader(undefined), files, cache),
    ...(!machine.detached && {
      listUndoSteps: () => [`minikube delete --profile ${profile}   (its nodes keep the copied files until then)`],
    }),
    pull(image) {
      const crictlCommand = ['ssh', '--profile', profile, '--', 'sudo', 'crictl']
      const runCrictl = (args: readonly string[]) =>
        machine.runCommand('minikube', [...crictlCommand, ...args], { timeoutMs: pullTimeoutMs })
      return pullByCrictl(runCrictl, image, 'minikube is not installed.')
    },
    reasons: [
      { why: 'the node was started before the change', fix: `minikube start --profile ${profile}` },
      { why: 'the node runs Docker, which takes its flags at creation only', fix: 'mirror configure minikube' },
      {
        why: 'the mirror does not listen on the address that the node uses',
        fix: `mirror up --network ${profile}   (driver docker; for others: cache.listen in mirror.yaml)`,
      },
    ],
  }
}

/** Returns the home folder of minikube. https://minikube.sigs.k8s.io/docs/handbook/config/#environment-variables */
function getMinikubeHome({ env, home, detached }: Machine): string {
  const given = detached ? undefined : env['MINIKUBE_HOME']
  if (!given) return join(home, '.minikube')
  return /[\\/]\.minikube[\\/]?$/.test(given) ? given : join(given, '.minikube')
}
