import { join, posix } from 'node:path'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import type { CommandResult } from '../../lib/process.ts'
import { isAtLeast } from '../address.ts'
import { readToml, renderTomlHeading, setTomlValue, asStrings, asTable, type TomlTable } from '../edit/toml.ts'
import { localFiles } from '../files/local.ts'
import type { Machine } from '../types.ts'

/** Holds the settings of a containerd that matter for mirrors. */
export interface ContainerdConfig extends Pick<RegistrySection, 'version' | 'configPaths' | 'oldKey'> {
  /** Names the file whose registry section counts: the main one, or an import that replaces it. */
  readonly file: string
  /** Holds the format version of that file. */
  readonly fileVersion: number
  /** Is true if the CRI plugin is disabled, as in Docker's own package. */
  readonly criOff: boolean
  /** Holds the socket; undefined where the text does not name it. */
  readonly address: string | undefined
  /** Lists settings in sections that containerd does not read, a sentence each. */
  readonly notes: readonly string[]
  /** Holds the folders that those sections name. */
  readonly ineffectivePaths: readonly string[]
}

/** Holds a configuration file: config.toml, or a file that it imports. */
export interface ContainerdFile {
  readonly name: string
  readonly text: string
}

/** Holds all names of the CRI plugins. */
const criPlugins = new Set([
  'cri',
  'io.containerd.grpc.v1.cri',
  'io.containerd.cri.v1.images',
  'io.containerd.cri.v1.runtime',
])

/**
 * Reads a config.toml with the files that it imports, or the output of `containerd config dump`. `containerd`: the program's
 * version, if known. Throws a MirrorError (usage) for invalid TOML.
 * https://github.com/containerd/containerd/blob/main/docs/man/containerd-config.toml.5.md
 */
export function readContainerdConfig(
  main: ContainerdFile,
  containerd: string | undefined,
  imports: readonly ContainerdFile[] = [],
): ContainerdConfig {
  const versions = [main, ...imports].map(({ name, text }) => getFormatVersion(readToml(name, text)))
  const commonVersion = getCommonFormatVersion(versions, containerd)
  const mainVersion = versions[0] ?? 1
  let config: ContainerdConfig | undefined
  for (const { name, text } of [main, ...imports]) {
    const toml = readToml(name, text)
    // Give imports the version of the main file for containerd 1.x, which takes them for parts of it.
    const version = isAtLeast(containerd, 2, 0) ? 1 : commonVersion
    const section = readRegistrySection(name, text, { containerd, version, commonVersion })
    const isPlugin = asTable(asTable(toml['plugins'])?.[getImagePlugin(commonVersion, containerd)]) !== undefined
    const replacesPlugin = !isAtLeast(containerd, 2, 0) && isPlugin
    const isEffective = config === undefined || section.setsPath || replacesPlugin
    const ineffective = section.ineffective.filter(({ configPaths, others }) => configPaths.length + others.length > 0)
    config = {
      version: mainVersion,
      configPaths: isEffective ? section.configPaths : config!.configPaths,
      file: isEffective ? name : config!.file,
      fileVersion: isEffective ? section.version : config!.fileVersion,
      oldKey: config?.oldKey ?? section.oldKey,
      criOff: (config?.criOff ?? false) || asStrings(toml['disabled_plugins']).some((plugin) => criPlugins.has(plugin)),
      address: findAddress(toml, section.version) ?? config?.address,
      notes: [
        ...(config?.notes ?? []),
        ...ineffective.map((one) => describeIneffective(name, one, { version: section.version, containerd })),
      ],
      ineffectivePaths: [...(config?.ineffectivePaths ?? []), ...ineffective.flatMap(({ configPaths }) => configPaths)],
    }
  }
  return config!
}

/** Returns the last format version that a file names. containerd 2.0 to 2.2 convert files of version 1 to the newest version. */
function getCommonFormatVersion(versions: readonly (number | undefined)[], containerd: string | undefined): number {
  if (!isAtLeast(containerd, 2, 0)) return versions.findLast((version) => version !== undefined) ?? 1
  return versions.findLast((version) => version !== undefined && version >= 2) ?? 3
}

/** Returns the absolute paths of the files that a config.toml imports; `*` stands for a part of a name. */
export function getImports({ name, text }: ContainerdFile): string[] {
  return asStrings(readToml(name, text)['imports']).map((path) =>
    posix.isAbsolute(path) ? posix.normalize(path) : posix.join(posix.dirname(name), path),
  )
}

/** Reads config.toml and the files that it imports, if they exist. A missing config.toml has an empty text. */
export async function readConfigFiles({ root }: Machine, name: string): Promise<ContainerdFile[]> {
  const found: ContainerdFile[] = []
  const pending = [name]
  for (const next of pending) {
    if (found.some((file) => file.name === next)) continue
    for (const path of await expandName(root, next)) {
      const file = await localFiles.read(join(root, path))
      if (file === undefined && path !== name) continue
      const read = { name: path, text: Buffer.from(file?.bytes ?? []).toString() }
      found.push(read)
      pending.push(...getImports(read))
    }
  }
  return found
}

/** Returns the names of the files that a name with `*` stands for. */
async function expandName(root: string, name: string): Promise<string[]> {
  const folder = posix.dirname(name)
  if (!name.includes('*') || folder.includes('*')) return [name]
  const paths = (await localFiles.list(join(root, folder))).map((path) =>
    posix.join(folder, path.slice(join(root, folder).length)),
  )
  const pattern = new RegExp(
    `^${name
      .split('*')
      .map((part) => part.replaceAll(/[.+^${}()|[\]\\?]/g, '\\$&'))
      .join('[^/]*')}$`,
  )
  return paths.filter((path) => pattern.test(path))
}

/** Finds the socket. Since format version 4 a plugin has the address; containerd 2.3 prints older files so, too. */
function findAddress(toml: Readonly<Record<string, unknown>>, version: number): string | undefined {
  const plugin = asTable(asTable(toml['plugins'])?.['io.containerd.server.v1.grpc'])?.['address']
  const address = plugin ?? (version >= 4 ? undefined : asTable(toml['grpc'])?.['address'])
  return typeof address === 'string' && address !== '' ? address : undefined
}

/** Returns the lines that make containerd read hosts.toml files, for a config.toml of this format version. */
export function renderConfigPathLines(formatVersion: number, folder: string, containerd: string | undefined): string[] {
  return [getRegistryHeading(getImagePlugin(formatVersion, containerd)), `  config_path = ${JSON.stringify(folder)}`]
}

/** Holds a registry section that containerd does not read. */
interface IneffectiveSection {
  /** Holds the line that names the table: `[plugins."io.containerd.cri.v1.images".registry]`. */
  readonly heading: string
  /** Holds the folders in its `config_path`. */
  readonly configPaths: readonly string[]
  /** Holds its other keys. */
  readonly others: readonly string[]
}

/** Holds the registry settings of a config.toml. */
interface RegistrySection {
  /** Holds the format version; 1 for a text that names none. */
  readonly version: number
  /** Holds the folders in which containerd looks for hosts.toml files. */
  readonly configPaths: readonly string[]
  /** Is true if the section that containerd reads sets `config_path`; an empty one counts. */
  readonly setsPath: boolean
  /**
   * Names the deprecated key that containerd refuses beside `config_path`: `mirrors`, or `configs` with `tls`; undefined if unused.
   */
  readonly oldKey: string | undefined
  readonly ineffective: readonly IneffectiveSection[]
}

/** Holds the name of the plugin that pulls images, by format version. */
const pluginNames = { 1: 'cri', 2: 'io.containerd.grpc.v1.cri', 3: 'io.containerd.cri.v1.images' } as const
type PluginName = (typeof pluginNames)[keyof typeof pluginNames]

/**
 * Returns the plugin whose section containerd reads in a file of this format version. containerd 2.0 to 2.2 rename the sections of
 * version 1, but do not move them to the plugin that they read.
 */
export function getImagePlugin(version: number, containerd?: string): PluginName {
  if (version >= 3 || (version <= 1 && isAtLeast(containerd, 2, 0))) return pluginNames[3]
  return version === 2 ? pluginNames[2] : pluginNames[1]
}

/** Returns the heading of a plugin's registry section: `[plugins."io.containerd.grpc.v1.cri".registry]`. */
export function getRegistryHeading(plugin: string): string {
  return renderTomlHeading(['plugins', plugin, 'registry'])
}

/**
 * Returns the plugins whose section may count; the first that exists does. containerd 2 moves a section of an older format into
 * the new one and replaces it. 2.3 does so file by file, earlier versions by the common version of all files (`commonVersion`).
 */
function getEffectivePlugins(
  own: number,
  containerd: string | undefined,
  commonVersion: number,
): readonly PluginName[] {
  const [first, second, third] = [pluginNames[1], pluginNames[2], pluginNames[3]]
  if (!isAtLeast(containerd, 2, 0)) return [getImagePlugin(commonVersion)]
  if (isAtLeast(containerd, 2, 3)) return own >= 4 ? [third] : own >= 2 ? [second, third] : [first, second, third]
  if (commonVersion !== 2) return [third]
  return own >= 2 ? [second, third] : [first, second, third]
}

interface SectionOptions {
  /** Holds the version of the program, if known. */
  readonly containerd?: string | undefined
  /** Holds the format version of a text that names none. */
  readonly version?: number
  /** Holds the format version of all files together, if the text is one of several. */
  readonly commonVersion?: number | undefined
}

/**
 * Reads the registry settings of a config.toml, a part of one, or the output of `containerd config dump`. Throws a MirrorError
 * (usage) for invalid TOML.
 */
export function readRegistrySection(
  path: string,
  text: string,
  { containerd, version = 1, commonVersion }: SectionOptions = {},
): RegistrySection {
  const toml = readToml(path, text)
  const format = getFormatVersion(toml) ?? version
  const all = asTable(toml['plugins'])
  const getRegistryTable = (plugin: string) => asTable(asTable(all?.[plugin])?.['registry'])
  const counting = getEffectivePlugins(format, containerd, commonVersion ?? format)
  const effective = counting.find((plugin) => getRegistryTable(plugin) !== undefined)
  const section = effective === undefined ? undefined : getRegistryTable(effective)
  return {
    version: format,
    configPaths: getConfigPaths(section),
    setsPath: typeof section?.['config_path'] === 'string',
    // Search all plugins: another version of containerd may read them.
    oldKey: Object.values(pluginNames)
      .map((plugin) => findOldKey(getRegistryTable(plugin)))
      .find((key) => key !== undefined),
    ineffective: Object.values(pluginNames).flatMap((plugin) => {
      const table = getRegistryTable(plugin)
      if (table === undefined || plugin === effective) return []
      const others = Object.keys(table).filter((key) => key !== 'config_path')
      return [{ heading: getRegistryHeading(plugin), configPaths: getConfigPaths(table), others }]
    }),
  }
}

/** Returns the format version; undefined if the text names none. */
function getFormatVersion(toml: TomlTable): number | undefined {
  const { version } = toml
  return typeof version === 'number' ? Math.max(version, 1) : undefined
}

/**
 * Sets `config_path` in a config.toml and keeps all else to the byte. Throws a MirrorError (usage) where that is not possible.
 * https://github.com/containerd/containerd/blob/main/docs/cri/config.md#registry-configuration
 */
export function setConfigPath(path: string, text: string, configPath: string, containerd?: string): string {
  const toml = readToml(path, text)
  // Give a file that sets nothing the version that every containerd reads.
  const isEmpty = Object.keys(toml).length === 0
  const start = isEmpty ? setTomlValue(text, ['version'], 2) : text
  const plugin = getImagePlugin(isEmpty ? 2 : (getFormatVersion(toml) ?? 1), containerd)
  const after = start && setTomlValue(start, ['plugins', plugin, 'registry', 'config_path'], configPath)
  if (after !== undefined) return after
  throw new MirrorError(`${path} cannot be changed without rewriting it, so it is left alone.`, {
    exit: exitCode.usage,
    hints: [`set config_path = ${JSON.stringify(configPath)} in ${getRegistryHeading(plugin)} by hand`],
  })
}

/** Describes a section without effect (with a doubtful one if the version is unknown), and the section that containerd reads. */
function describeIneffective(
  where: string,
  { heading }: IneffectiveSection,
  { version, containerd }: { readonly version: number; readonly containerd: string | undefined },
): string {
  const effect = containerd === undefined ? 'may have no effect' : `has no effect in containerd ${containerd}`
  const format = version === 1 ? 'with version = 1, or none,' : `with version = ${version}`
  return `${heading} in ${where} ${effect}: in a file ${format} containerd reads ${getRegistryHeading(getImagePlugin(version, containerd))}.`
}

function getConfigPaths(section: TomlTable | undefined): string[] {
  const path = section?.['config_path']
  return typeof path === 'string' ? path.split(':').filter(Boolean) : []
}

function findOldKey(section: TomlTable | undefined): string | undefined {
  if (Object.keys(asTable(section?.['mirrors']) ?? {}).length > 0) return 'registry.mirrors'
  const configs = Object.values(asTable(section?.['configs']) ?? {})
  return configs.some((config) => asTable(config)?.['tls'] !== undefined) ? 'registry.configs … tls' : undefined
}

/** Returns the output of `containerd config dump`; undefined without containerd, or if that cannot read its own file. */
export async function dumpContainerdConfig(machine: Machine): Promise<string | undefined> {
  const result = await runConfigDump(machine)
  return result?.exitCode === 0 ? result.stdout : undefined
}

/** Runs `containerd config dump`, which fails where containerd does not start; undefined without containerd. */
export async function runConfigDump({ runCommand, detached }: Machine): Promise<CommandResult | undefined> {
  return detached ? undefined : runCommand('containerd', ['config', 'dump'], { timeoutMs: 10_000 })
}
