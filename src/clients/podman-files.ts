/** Where podman, buildah and skopeo look for their registries' settings. */
export interface PodmanFiles {
  /** Folders of the distribution, then of the administrator: `/usr/share/containers`, `/etc/containers`. */
  readonly system: readonly string[]
  /** `~/.config/containers`; undefined where no user's files count. */
  readonly user: string | undefined
  /** What `CONTAINERS_REGISTRIES_CONF` puts in the place of every `registries.conf`. */
  readonly named: string | undefined
  /** Since version 6 drop-ins are sorted by name across folders, and one hides its namesakes in earlier folders. */
  readonly modern: boolean
}

/** All that may hold settings of registries. */
export function podmanWants({ system, user, named, modern }: PodmanFiles): { files: string[]; trees: string[] } {
  const folders = [...system, ...(user === undefined ? [] : [user])]
  return {
    files: [...(named === undefined ? [] : [named]), ...folders.map(mainFileIn)],
    trees: folders.flatMap((folder) => dropInFoldersIn(folder, modern && folder !== user)),
  }
}

/**
 * Those of the files that podman would read, in its order: of tables with the same prefix, the last file's counts. `paths`:
 * the files that are there.
 * https://github.com/containers/image/blob/main/docs/containers-registries.conf.d.5.md
 */
export function inReadingOrder({ system, user, named, modern }: PodmanFiles, paths: readonly string[]): string[] {
  const there = new Set(paths)
  const users = user === undefined ? [] : [user]
  const mains = named === undefined ? [...users, ...system.toReversed()].map(mainFileIn) : [named]
  const main = mains.find((path) => there.has(path))
  // The user's own file makes versions before 6 forget the system's drop-ins, too.
  const usersAlone = user !== undefined && main === mainFileIn(user) && !modern
  const dropIns = [...(usersAlone ? [] : system), ...users]
    .flatMap((folder) => dropInFoldersIn(folder, modern && folder !== user))
    .flatMap((folder) => paths.filter((path) => isDropIn(path, folder)).toSorted())
  return [...(main === undefined ? [] : [main]), ...(modern ? byName(dropIns) : dropIns)]
}

export function mainFileIn(folder: string): string {
  return `${folder}/registries.conf`
}

export function dropInFolderIn(folder: string): string {
  return `${folder}/registries.conf.d`
}

function dropInFoldersIn(folder: string, byUser: boolean): string[] {
  const special = [`${folder}/registries.rootful.conf.d`, `${folder}/registries.rootless.conf.d`]
  return [dropInFolderIn(folder), ...(byUser ? special : [])]
}

function isDropIn(path: string, folder: string): boolean {
  const [file, parent] = [slashed(path), `${slashed(folder)}/`]
  return file.startsWith(parent) && file.endsWith('.conf') && !file.slice(parent.length).includes('/')
}

function byName(paths: readonly string[]): string[] {
  const last = new Map(paths.map((path) => [nameOf(path), path]))
  return [...last.keys()].toSorted().map((name) => last.get(name)!)
}

function nameOf(path: string): string {
  return slashed(path).split('/').at(-1)!
}

function slashed(path: string): string {
  return path.replaceAll('\\', '/')
}
