import { posix } from 'node:path'
import {
  headingOf,
  pluginOf,
  registrySection,
  sayIneffective,
  versionIn,
  type RegistrySection,
} from './containerd/config-toml.ts'
import { readToml, stringsOf, tableOf } from './read-toml.ts'
import { isAtLeast } from './version.ts'

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
