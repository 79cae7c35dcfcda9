import { posix } from 'node:path'
import { MirrorError } from '../../lib/errors.ts'
import { isAtLeast } from '../address.ts'
import type { FilesSnapshot, Finding } from '../types.ts'
import { asTable, readToml, renderTomlHeading, type TomlTable } from '../edit/toml.ts'
import { type ContainerdFile, readContainerdConfig } from './config-toml.ts'

interface InspectedConfig {
  readonly main: ContainerdFile
  readonly imports: readonly ContainerdFile[]
  /** Holds the output of `containerd config dump`; undefined if only the files are known. */
  readonly dump: string | undefined
  readonly version: string | undefined
  /** Holds the folder that must be in config_path, because it has the mirror's hosts.toml; undefined if none has. */
  readonly hosts: string | undefined
  /** Holds the command that restarts containerd after a change. */
  readonly restart: string
  /** Is true if `mirror configure` of this target writes config_path. */
  readonly isWritten: boolean
}

/** Finds the known faults of containerd's config.toml. */
export function inspectContainerdConfig(config: InspectedConfig): readonly Finding[] {
  const { main, imports, dump, version, hosts, restart, isWritten } = config
  const where = main.name
  let own: ReturnType<typeof readContainerdConfig>
  let effective: ReturnType<typeof readContainerdConfig>
  try {
    own = readContainerdConfig(main, version, imports)
    effective = dump === undefined ? own : readContainerdConfig({ name: where, text: dump }, version)
  } catch (error) {
    if (!(error instanceof MirrorError)) throw error
    const saw = error.message.replace(', so it is left alone', '')
    return [
      { fault: 'containerd.syntax', state: 'fail', where, saw, mend: { advice: `Correct ${where}, then: ${restart}` } },
    ]
  }
  const findings: Finding[] = []
  const { oldKey } = own.oldKey === undefined ? effective : own
  const paths = effective.configPaths
  if (oldKey !== undefined)
    findings.push({
      fault: 'containerd.old-mirrors',
      state: paths.length > 0 ? 'fail' : 'warn',
      where,
      saw:
        paths.length > 0
          ? `${where} sets ${oldKey} beside config_path, so containerd does not load the plugin that pulls images.`
          : `${where} sets ${oldKey}, which containerd 2.4 ignores and which leaves no room for config_path.`,
      mend: { advice: `Remove ${oldKey} from ${where}, then: ${restart}` },
    })
  // Without the mirror's files, the two folders of containerd's own default are no concern of the user.
  const isChosen = hosts !== undefined || own.configPaths.length > 0
  if (paths.length > 1 && isChosen && (version === undefined || isAtLeast(version, 2, 1)))
    findings.push({
      fault: 'containerd.two-folders',
      state: 'warn',
      where,
      saw: `config_path names ${paths.length} folders (${paths.join(':')}), which containerd 2.1 and later may take for one that does not exist.`,
      mend: { advice: `Write config_path = ${JSON.stringify(hosts ?? paths[0])} in ${where}, then: ${restart}` },
    })
  const isLost = hosts !== undefined && !paths.includes(hosts)
  const swallowed = [main, ...imports].flatMap(findSwallowed)
  for (const { file, key, heading, above } of swallowed)
    findings.push({
      fault: 'containerd.swallowed',
      state: isLost ? 'fail' : 'warn',
      where,
      saw: `${key} in ${file} stands below ${heading}, and so is a key of that table without effect.`,
      mend: { advice: `Move ${key} ${above} in ${file}, then: ${restart}` },
    })
  if (swallowed.length > 0) return findings
  if (isLost)
    findings.push({
      fault: 'containerd.config-path',
      state: 'fail',
      where,
      saw: `config_path in ${where} is ${paths.length === 0 ? 'not set' : paths.join(':')}, so containerd does not read the files in ${hosts}.`,
      mend: isWritten
        ? 'configure'
        : { advice: `Write config_path = ${JSON.stringify(hosts)} in ${where}, then: ${restart}` },
    })
  const isCovered = own.ineffectivePaths.every((path) => paths.includes(path)) && paths.length > 0
  if (!isCovered)
    for (const note of own.notes)
      findings.push({
        fault: 'containerd.section',
        state: 'warn',
        where,
        saw: note,
        mend: { advice: `Move these keys to the section that containerd reads, then: ${restart}` },
      })
  return findings
}

interface SwallowedKey {
  readonly file: string
  readonly key: string
  /** Holds the heading of the table that the key is in. */
  readonly heading: string
  /** Says where the key belongs. */
  readonly above: string
}

/** Finds `version` below a heading of a plugin, and `config_path` below a table of its registry. */
function findSwallowed({ name, text }: ContainerdFile): SwallowedKey[] {
  const found: SwallowedKey[] = []
  const walk = (table: TomlTable, path: readonly string[]) => {
    const heading = renderTomlHeading(path)
    const at = path.indexOf('registry')
    const isBelowRegistry = at !== -1 && at < path.length - 1
    if (isBelowRegistry && typeof table['config_path'] === 'string')
      found.push({
        file: name,
        key: 'config_path',
        heading,
        above: `below ${renderTomlHeading(path.slice(0, at + 1))}`,
      })
    if (at !== -1 && typeof table['version'] === 'number')
      found.push({ file: name, key: 'version', heading, above: 'above the first table' })
    for (const [key, value] of Object.entries(table)) {
      const below = asTable(value)
      if (below !== undefined) walk(below, [...path, key])
    }
  }
  const plugins = asTable(readToml(name, text)['plugins'])
  if (plugins !== undefined) walk(plugins, ['plugins'])
  return found
}

/** Finds folders of registries that a `_default` of an earlier folder hides: the first root with either decides. */
export function inspectHiddenFolders(roots: readonly string[], files: FilesSnapshot): readonly Finding[] {
  const listNames = (root: string) => [
    ...new Set(
      files.paths
        .filter((path) => path.startsWith(`${root}/`))
        .map((path) => path.slice(root.length + 1).split('/')[0]!),
    ),
  ]
  return roots.flatMap((root, at) => {
    const own = listNames(root)
    if (!own.includes('_default')) return []
    const hidden = roots.slice(at + 1).flatMap((later) =>
      listNames(later)
        .filter((name) => !own.includes(name))
        .map((name) => posix.join(later, name)),
    )
    if (hidden.length === 0) return []
    return [
      {
        fault: 'containerd.default',
        state: 'warn' as const,
        where: root,
        saw: `${posix.join(root, '_default')} hides ${hidden.join(', ')}, because the first folder that has a registry or _default decides.`,
        mend: { advice: `Move ${hidden.join(', ')} to ${root}.` },
      },
    ]
  })
}
