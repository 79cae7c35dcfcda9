import { exitCode, MirrorError } from '../../lib/errors.ts'
import { readToml, stringsOf, tableOf, tablesOf, tomlTableLines, type TomlTable } from '../edit/toml.ts'
import type { FilesNow } from '../types.ts'

/** What one file says about one registry. */
export interface RegistryTable {
  readonly path: string
  /** `/etc/containers/registries.conf:12` */
  readonly where: string
  /** What image names begin with, without a slash at its end; `*.example.com` means every host below it. */
  readonly prefix: string
  readonly table: TomlTable
}

/** The registries' tables of these files, in their order: of equal prefixes, the last one counts. */
export function registryTables(paths: readonly string[], files: FilesNow): RegistryTable[] {
  return paths.flatMap((path) => tablesOfFile(path, files.text(path) ?? ''))
}

/** The table that decides about all images of a registry, if there is one. */
export function governing(tables: readonly RegistryTable[], registry: string): RegistryTable | undefined {
  const exact = tables.findLast(({ prefix }) => prefix === registry)
  if (exact) return exact
  const wider = tables.filter(({ prefix }) => prefix.startsWith('*.') && registry.endsWith(prefix.slice(1)))
  return wider.reduce<RegistryTable | undefined>(
    (best, one) => (best === undefined || one.prefix.length >= best.prefix.length ? one : best),
    undefined,
  )
}

function tablesOfFile(path: string, text: string): RegistryTable[] {
  const toml = readToml(path, text)
  const tables = tablesOf(toml['registry'])
  const lines = tomlTableLines(text, 'registry')
  const found = tables.map((table, at) => ({
    path,
    // Only where every table has a header of its own can they be told apart by line.
    where: lines.length === tables.length ? `${path}:${lines[at]}` : path,
    prefix: trimmed(table['prefix']) || trimmed(table['location']),
    table,
  }))
  // Within a file, the first table of a prefix is the one that counts.
  return [...found, ...oldStyle(path, toml)].filter(
    ({ prefix }, at, all) => prefix !== '' && all.findIndex((one) => one.prefix === prefix) === at,
  )
}

/** Whether a file is in the first version of the format, which drop-ins may not have, and no file since podman 6. */
function isOldStyle(path: string, text: string): boolean {
  const lists = tableOf(readToml(path, text)['registries'])
  return ['search', 'insecure', 'block'].some((list) => Array.isArray(tableOf(lists?.[list])?.['registries']))
}

/** `[registries.insecure]` and `[registries.block]` of the first version of the format. */
function oldStyle(path: string, toml: TomlTable): RegistryTable[] {
  const lists = tableOf(toml['registries'])
  const named = (list: string) => stringsOf(tableOf(lists?.[list])?.['registries']).map(trimmed)
  const [insecure, blocked] = [named('insecure'), named('block')]
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

export function trimmed(value: unknown): string {
  return typeof value === 'string' ? value.replace(/\/+$/, '') : ''
}

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

export interface PodmanTarget {
  readonly files: PodmanFiles
  /** Whose drop-in is written. */
  readonly scope: 'user' | 'system'
  /** Who else reads such files, by other rules: `skopeo 1.9.3`, `users without root`. */
  readonly others?: readonly { readonly who: string; readonly files: PodmanFiles }[]
}

/** Whether no drop-in is read at all. */
export function isMasked({ modern, named }: PodmanFiles): boolean {
  return modern && named !== undefined
}

/** podman itself stops at such a file. */
export function refuseOldStyle(path: string, { modern, named, system, user }: PodmanFiles, files: FilesNow): void {
  const mains = [...system, ...(user === undefined ? [] : [user])].map(mainFileIn)
  const isDropIn = path !== named && !mains.includes(path)
  if ((!modern && !isDropIn) || !isOldStyle(path, files.text(path) ?? '')) return
  const which = modern ? 'podman 6 and later read' : 'drop-ins may have'
  throw new MirrorError(
    `podman refuses ${path}: it is in the first version of the format ([registries.…] lists), and ${which} only the second.`,
    {
      exit: exitCode.usage,
      hints: [
        'write unqualified-search-registries = […] for [registries.search], and a [[registry]] with "location" and "insecure" or "blocked" for each of the others',
      ],
    },
  )
}

/** podman stops where a variable names a file that is not there. */
export function namedInVain({ named, override }: PodmanFiles, ours: string, files: FilesNow): string[] {
  const variables = [
    ['CONTAINERS_REGISTRIES_CONF', named],
    ['CONTAINERS_REGISTRIES_CONF_OVERRIDE', override],
  ] as const
  return variables
    .filter(([, path]) => path !== undefined && path !== ours && !files.has(path))
    .map(([variable, path]) => `${variable} names ${path}, which is not there: podman fails until it is.`)
}

/** What will stop working with podman 6. */
export function olderFormats(read: readonly string[], { modern }: PodmanFiles, files: FilesNow): string[] {
  if (modern) return []
  return read
    .filter((path) => isOldStyle(path, files.text(path) ?? ''))
    .map((path) => `${path} is in the first version of the format, which podman 6 refuses.`)
}

/** For a drop-in of the system's: what the user's files say instead. */
export function usersOwn(
  tables: readonly TomlTable[],
  path: string,
  { files: layout, scope }: PodmanTarget,
  others: readonly string[],
  files: FilesNow,
): string[] {
  if (scope === 'user' || layout.user === undefined) return []
  const advice = 'Configure yourself with --scope user.'
  const main = mainFileIn(layout.user)
  if (!layout.modern && files.has(main))
    return [`Your podman reads ${main} instead of everything below ${layout.system.at(-1)}. ${advice}`]
  if (!isMasked(layout) && !inReadingOrder(layout, [...others, path]).includes(path))
    return [`For you, a file of the same name below ${layout.user} hides ${path}. ${advice}`]
  return readLater(tables, path, layout, others, files).map(
    ({ prefix, where }) => `For you, ${where} replaces what is written here about ${prefix}. ${advice}`,
  )
}

/** What those who read the files by other rules do not see of ours. */
export function otherReaders(
  tables: readonly TomlTable[],
  path: string,
  { others: readers = [] }: PodmanTarget,
  others: readonly string[],
  files: FilesNow,
): string[] {
  return readers.flatMap(({ who, files: layout }) => {
    const order = inReadingOrder(layout, [...others, path])
    const refused = order.find((one) => layout.modern && one !== path && isOldStyle(one, files.text(one) ?? ''))
    if (refused !== undefined) return [`${refused} is in the first version of the format, which ${who} refuses.`]
    if (!order.includes(path)) {
      const instead = isMasked(layout) ? `only ${layout.named}` : `${order[0] ?? 'other files'} instead`
      return [`${who}: not mirrored by this file. What is read is ${instead}.`]
    }
    return readLater(tables, path, layout, others, files).map(
      ({ prefix, where }) => `${who}: ${where} replaces what is written here about ${prefix}.`,
    )
  })
}

/** The tables of other files that replace ours. */
function readLater(
  tables: readonly TomlTable[],
  path: string,
  layout: PodmanFiles,
  others: readonly string[],
  files: FilesNow,
): RegistryTable[] {
  const prefixes = new Set(tables.map(({ prefix }) => prefix))
  const order = inReadingOrder(layout, [...others, path])
  const later = order.includes(path) ? order.slice(order.indexOf(path) + 1) : []
  return registryTables(later, files).filter(({ prefix }) => prefixes.has(prefix))
}

/** A name under which our file is read after all others that speak of the same registries. */
export function chooseName(
  candidates: readonly string[],
  tables: readonly TomlTable[],
  layout: PodmanFiles,
  others: readonly string[],
  files: FilesNow,
): string {
  let last: RegistryTable | undefined
  for (const candidate of candidates) {
    const isRead = inReadingOrder(layout, [...others, candidate]).includes(candidate)
    ;[last] = readLater(tables, candidate, layout, others, files)
    if (last === undefined && isRead) return candidate
  }
  const isOverride = last !== undefined && last.path === layout.override
  throw new MirrorError(`${last?.where ?? 'Another file'} is read after mirror's own file and would replace it.`, {
    exit: exitCode.usage,
    hints: [
      isOverride
        ? 'unset CONTAINERS_REGISTRIES_CONF_OVERRIDE, or take the tables of these registries out of that file'
        : 'give that file a name that comes before zz-mirror.conf, and try again',
    ],
  })
}
