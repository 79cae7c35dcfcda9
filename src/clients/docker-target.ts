import { majorAndMinor } from './version.ts'

/** One engine, as far as it was found out. */
export interface DockerTarget {
  readonly daemonJson: string
  /** Where it reads a folder per registry; undefined for an engine whose folders cannot be written from here. */
  readonly certsFolder: string | undefined
  /** `28.5.2`; undefined when nobody could tell. */
  readonly version: string | undefined
  readonly imageStore: 'classic' | 'containerd' | undefined
  /** Whether the engine, and all else that reads its folders, knows the capability `referrers` of hosts.toml files. */
  readonly referrers?: boolean
  /** The mirrors of Docker Hub that the engine itself says it has. */
  readonly mirrors: readonly string[]
  /** Registries, and networks in CIDR form, that the engine itself says are insecure. */
  readonly insecure: readonly string[]
  /** What dockerd was given as flags, which its daemon.json may not repeat: values by the flag's name, without dashes. */
  readonly flags: Readonly<Record<string, readonly string[]>>
}

/** `mirrors` in daemon.json, which are for Docker Hub only; a folder per registry; `both` when nobody could tell. */
export type DockerForm = 'mirrors' | 'folders' | 'both'

/** The first version that asks the hosts.toml of a registry's folder: builds always, pulls with the containerd image store only. */
export const firstWithFolders = 28

/** Which form this engine understands. */
export function dockerForm({ certsFolder, version, imageStore }: DockerTarget): DockerForm {
  const major = majorAndMinor(version)?.[0]
  if (certsFolder === undefined || imageStore === 'classic' || (major !== undefined && major < firstWithFolders))
    return 'mirrors'
  return major === undefined || imageStore === undefined ? 'both' : 'folders'
}
