import { shellWord } from '../lib/process.ts'
import type { ConfigPlan, FileChange, MirrorForClient } from './client-config.ts'
import type { FilesNow } from './files-now.ts'
import { mergeClusterFile, newClusterFile, stripClusterFile } from './kind/cluster-file.ts'
import { hostsChanges, hostsFolders, withoutHosts } from './node-hosts.ts'

export interface KindTarget {
  /** The folder of this machine whose folders the nodes mount. */
  readonly folder: string
  /** The user's cluster file; undefined: one is printed. */
  readonly file: string | undefined
  readonly join: (...parts: string[]) => string
}

/** Clusters to be made: their cluster file, and the folders that it has the nodes mount. */
export function planKind(mirror: MirrorForClient, { folder, file, join }: KindTarget, files: FilesNow): ConfigPlan {
  // Which containerd their nodes will have, nobody knows yet.
  const folders = hostsFolders(mirror, { referrers: false })
  const mounts = folders.map(({ name }) => ({ hostPath: join(folder, name), name }))
  const changes = hostsChanges(folders, folder, files, join)
  const notes = [`The nodes mount ${mounts.map(({ hostPath }) => hostPath).join(' and ')}.`]
  const todo = [
    'once the cluster runs, mirror configure kind --cluster NAME tells Tilt and skaffold about the registry',
  ]
  if (file === undefined) return { changes, notes, todo, output: newClusterFile(mounts) }
  const before = files.text(file)
  const merged =
    before === undefined ? { text: newClusterFile(mounts), notes: [] } : mergeClusterFile(before, file, mounts)
  const create = `kind create cluster --config ${shellWord(file)}   (a cluster that runs already: mirror configure kind --cluster NAME)`
  return {
    changes: [...changes, ...files.change(file, merged.text)],
    notes: [...notes, ...merged.notes],
    todo: [create, ...todo],
  }
}

/** See ClientPlace.strip. */
export function stripKind(
  mirror: Pick<MirrorForClient, 'cache' | 'registry'>,
  { folder, file }: KindTarget,
  files: FilesNow,
): FileChange[] {
  const text = file === undefined ? undefined : files.text(file)
  return [
    ...withoutHosts(folder, mirror, files),
    ...(file === undefined || text === undefined ? [] : files.change(file, stripClusterFile(text, file, folder))),
  ]
}
