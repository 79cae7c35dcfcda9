/** Where podman, buildah or skopeo looks for its registries' settings. */
export interface PodmanFiles {
  /** Folders of the distribution, then of the administrator: `/usr/share/containers`, `/etc/containers`. */
  readonly system: readonly string[]
  /** `~/.config/containers`; undefined where no user's files count. */
  readonly user: string | undefined
  /**
   * What `CONTAINERS_REGISTRIES_CONF` puts in the place of every `registries.conf`; since version 6 in the place of all drop-ins,
   * too.
   */
  readonly named: string | undefined
  /** What `CONTAINERS_REGISTRIES_CONF_OVERRIDE` names, which version 6 and later read last of all. */
  readonly override?: string | undefined
  /** Since version 6 drop-ins are sorted by name across folders, and one hides its namesakes in folders that count less. */
  readonly modern: boolean
  /** Who runs it, 0 for root; undefined for another user whose number nobody knows. */
  readonly uid?: number | undefined
}

/** All that may hold settings of registries. */
export function podmanWants(files: PodmanFiles): { files: string[]; trees: string[] } {
  const { system, user, named, override } = files
  const folders = [...system, ...(user === undefined ? [] : [user])]
  return {
    files: [named, override].filter((path) => path !== undefined).concat(folders.map(mainFileIn)),
    trees: folders.flatMap((folder) =>
      files.modern && folder !== user ? specialFolders(folder) : [dropInFolderIn(folder)],
    ),
  }
}

/**
 * Those of the files that podman would read, in its order: of tables with the same prefix, the last file's counts. `paths`:
 * the files that are there.
 * https://github.com/containers/container-libs/blob/main/image/docs/containers-registries.conf.d.5.md
 */
export function inReadingOrder(files: PodmanFiles, paths: readonly string[]): string[] {
  const { system, user, named, override, modern } = files
  const there = new Set(paths)
  const users = user === undefined ? [] : [user]
  const mains = named === undefined ? [...users, ...system.toReversed()].map(mainFileIn) : [named]
  const main = mains.find((path) => there.has(path))
  const first = main === undefined ? [] : [main]
  if (modern) {
    const last = override !== undefined && there.has(override) ? [override] : []
    // The named file is read instead of the drop-ins.
    if (named !== undefined) return [...first, ...last]
    const folders = [...system.flatMap((folder) => countingFolders(folder, files)), ...users.map(dropInFolderIn)]
    return [...first, ...byName(folders.flatMap((folder) => dropInsIn(folder, paths))), ...last]
  }
  // The user's own file makes versions before 6 forget the system's drop-ins, too.
  const usersAlone = user !== undefined && main === mainFileIn(user)
  const folders = [...(usersAlone ? [] : system), ...users].map(dropInFolderIn)
  return [...first, ...folders.flatMap((folder) => dropInsIn(folder, paths))]
}

export function mainFileIn(folder: string): string {
  return `${folder}/registries.conf`
}

export function dropInFolderIn(folder: string): string {
  return `${folder}/registries.conf.d`
}

/** Those with drop-ins of a system's folder that count for this user, the one that counts most last. */
function countingFolders(folder: string, { uid }: PodmanFiles): string[] {
  const special = `${folder}/registries.${uid === 0 ? 'rootful' : 'rootless'}.conf.d`
  const own = uid === undefined || uid === 0 ? [] : [`${special}/${uid}`]
  return [dropInFolderIn(folder), special, ...own]
}

/** All of them, whoever they are for; the folder of one user is below that of all without root. */
function specialFolders(folder: string): string[] {
  return [dropInFolderIn(folder), `${folder}/registries.rootful.conf.d`, `${folder}/registries.rootless.conf.d`]
}

function dropInsIn(folder: string, paths: readonly string[]): string[] {
  return paths.filter((path) => isDropIn(path, folder)).toSorted()
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
