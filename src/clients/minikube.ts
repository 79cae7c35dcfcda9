import { join } from 'node:path'
import { versionOf } from './address.ts'
import { pullByCrictl, pullTimeoutMs } from './containerd/cri.ts'
import { hostsChanges, hostsFolders, withoutHosts } from './containerd/hosts-toml.ts'
import { caChange, caFileName, hostsToTrust } from './files/kinds.ts'
import { localFiles } from './files/local.ts'
import type {
  ClientAdapter,
  ConfigTarget,
  ConfigPlan,
  FileChange,
  FilesNow,
  Machine,
  MirrorForClient,
} from './types.ts'

interface MinikubeTarget {
  /** Where minikube keeps what it copies into its nodes as `/etc/containerd/certs.d`. */
  readonly folder: string
  /** Where it keeps what it copies into them as `/etc/docker/certs.d`. */
  readonly dockerFolder: string
  readonly profile: string
  readonly join: (...parts: string[]) => string
}

/**
 * minikube: files for nodes with containerd, which it copies at every start, and flags for nodes with Docker, which it takes
 * when they are made. https://minikube.sigs.k8s.io/docs/handbook/filesync/
 */
function planMinikube(mirror: MirrorForClient, target: MinikubeTarget, files: FilesNow): ConfigPlan {
  const { folder, profile, join } = target
  const { cache, defaultUpstream } = mirror
  const start = `minikube start --profile ${profile}`
  const isHub = defaultUpstream === 'docker.io'
  const isPlain = cache.startsWith('http:')
  const flags = [`--registry-mirror=${cache}`, ...(isPlain ? [`--insecure-registry=${new URL(cache).host}`] : [])]
  return {
    changes: [
      ...hostsChanges(hostsFolders(mirror, { referrers: false }), folder, files, join),
      ...dockerCaFiles(mirror, target).flatMap((path) => caChange(path, mirror.ca, files)),
    ],
    notes: [
      'Nodes with containerd go through the mirror for every registry, nodes with Docker for Docker Hub only.',
      ...(isHub
        ? []
        : [`Docker in a node would ask the mirror for ${defaultUpstream} instead of Docker Hub: no flags for it.`]),
    ],
    todo: [
      `with containerd: ${start} --container-runtime=containerd   (one that exists: ${start})`,
      ...(isHub
        ? [`with Docker: ${start} --container-runtime=docker ${flags.join(' ')}   (only when it is made)`]
        : []),
      `have the mirror listen for nodes that are Docker containers: mirror up --network ${profile}`,
    ],
    ...(isHub && { output: `${flags.join('\n')}\n` }),
  }
}

/** See ConfigTarget.strip. */
function stripMinikube(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  target: MinikubeTarget,
  files: FilesNow,
): FileChange[] {
  return [
    ...withoutHosts(target.folder, mirror, files),
    ...dockerCaFiles(mirror, target).flatMap((path) => caChange(path, undefined, files)),
  ]
}

function dockerCaFiles(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  { dockerFolder, join }: MinikubeTarget,
): string[] {
  return hostsToTrust(mirror).map((host) => join(dockerFolder, host, caFileName))
}

/** minikube, with whatever driver: each gives this machine the same name in its nodes. */
export const minikubeAdapter: ClientAdapter = {
  client: 'minikube',
  summary: 'minikube: files for nodes with containerd, flags for those with Docker',

  async find(machine) {
    const version = await versionOf(machine, 'minikube', 'version', '--short')
    return version && `minikube ${version}`
  },

  async targets(machine, { cluster }) {
    return [place(machine, cluster)]
  },

  recall: (machine, { cluster }) => place(machine, cluster),
}

function place(machine: Machine, cluster: string | undefined): ConfigTarget {
  const profile = cluster ?? 'minikube'
  const copied = join(minikubeHome(machine), 'files', 'etc')
  const folder = join(copied, 'containerd', 'certs.d')
  const dockerFolder = join(copied, 'docker', 'certs.d')
  const target = { folder, dockerFolder, profile, join: (...parts: string[]) => join(...parts) }
  return {
    id: 'user',
    title: `nodes of minikube (${folder})`,
    details: { scope: 'user', ...(cluster !== undefined && { cluster }) },
    location: { in: 'vm', what: 'a node of minikube', hostName: 'host.minikube.internal' },
    files: localFiles,
    wants: { files: [], trees: [folder, dockerFolder] },
    plan: (mirror, files) => planMinikube(mirror, target, files),
    strip: (mirror, files) => stripMinikube(mirror, target, files),
    ...(!machine.detached && {
      afterUndo: () => [`minikube delete --profile ${profile}   (until then its nodes keep what was copied into them)`],
    }),
    pull(image) {
      const inNode = ['ssh', '--profile', profile, '--', 'sudo', 'crictl']
      const crictl = (args: readonly string[]) =>
        machine.runCommand('minikube', [...inNode, ...args], { timeoutMs: pullTimeoutMs })
      return pullByCrictl(crictl, image, 'There is no minikube here.')
    },
    reasons: [
      { why: 'the node was started before', fix: `minikube start --profile ${profile}` },
      { why: 'the node runs Docker, which takes its flags only when it is made', fix: 'mirror configure minikube' },
      {
        why: 'the mirror does not listen where the node reaches this machine',
        fix: `mirror up --network ${profile}   (driver docker; for others: cache.listen in mirror.yaml)`,
      },
    ],
  }
}

/** https://minikube.sigs.k8s.io/docs/handbook/config/#environment-variables */
function minikubeHome({ env, home, detached }: Machine): string {
  const given = detached ? undefined : env['MINIKUBE_HOME']
  if (!given) return join(home, '.minikube')
  return /[\\/]\.minikube[\\/]?$/.test(given) ? given : join(given, '.minikube')
}
