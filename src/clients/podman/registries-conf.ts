import { exitCode, MirrorError } from '../../lib/errors.ts'
import type { FilesNow } from '../files-now.ts'
import { inReadingOrder, mainFileIn, type PodmanFiles } from '../podman-files.ts'
import { isOldStyle, type RegistryTable, registryTables } from '../podman-tables.ts'
import type { TomlTable } from '../read-toml.ts'

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
