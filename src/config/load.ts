import { readFile } from 'node:fs/promises'
import { basename } from 'node:path'
import { errnoOf, exitCode, MirrorError } from '../lib/errors.ts'
import { shellWord } from '../lib/process.ts'
import { describeFileFailure } from '../lib/system-errors.ts'
import { type ConfigProblem, formatProblem } from './config-tree.ts'
import type { Config, ListenAddress } from './config.ts'
import { defaultConfig } from './defaults.ts'
import { mergeConfig } from './merge-config.ts'
import type { MirrorPaths, Surroundings } from './paths.ts'
import { readEnvironment } from './read-environment.ts'
import type { ConfigLayer, FlagLayer } from './settings.ts'
import { sharedAddresses } from './shared-addresses.ts'

/** `env` holds the `MIRROR_*` variables; a command's flags are put in as theirs. */
export interface LoadConfigInput extends Omit<Surroundings, 'platform'> {
  paths: MirrorPaths
}

/**
 * The configuration: defaults < mirror.yaml < `MIRROR_*` < flags. A missing file is an empty one, unless the user named it.
 * Throws one MirrorError (exit 2) with every problem of every source.
 */
export async function loadConfig({ paths, env, homedir, cwd }: LoadConfigInput): Promise<Config> {
  const problems: ConfigProblem[] = []
  let config = defaultConfig()

  const text = await readConfigFile(paths)
  let layer: ConfigLayer | undefined
  if (text !== undefined) {
    // Loaded only when there is something to parse: an unconfigured mirror starts without a YAML parser.
    const { parseConfigFile } = await import('./parse-config.ts')
    const file = parseConfigFile({ text, path: paths.configFile, label: basename(paths.configFile), homedir })
    problems.push(...file.problems)
    layer = file.layer
    config = mergeConfig(config, layer)
  }
  const environment = readEnvironment(env, cwd)
  problems.push(...environment.problems)
  config = applyFlags(mergeConfig(config, environment.layer), environment.flags)
  if (problems.length > 0) {
    const variables = environment.problems.length
    const blamed = { file: problems.length > variables, variables: variables > 0 }
    throw badConfig(problems, [fixOf(paths, blamed)])
  }
  const shared = sharedAddresses(config, { file: layer, variables: environment.layer, flags: environment.flags }, paths)
  if (shared.problems.length > 0) throw badConfig(shared.problems, shared.hints)
  return config
}

async function readConfigFile({ configFile, configFileNamed }: MirrorPaths): Promise<string | undefined> {
  try {
    return await readFile(configFile, 'utf8')
  } catch (error) {
    const code = errnoOf(error)
    if (code === 'ENOENT' && !configFileNamed) return undefined
    if (code === undefined) throw error
    const failure = describeFileFailure(error)
    const problem = code === 'ENOENT' ? 'does not exist' : `cannot be read: ${failure?.why ?? (error as Error).message}`
    throw new MirrorError(`The configuration file ${configFile} ${problem}.`, {
      exit: exitCode.usage,
      hints:
        code === 'ENOENT'
          ? [`mirror init --config ${shellWord(configFile)}   (writes one)`]
          : [...(failure?.next ?? [])],
      cause: error,
    })
  }
}

function applyFlags(config: Config, flags: FlagLayer): Config {
  return {
    ...config,
    cache: { ...config.cache, listen: onPort(config.cache.listen, flags.cachePort) },
    registry: {
      ...config.registry,
      enabled: flags.noRegistry === true ? false : config.registry.enabled,
      listen: onPort(config.registry.listen, flags.registryPort),
    },
    admin: { ...config.admin, listen: onPort(config.admin.listen, flags.adminPort) },
    // A flag adds to the list: somebody who names a network does not mean to take kind's away.
    networks: [...new Set([...config.networks, ...(flags.network ?? [])])],
  }
}

function onPort(listen: ListenAddress[], port: number | undefined): ListenAddress[] {
  if (port === undefined) return listen
  // Two ports of one host become one.
  return [...new Set(listen.map(({ host }) => host))].map((host) => ({ host, port }))
}

function badConfig(problems: ConfigProblem[], fixes: string[]): MirrorError {
  const count = problems.length === 1 ? 'a problem' : `${problems.length} problems`
  return new MirrorError(
    `The configuration has ${count}, so nothing was done:\n${problems.map((problem) => `  ${formatProblem(problem)}`).join('\n')}`,
    { exit: exitCode.usage, hints: [...fixes, 'mirror init --dry-run   (prints every key with its default)'] },
  )
}

/** Where to look: only what is to blame. */
function fixOf(paths: MirrorPaths, blamed: { readonly file: boolean; readonly variables: boolean }): string {
  const variable = 'the variable named above'
  if (!blamed.file) return `Fix ${variable}`
  return `Fix ${paths.configFile}${blamed.variables ? ` or ${variable}` : ''}`
}
