import { registrySection, type RegistrySection } from './containerd-registry-section.ts'
import { readToml, stringsOf, tableOf } from './read-toml.ts'

/** What matters to us in a containerd's configuration. */
export interface ContainerdConfig extends RegistrySection {
  /** The format's version; 1 for a file that names none. */
  readonly version: number
  /** Kubernetes' interface is switched off, as Docker's own package has it. */
  readonly criOff: boolean
  /** The socket it listens on; undefined where the text does not say. */
  readonly address: string | undefined
}

/** Reads a config.toml, or what `containerd config dump` prints. Throws a MirrorError (usage) for what is no TOML. */
export function readContainerdConfig(path: string, text: string): ContainerdConfig {
  const toml = readToml(path, text)
  const address = tableOf(toml['grpc'])?.['address']
  return {
    ...registrySection(path, text),
    version: typeof toml['version'] === 'number' ? toml['version'] : 1,
    criOff: stringsOf(toml['disabled_plugins']).some((name) => name === 'cri' || name === 'io.containerd.grpc.v1.cri'),
    address: typeof address === 'string' ? address : undefined,
  }
}

/** The lines that make containerd look for hosts.toml files, in the format that a config.toml of this version has. */
export function configPathLines(formatVersion: number, folder: string): string[] {
  const section =
    formatVersion >= 3
      ? `plugins."io.containerd.cri.v1.images".registry`
      : formatVersion === 2
        ? `plugins."io.containerd.grpc.v1.cri".registry`
        : 'plugins.cri.registry'
  return [`[${section}]`, `  config_path = ${JSON.stringify(folder)}`]
}
