import { caChange, caFileName, hostsToTrust } from './ca-file.ts'
import type { ConfigPlan, FileChange, MirrorForClient } from './client-config.ts'
import type { FilesNow } from './files-now.ts'
import { hostsChanges, hostsFolders, withoutHosts } from './node-hosts.ts'

export interface MinikubeTarget {
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
export function planMinikube(mirror: MirrorForClient, target: MinikubeTarget, files: FilesNow): ConfigPlan {
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

/** See ClientPlace.strip. */
export function stripMinikube(
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
