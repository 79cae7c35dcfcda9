import { MirrorError, exitCode } from '../lib/errors.ts'
import { setTomlValue } from './edit-toml.ts'
import { readToml, tableOf } from './read-toml.ts'

/** What a containerd's configuration says about registries. */
export interface RegistrySection {
  /** The folders where hosts.toml is looked for; none when it is not looked for. */
  readonly configPaths: readonly string[]
  /** The old way, which must not stand beside `config_path`: `mirrors`, or `configs` with `tls`. Undefined: it is not used. */
  readonly oldKey: string | undefined
}

// The plugin that pulls images: in containerd 1.x, and as 2.x calls it. 2.x reads files of version 2 under the old name, too;
// files of version 1 have a short one.
const plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.images', 'cri'] as const

/** Reads a config.toml, a part of one, or what `containerd config dump` prints. Throws a MirrorError (usage) for what is no TOML. */
export function registrySection(path: string, text: string): RegistrySection {
  const all = tableOf(readToml(path, text)['plugins'])
  const sections = plugins.map((name) => tableOf(tableOf(all?.[name])?.['registry']))
  const configPath = sections
    .map((section) => section?.['config_path'])
    .find((value) => typeof value === 'string' && value !== '')
  return {
    configPaths: typeof configPath === 'string' ? configPath.split(':').filter(Boolean) : [],
    oldKey: sections.map(oldKeyOf).find((key) => key !== undefined),
  }
}

/**
 * The config.toml with a `config_path`; all else stays to the byte. Throws a MirrorError (usage) for one in which that cannot
 * be done. https://github.com/containerd/containerd/blob/main/docs/cri/config.md#registry-configuration
 */
export function withConfigPath(path: string, text: string, configPath: string): string {
  const plugin = plugins[Number(readToml(path, text)['version']) >= 3 ? 1 : 0]
  const after = setTomlValue(text, ['plugins', plugin, 'registry', 'config_path'], configPath)
  if (after !== undefined) return after
  throw new MirrorError(
    `${path} is written in a way that cannot be changed without rewriting it, so it is left alone.`,
    {
      exit: exitCode.usage,
      hints: [`set config_path = ${JSON.stringify(configPath)} in [plugins."${plugin}".registry] there by hand`],
    },
  )
}

function oldKeyOf(section: ReturnType<typeof tableOf>): string | undefined {
  if (Object.keys(tableOf(section?.['mirrors']) ?? {}).length > 0) return 'registry.mirrors'
  const configs = Object.values(tableOf(section?.['configs']) ?? {})
  return configs.some((config) => tableOf(config)?.['tls'] !== undefined) ? 'registry.configs … tls' : undefined
}
