import { dirname } from 'node:path'
import { shellWord } from '../lib/process.ts'
import { caFileName } from './ca-file.ts'
import type { ConfigPlan, FileChange, MirrorForClient } from './client-config.ts'
import type { FilesNow } from './files-now.ts'
import { k3dClusterFile, planClusterFile, stripClusterFile } from './k3d-config.ts'
import { k3sFolder, planRegistries, stripRegistries, type CaPlace } from './k3s.ts'
import { isOurHosting, renderHosting } from './local-registry-hosting.ts'

export interface K3dTarget {
  readonly cluster: string
  /** The registries.yaml that new clusters are made with, or the user's cluster file that has one in it. */
  readonly path: string
  /**
   * Where the mirror's CA is put. The nodes mount its folder: a file that was taken away would keep them from starting again,
   * and one that was replaced would stay the old one there.
   */
  readonly caPath: string
  /** The ConfigMap of the cluster, if it runs and answers; undefined: there is none to be told. */
  readonly hosting: string | undefined
}

const caFolderInNodes = `${k3sFolder}/mirror-ca`

/** The CA as the nodes of k3d have it. */
export function k3dCa(path: string): CaPlace {
  return { path, name: `${caFolderInNodes}/${caFileName}` }
}

/** See ClientPlace.strip. */
export function stripK3d(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  { path, caPath }: Pick<K3dTarget, 'path' | 'caPath'>,
  files: FilesNow,
): FileChange[] {
  const strip = isClusterFile(path, files) ? stripClusterFile : stripRegistries
  return strip(mirror, path, k3dCa(caPath), files)
}

/** Whether the file is that of a whole cluster, which has the registries in it. */
function isClusterFile(path: string, files: FilesNow): boolean {
  const text = files.text(path)
  return text !== undefined && k3dClusterFile(path, text) !== undefined
}

/** k3d: a registries.yaml, and the command that makes a cluster with it. https://k3d.io/stable/usage/registries/ */
export function planK3d(
  mirror: MirrorForClient,
  { cluster, path, caPath, hosting }: K3dTarget,
  files: FilesNow,
): ConfigPlan {
  const isCluster = isClusterFile(path, files)
  const plan = isCluster ? planClusterFile : planRegistries
  const { changes, notes } = plan(mirror, path, k3dCa(caPath), files)
  const strict = mirror.fallback ? [] : [`--k3s-arg '--disable-default-registry-endpoint@server:*;agent:*'`]
  const volume = `${dirname(caPath)}:${caFolderInNodes}@server:*;agent:*`
  const mount = mirror.ca === undefined ? [] : ['--volume', shellWord(volume)]
  const flag = isCluster ? '--config' : '--registry-config'
  const create = ['k3d cluster create', shellWord(cluster), flag, shellWord(path), ...mount, ...strict]
  const { registry } = mirror
  const told = registry === undefined ? undefined : renderHosting(registry)
  const there = hosting === undefined ? undefined : files.text(hosting)
  const isOthers = there !== undefined && !isOurHosting(there)
  if (isOthers) notes.push(`The cluster ${cluster} names a registry of its own to Tilt and skaffold, and keeps it.`)
  return {
    changes: [
      ...changes,
      ...(hosting === undefined || told === undefined || isOthers ? [] : files.change(hosting, told)),
    ],
    notes: [...notes, 'Clusters take it when they are made; one that runs goes on without.'],
    todo:
      hosting === undefined && told !== undefined
        ? [`once it runs, mirror configure k3d --cluster ${cluster} tells Tilt and skaffold about the registry`]
        : [],
    output: `${create.join(' ')}\n`,
  }
}

/** What `mirror configure k3d | sh` runs when there is no command to make a cluster: it ends with our exit code, not with success. */
export function refusedCreate(reason: string, exit: number): string {
  return `exit ${exit} # mirror configure k3d failed: ${reason}\n`
}
