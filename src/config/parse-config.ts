import { dirname, resolve } from 'node:path'
import type { Config } from './config.ts'
import type { ConfigProblem } from './config-tree.ts'
import { defaultConfig } from './defaults.ts'
import { mergeConfig } from './merge-config.ts'
import { readYaml } from './parse.ts'
import { settings, type ConfigLayer } from './settings.ts'

/** A file's text and where it lies: relative paths in it start from its folder, `~/` from the home folder. */
export interface ConfigFile {
  text: string
  /** Absolute. */
  path: string
  /** How problems name it. */
  label: string
  homedir: string
}

/** The keys that a mirror.yaml gives, and everything that is wrong with it. */
export function parseConfigFile({ text, path, label, homedir }: ConfigFile): {
  layer: ConfigLayer
  problems: ConfigProblem[]
} {
  const { root, problems } = readYaml(text, label)
  const resolvePath = (to: string) => (to.startsWith('~/') ? resolve(homedir, to.slice(2)) : resolve(dirname(path), to))
  const layer = settings.read(root, '', { problems, resolvePath }) ?? {}
  return { layer, problems: problems.toSorted(byPosition) }
}

/** A mirror.yaml alone over the defaults, or all its problems in the order of its lines. */
export function parseConfig(file: ConfigFile): { config: Config } | { problems: ConfigProblem[] } {
  const { layer, problems } = parseConfigFile(file)
  return problems.length > 0 ? { problems } : { config: mergeConfig(defaultConfig(), layer) }
}

function byPosition(a: ConfigProblem, b: ConfigProblem): number {
  return (a.place.line ?? 0) - (b.place.line ?? 0) || (a.place.column ?? 0) - (b.place.column ?? 0)
}
