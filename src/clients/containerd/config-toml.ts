import { posix } from 'node:path'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { isAtLeast } from '../address.ts'
import { readToml, renderTomlHeading, setTomlValue, stringsOf, tableOf, type TomlTable } from '../edit/toml.ts'
import type { Machine } from '../types.ts'

/** What matters to us in a containerd's configuration. */
export interface ContainerdConfig extends Pick<RegistrySection, 'version' | 'configPaths' | 'oldKey'> {
  /** The file whose section about registries counts: the main one, or an import that takes its place. */
  readonly file: string
  /** The version of that file's format. */
  readonly fileVersion: number
  /** Kubernetes' interface is switched off, as Docker's own package has it. */
  readonly criOff: boolean
  /** The socket it listens on; undefined where the text does not say. */
  readonly address: string | undefined
  /** What is set where containerd does not look, a sentence each. */
  readonly notes: readonly string[]
  /** Folders that are named there. */
  readonly meantPaths: readonly string[]
}

/** A file of the configuration: config.toml, or one that it imports. */
export interface ContainerdFile {
  readonly name: string
  readonly text: string
}

/** The plugins of Kubernetes' interface, by all their names. */
const criPlugins = new Set([
  'cri',
  'io.containerd.grpc.v1.cri',
  'io.containerd.cri.v1.images',
  'io.containerd.cri.v1.runtime',
])

/**
 * Reads a config.toml with the files that it imports, or what `containerd config dump` prints. `containerd`: the program's
 * version, where it is known. Throws a MirrorError (usage) for what is no TOML.
 * https://github.com/containerd/containerd/blob/main/docs/man/containerd-config.toml.5.md
 */
export function readContainerdConfig(
  main: ContainerdFile,
  containerd: string | undefined,
  imports: readonly ContainerdFile[] = [],
): ContainerdConfig {
  const versions = [main, ...imports].map(({ name, text }) => versionIn(readToml(name, text)))
  const whole = wholeVersion(versions, containerd)
  const mainVersion = versions[0] ?? 1
  let config: ContainerdConfig | undefined
  for (const { name, text } of [main, ...imports]) {
    const toml = readToml(name, text)
    // containerd 1.x takes an import for a part of the main file.
    const version = isAtLeast(containerd, 2, 0) ? 1 : whole
    const section = registrySection(name, text, { containerd, version, whole })
    const isPlugin = tableOf(tableOf(toml['plugins'])?.[pluginOf(whole, containerd)]) !== undefined
    const replacesPlugin = !isAtLeast(containerd, 2, 0) && isPlugin
    const counts = config === undefined || section.setsPath || replacesPlugin
    const ineffective = section.ineffective.filter(({ configPaths, others }) => configPaths.length + others.length > 0)
    config = {
      version: mainVersion,
      configPaths: counts ? section.configPaths : config!.configPaths,
      file: counts ? name : config!.file,
      fileVersion: counts ? section.version : config!.fileVersion,
      oldKey: config?.oldKey ?? section.oldKey,
      criOff: (config?.criOff ?? false) || stringsOf(toml['disabled_plugins']).some((plugin) => criPlugins.has(plugin)),
      address: addressIn(toml, section.version) ?? config?.address,
      notes: [
        ...(config?.notes ?? []),
        ...ineffective.map((one) => sayIneffective(name, one, { version: section.version, containerd })),
      ],
      meantPaths: [...(config?.meantPaths ?? []), ...ineffective.flatMap(({ configPaths }) => configPaths)],
    }
  }
  return config!
}

/** The version of all files together: the last that one names. containerd 2.0 to 2.2 bring files of version 1 to the newest. */
function wholeVersion(versions: readonly (number | undefined)[], containerd: string | undefined): number {
  if (!isAtLeast(containerd, 2, 0)) return versions.findLast((version) => version !== undefined) ?? 1
  return versions.findLast((version) => version !== undefined && version >= 2) ?? 3
}

/** The files that a config.toml imports, as it names them; `*` stands for a part of a name. */
export function importsOf({ name, text }: ContainerdFile): string[] {
  return stringsOf(readToml(name, text)['imports']).map((path) =>
    posix.isAbsolute(path) ? posix.normalize(path) : posix.join(posix.dirname(name), path),
  )
}

/** Since version 4 of the format the address is that of a plugin; containerd 2.3 prints it so for older files as well. */
function addressIn(toml: Readonly<Record<string, unknown>>, version: number): string | undefined {
  const plugin = tableOf(tableOf(toml['plugins'])?.['io.containerd.server.v1.grpc'])?.['address']
  const address = plugin ?? (version >= 4 ? undefined : tableOf(toml['grpc'])?.['address'])
  return typeof address === 'string' && address !== '' ? address : undefined
}

/** The lines that make containerd look for hosts.toml files, in the format that a config.toml of this version has. */
export function configPathLines(formatVersion: number, folder: string, containerd: string | undefined): string[] {
  return [headingOf(pluginOf(formatVersion, containerd)), `  config_path = ${JSON.stringify(folder)}`]
}

/** A section that sets something about registries where containerd does not look. */
interface IneffectiveSection {
  /** `[plugins."io.containerd.cri.v1.images".registry]` */
  readonly heading: string
  /** The folders that it names. */
  readonly configPaths: readonly string[]
  /** Its other keys. */
  readonly others: readonly string[]
}

/** What a containerd's configuration says about registries. */
interface RegistrySection {
  /** The format's version; 1 for a text that names none. */
  readonly version: number
  /** The folders where hosts.toml is looked for; none when it is not looked for. */
  readonly configPaths: readonly string[]
  /** Whether the text sets `config_path` where containerd looks; an empty one counts. */
  readonly setsPath: boolean
  /** The old way, which must not stand beside `config_path`: `mirrors`, or `configs` with `tls`. Undefined: it is not used. */
  readonly oldKey: string | undefined
  readonly ineffective: readonly IneffectiveSection[]
}

/** The plugin that pulls images, as each version of the format calls it. */
const pluginNames = { 1: 'cri', 2: 'io.containerd.grpc.v1.cri', 3: 'io.containerd.cri.v1.images' } as const
type PluginName = (typeof pluginNames)[keyof typeof pluginNames]

/**
 * The plugin whose section a containerd reads in a file of this version of the format. containerd 2.0 to 2.2 rename the sections
 * of version 1, and then do not move them to where they look.
 */
export function pluginOf(version: number, containerd?: string): PluginName {
  if (version >= 3 || (version <= 1 && isAtLeast(containerd, 2, 0))) return pluginNames[3]
  return version === 2 ? pluginNames[2] : pluginNames[1]
}

/** `[plugins."io.containerd.grpc.v1.cri".registry]` */
export function headingOf(plugin: string): string {
  return renderTomlHeading(['plugins', plugin, 'registry'])
}

/**
 * The plugins whose section counts, the first of them that is there: containerd 2 moves a section of an older format into the new
 * one, in place of what is there. 2.3 does so file by file, those before by the version of all files together (`whole`).
 */
function effectivePlugins(own: number, containerd: string | undefined, whole: number): readonly PluginName[] {
  const [first, second, third] = [pluginNames[1], pluginNames[2], pluginNames[3]]
  if (!isAtLeast(containerd, 2, 0)) return [pluginOf(whole)]
  if (isAtLeast(containerd, 2, 3)) return own >= 4 ? [third] : own >= 2 ? [second, third] : [first, second, third]
  if (whole !== 2) return [third]
  return own >= 2 ? [second, third] : [first, second, third]
}

interface SectionOptions {
  /** Of the program, where it is known. */
  readonly containerd?: string | undefined
  /** Of the format, where the text names none. */
  readonly version?: number
  /** Of the format of all files together, where the text is one of several. */
  readonly whole?: number | undefined
}

/**
 * Reads a config.toml, a part of one, or what `containerd config dump` prints. Throws a MirrorError (usage) for what is no TOML.
 */
export function registrySection(
  path: string,
  text: string,
  { containerd, version = 1, whole }: SectionOptions = {},
): RegistrySection {
  const toml = readToml(path, text)
  const format = versionIn(toml) ?? version
  const all = tableOf(toml['plugins'])
  const registryOf = (plugin: string) => tableOf(tableOf(all?.[plugin])?.['registry'])
  const counting = effectivePlugins(format, containerd, whole ?? format)
  const effective = counting.find((plugin) => registryOf(plugin) !== undefined)
  const section = effective === undefined ? undefined : registryOf(effective)
  return {
    version: format,
    configPaths: pathsIn(section),
    setsPath: typeof section?.['config_path'] === 'string',
    // Wherever it stands: another version of containerd may look there.
    oldKey: Object.values(pluginNames)
      .map((plugin) => oldKeyOf(registryOf(plugin)))
      .find((key) => key !== undefined),
    ineffective: Object.values(pluginNames).flatMap((plugin) => {
      const table = registryOf(plugin)
      if (table === undefined || plugin === effective) return []
      const others = Object.keys(table).filter((key) => key !== 'config_path')
      return [{ heading: headingOf(plugin), configPaths: pathsIn(table), others }]
    }),
  }
}

/** Of the format; undefined where a text names none. */
function versionIn(toml: TomlTable): number | undefined {
  const { version } = toml
  return typeof version === 'number' ? Math.max(version, 1) : undefined
}

/**
 * The config.toml with a `config_path`; all else stays to the byte. Throws a MirrorError (usage) for one in which that cannot
 * be done. https://github.com/containerd/containerd/blob/main/docs/cri/config.md#registry-configuration
 */
export function withConfigPath(path: string, text: string, configPath: string, containerd?: string): string {
  const toml = readToml(path, text)
  // Give a file that sets nothing the version that every containerd reads.
  const isEmpty = Object.keys(toml).length === 0
  const start = isEmpty ? setTomlValue(text, ['version'], 2) : text
  const plugin = pluginOf(isEmpty ? 2 : (versionIn(toml) ?? 1), containerd)
  const after = start && setTomlValue(start, ['plugins', plugin, 'registry', 'config_path'], configPath)
  if (after !== undefined) return after
  throw new MirrorError(
    `${path} is written in a way that cannot be changed without rewriting it, so it is left alone.`,
    {
      exit: exitCode.usage,
      hints: [`set config_path = ${JSON.stringify(configPath)} in ${headingOf(plugin)} there by hand`],
    },
  )
}

/** Says what has no effect, or none for certain where nobody knows the version of containerd, and where it belongs. */
function sayIneffective(
  where: string,
  { heading }: IneffectiveSection,
  { version, containerd }: { readonly version: number; readonly containerd: string | undefined },
): string {
  const effect = containerd === undefined ? 'may have no effect' : `has no effect in containerd ${containerd}`
  const format = version === 1 ? 'with version = 1, or none,' : `with version = ${version}`
  return `${heading} in ${where} ${effect}: in a file ${format} containerd reads ${headingOf(pluginOf(version, containerd))}.`
}

function pathsIn(section: TomlTable | undefined): string[] {
  const path = section?.['config_path']
  return typeof path === 'string' ? path.split(':').filter(Boolean) : []
}

function oldKeyOf(section: TomlTable | undefined): string | undefined {
  if (Object.keys(tableOf(section?.['mirrors']) ?? {}).length > 0) return 'registry.mirrors'
  const configs = Object.values(tableOf(section?.['configs']) ?? {})
  return configs.some((config) => tableOf(config)?.['tls'] !== undefined) ? 'registry.configs … tls' : undefined
}

/** Undefined where there is no containerd to ask, or it cannot read its own file. */
export async function dumpOf({ runCommand, detached }: Machine): Promise<string | undefined> {
  if (detached) return undefined
  const result = await runCommand('containerd', ['config', 'dump'], { timeoutMs: 10_000 })
  return result?.exitCode === 0 ? result.stdout : undefined
}
