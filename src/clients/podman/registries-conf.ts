import { exitCode, MirrorError } from '../../lib/errors.ts'
import {
  readToml,
  asStrings,
  asTable,
  asTables,
  findTomlTableLines,
  tryReadToml,
  type TomlTable,
} from '../edit/toml.ts'
import type { ClientRoute, FilesSnapshot } from '../types.ts'

/** Holds the table of one registry in one file. */
export interface RegistryTable {
  readonly path: string
  /** Names the file and the line, for messages: `/etc/containers/registries.conf:12`. */
  readonly where: string
  /** Holds the start of image names, without a slash at its end; `*.example.com` means every host below it. */
  readonly prefix: string
  readonly table: TomlTable
}

/** Reads the registries' tables of these files, in their order. Of equal prefixes, the last one counts. */
export function readRegistryTables(paths: readonly string[], files: FilesSnapshot): RegistryTable[] {
  return paths.flatMap((path) => readTables(path, files.getText(path) ?? ''))
}

/** Finds the table that decides about all images of a registry. */
export function findGoverningTable(tables: readonly RegistryTable[], registry: string): RegistryTable | undefined {
  const exact = tables.findLast(({ prefix }) => prefix === registry)
  if (exact) return exact
  const wider = tables.filter(({ prefix }) => prefix.startsWith('*.') && registry.endsWith(prefix.slice(1)))
  return wider.reduce<RegistryTable | undefined>(
    (best, one) => (best === undefined || one.prefix.length >= best.prefix.length ? one : best),
    undefined,
  )
}

/**
 * Finds by the files whether a pull of an image asks the mirror first. Undefined when no table is about the image, and for a file that
 * is not valid.
 */
export function findPodmanRoute(
  cache: string,
  image: string,
  layout: PodmanLayout,
  files: FilesSnapshot,
): ClientRoute | undefined {
  const paths = sortByReadingOrder(layout, files.paths)
  if (paths.some((path) => tryReadToml(files.getText(path) ?? '') === undefined)) return undefined
  const tables = readRegistryTables(paths, files)
  const longest = tables
    .filter(({ prefix }) => image === prefix || /^[/:@]/.test(image.slice(prefix.length)))
    .filter(({ prefix }) => image.startsWith(prefix))
    .reduce<RegistryTable | undefined>((best, one) => {
      return best === undefined || one.prefix.length >= best.prefix.length ? one : best
    }, undefined)
  const found = longest ?? findGoverningTable(tables, image.split('/', 1)[0]!)
  if (found === undefined) return undefined
  const [first = found.table] = asTables(found.table['mirror'])
  const { host } = new URL(cache)
  const viaMirror = found.table['blocked'] !== true && withoutEndSlashes(first['location']).split('/', 1)[0] === host
  const location = withoutEndSlashes(found.table['location'])
  const isPattern = found.prefix.startsWith('*.') || location === ''
  return { viaMirror, where: found.where, image: isPattern ? image : location + image.slice(found.prefix.length) }
}

function readTables(path: string, text: string): RegistryTable[] {
  const toml = readToml(path, text)
  const tables = asTables(toml['registry'])
  const lines = findTomlTableLines(text, 'registry')
  const found = tables.map((table, at) => ({
    path,
    // Add the line only where every table has a heading of its own.
    where: lines.length === tables.length ? `${path}:${lines[at]}` : path,
    prefix: withoutEndSlashes(table['prefix']) || withoutEndSlashes(table['location']),
    table,
  }))
  // Keep the first table of a prefix: within a file, it counts.
  return [...found, ...readOldStyleTables(path, toml)].filter(
    ({ prefix }, at, all) => prefix !== '' && all.findIndex((one) => one.prefix === prefix) === at,
  )
}

/** Returns whether a file is in version 1 of the format, which podman refuses in drop-ins, and since podman 6 in all files. */
export function isOldStyle(path: string, text: string): boolean {
  const lists = asTable(readToml(path, text)['registries'])
  return ['search', 'insecure', 'block'].some((list) => Array.isArray(asTable(lists?.[list])?.['registries']))
}

/** Reads `[registries.insecure]` and `[registries.block]` of version 1 of the format as tables. */
function readOldStyleTables(path: string, toml: TomlTable): RegistryTable[] {
  const lists = asTable(toml['registries'])
  const listNames = (list: string) => asStrings(asTable(lists?.[list])?.['registries']).map(withoutEndSlashes)
  const [insecure, blocked] = [listNames('insecure'), listNames('block')]
  return [...new Set([...blocked, ...insecure])].map((prefix) => ({
    path,
    where: path,
    prefix,
    table: {
      location: prefix,
      ...(insecure.includes(prefix) && { insecure: true }),
      ...(blocked.includes(prefix) && { blocked: true }),
    },
  }))
}

/** Returns a string without slashes at its end; an empty string for any other value. */
export function withoutEndSlashes(value: unknown): string {
  return typeof value === 'string' ? value.replace(/\/+$/, '') : ''
}

/** Locates the files in which podman, buildah or skopeo looks for registries. */
export interface PodmanLayout {
  /** Lists the folders of the distribution, then of the administrator: `/usr/share/containers`, `/etc/containers`. */
  readonly system: readonly string[]
  /** Names the user's folder, `~/.config/containers`; undefined where no user files count. */
  readonly user: string | undefined
  /**
   * Names the file of `CONTAINERS_REGISTRIES_CONF`, read instead of every `registries.conf`; since version 6 instead of all
   * drop-ins, too.
   */
  readonly named: string | undefined
  /** Names the file of `CONTAINERS_REGISTRIES_CONF_OVERRIDE`, which version 6 and later read last. */
  readonly override?: string | undefined
  /**
   * Is true since version 6: drop-ins are sorted by name across folders, and one hides others of its name in folders of lower rank.
   */
  readonly modern: boolean
  /** Holds the user id of the process, 0 for root; undefined for another user of unknown id. */
  readonly uid?: number | undefined
}

/** Returns the files and folders that may have settings of registries. */
export function listConfigFiles(files: PodmanLayout): { files: string[]; trees: string[] } {
  const { system, user, named, override } = files
  const folders = [...system, ...(user === undefined ? [] : [user])]
  return {
    files: [named, override].filter((path) => path !== undefined).concat(folders.map(getMainFile)),
    trees: folders.flatMap((folder) =>
      files.modern && folder !== user ? getAllDropInFolders(folder) : [getDropInFolder(folder)],
    ),
  }
}

/**
 * Returns the files that podman reads, in its order. Of tables with the same prefix, that of the last file counts. `paths`: the
 * files that exist.
 * https://github.com/containers/container-libs/blob/main/image/docs/containers-registries.conf.d.5.md
 */
export function sortByReadingOrder(files: PodmanLayout, paths: readonly string[]): string[] {
  const { system, user, named, override, modern } = files
  const existing = new Set(paths)
  const users = user === undefined ? [] : [user]
  const mains = named === undefined ? [...users, ...system.toReversed()].map(getMainFile) : [named]
  const main = mains.find((path) => existing.has(path))
  const first = main === undefined ? [] : [main]
  if (modern) {
    const last = override !== undefined && existing.has(override) ? [override] : []
    // Leave out the drop-ins: podman reads the named file instead.
    if (named !== undefined) return [...first, ...last]
    const folders = [...system.flatMap((folder) => getDropInFolders(folder, files)), ...users.map(getDropInFolder)]
    return [...first, ...sortByName(folders.flatMap((folder) => getDropIns(folder, paths))), ...last]
  }
  // Leave out the system's drop-ins if the user has a main file: versions before 6 ignore them then.
  const isUserOnly = user !== undefined && main === getMainFile(user)
  const folders = [...(isUserOnly ? [] : system), ...users].map(getDropInFolder)
  return [...first, ...folders.flatMap((folder) => getDropIns(folder, paths))]
}

export function getMainFile(folder: string): string {
  return `${folder}/registries.conf`
}

export function getDropInFolder(folder: string): string {
  return `${folder}/registries.conf.d`
}

/** Returns the drop-in folders below a system folder that count for this user, the one of the highest rank last. */
function getDropInFolders(folder: string, { uid }: PodmanLayout): string[] {
  const special = `${folder}/registries.${uid === 0 ? 'rootful' : 'rootless'}.conf.d`
  const own = uid === undefined || uid === 0 ? [] : [`${special}/${uid}`]
  return [getDropInFolder(folder), special, ...own]
}

/** Returns the drop-in folders of all users; the folder of one user is below that of all users without root. */
function getAllDropInFolders(folder: string): string[] {
  return [getDropInFolder(folder), `${folder}/registries.rootful.conf.d`, `${folder}/registries.rootless.conf.d`]
}

function getDropIns(folder: string, paths: readonly string[]): string[] {
  return paths.filter((path) => isDropIn(path, folder)).toSorted()
}

function isDropIn(path: string, folder: string): boolean {
  const [file, parent] = [withSlashes(path), `${withSlashes(folder)}/`]
  return file.startsWith(parent) && file.endsWith('.conf') && !file.slice(parent.length).includes('/')
}

function sortByName(paths: readonly string[]): string[] {
  const last = new Map(paths.map((path) => [getFileName(path), path]))
  return [...last.keys()].toSorted().map((name) => last.get(name)!)
}

function getFileName(path: string): string {
  return withSlashes(path).split('/').at(-1)!
}

function withSlashes(path: string): string {
  return path.replaceAll('\\', '/')
}

/** Locates a drop-in to write. */
export interface PodmanTarget {
  readonly files: PodmanLayout
  /** Tells whether the drop-in is the user's or the system's. */
  readonly scope: 'user' | 'system'
  /** Lists other readers of such files, by other rules: `skopeo 1.9.3`, `Users without root`. */
  readonly others?: readonly { readonly name: string; readonly files: PodmanLayout }[]
}

/** Returns whether podman reads no drop-ins. */
export function ignoresDropIns({ modern, named }: PodmanLayout): boolean {
  return modern && named !== undefined
}

/** Throws a MirrorError (usage) for a file in version 1 of the format where podman refuses it. */
export function refuseOldStyle(
  path: string,
  { modern, named, system, user }: PodmanLayout,
  files: FilesSnapshot,
): void {
  const mains = [...system, ...(user === undefined ? [] : [user])].map(getMainFile)
  const isDropIn = path !== named && !mains.includes(path)
  if ((!modern && !isDropIn) || !isOldStyle(path, files.getText(path) ?? '')) return
  const readers = modern ? 'podman 6 and later read' : 'drop-ins can have'
  throw new MirrorError(
    `podman refuses ${path}: it is in the first version of the format ([registries.…] lists), and ${readers} only the second.`,
    {
      exit: exitCode.usage,
      hints: [
        'write unqualified-search-registries = […] for [registries.search], and a [[registry]] with "location" and "insecure" or "blocked" for each other registry',
      ],
    },
  )
}

/** Returns a sentence for each variable that names a missing file: podman fails then. `ownPath`: the file that mirror writes. */
export function describeMissingFiles(
  { named, override }: PodmanLayout,
  ownPath: string,
  files: FilesSnapshot,
): string[] {
  const variables = [
    ['CONTAINERS_REGISTRIES_CONF', named],
    ['CONTAINERS_REGISTRIES_CONF_OVERRIDE', override],
  ] as const
  return variables
    .filter(([, path]) => path !== undefined && path !== ownPath && !files.has(path))
    .map(([variable, path]) => `${variable} names ${path}, which does not exist: podman fails until it does.`)
}

/** Returns a sentence for each file that podman 6 will refuse. */
export function describeOldStyleFiles(
  read: readonly string[],
  { modern }: PodmanLayout,
  files: FilesSnapshot,
): string[] {
  if (modern) return []
  return read
    .filter((path) => isOldStyle(path, files.getText(path) ?? ''))
    .map((path) => `${path} is in the first version of the format, which podman 6 refuses.`)
}

/** Returns a sentence for each user file that replaces parts of a system drop-in. */
export function describeUserFiles(
  tables: readonly TomlTable[],
  path: string,
  { files: layout, scope }: PodmanTarget,
  others: readonly string[],
  files: FilesSnapshot,
): string[] {
  if (scope === 'user' || layout.user === undefined) return []
  const advice = 'Configure yourself with --scope user.'
  const main = getMainFile(layout.user)
  if (!layout.modern && files.has(main))
    return [`Your podman reads ${main} instead of everything below ${layout.system.at(-1)}. ${advice}`]
  if (!ignoresDropIns(layout) && !sortByReadingOrder(layout, [...others, path]).includes(path))
    return [`For you, a file of the same name below ${layout.user} hides ${path}. ${advice}`]
  return findLaterTables(tables, path, layout, others, files).map(
    ({ prefix, where }) => `For you, ${where} replaces the table of ${prefix} in this file. ${advice}`,
  )
}

/** Returns a sentence for each table of the drop-in at `path` that other readers do not use. */
export function describeOtherReaders(
  tables: readonly TomlTable[],
  path: string,
  { others: readers = [] }: PodmanTarget,
  others: readonly string[],
  files: FilesSnapshot,
): string[] {
  return readers.flatMap(({ name, files: layout }) => {
    const order = sortByReadingOrder(layout, [...others, path])
    const refused = order.find((one) => layout.modern && one !== path && isOldStyle(one, files.getText(one) ?? ''))
    if (refused !== undefined) return [`${refused} is in the first version of the format, which ${name} refuses.`]
    if (!order.includes(path)) {
      const instead = ignoresDropIns(layout) ? `only ${layout.named}` : `${order[0] ?? 'other files'} instead`
      return [`${name}: not mirrored by this file. It reads ${instead}.`]
    }
    return findLaterTables(tables, path, layout, others, files).map(
      ({ prefix, where }) => `${name}: ${where} replaces the table of ${prefix} in this file.`,
    )
  })
}

/** Finds tables of other files that replace those of the drop-in at `path`. */
function findLaterTables(
  tables: readonly TomlTable[],
  path: string,
  layout: PodmanLayout,
  others: readonly string[],
  files: FilesSnapshot,
): RegistryTable[] {
  const prefixes = new Set(tables.map(({ prefix }) => prefix))
  const order = sortByReadingOrder(layout, [...others, path])
  const later = order.includes(path) ? order.slice(order.indexOf(path) + 1) : []
  return readRegistryTables(later, files).filter(({ prefix }) => prefixes.has(prefix))
}

/** Chooses a name by which podman reads the drop-in after all other files with the same registries. */
export function chooseName(
  candidates: readonly string[],
  tables: readonly TomlTable[],
  layout: PodmanLayout,
  others: readonly string[],
  files: FilesSnapshot,
): string {
  let last: RegistryTable | undefined
  for (const candidate of candidates) {
    const isRead = sortByReadingOrder(layout, [...others, candidate]).includes(candidate)
    ;[last] = findLaterTables(tables, candidate, layout, others, files)
    if (last === undefined && isRead) return candidate
  }
  const isOverride = last !== undefined && last.path === layout.override
  throw new MirrorError(`${last?.where ?? 'Another file'} is read after mirror's own file and would replace it.`, {
    exit: exitCode.usage,
    hints: [
      isOverride
        ? 'unset CONTAINERS_REGISTRIES_CONF_OVERRIDE, or remove the tables of these registries from that file'
        : 'rename that file to come before zz-mirror.conf, then run the command again',
    ],
  })
}
