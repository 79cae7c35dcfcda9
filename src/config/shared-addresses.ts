import { basename } from 'node:path'
import type { ConfigProblem } from './config-tree.ts'
import type { Config } from './config.ts'
import type { MirrorPaths } from './paths.ts'
import type { ConfigLayer, FlagLayer } from './settings.ts'

type Part = 'cache' | 'registry' | 'admin'

/** What the configuration was made of; `file` is undefined when there is none. */
export interface ConfigSources {
  readonly file: ConfigLayer | undefined
  readonly variables: ConfigLayer
  readonly flags: FlagLayer
}

interface Claim {
  readonly part: Part
  readonly port: number
  /** Who says so: `--cache-port`. */
  readonly source: string
  /** How near it is to the user: a default is 0. */
  readonly rank: number
}

/** Two listeners on one address: the second would find its port taken, by ourselves. Said of whoever is nearest to the user. */
export function sharedAddresses(
  config: Config,
  sources: ConfigSources,
  paths: Pick<MirrorPaths, 'configFile'>,
): { problems: ConfigProblem[]; hints: string[] } {
  const claims = new Map<string, Claim>()
  const problems: ConfigProblem[] = []
  const hints = new Set<string>()
  const taken = new Set((['cache', 'registry', 'admin'] as const).flatMap((part) => portsOf(config, part)))
  for (const part of ['cache', 'registry', 'admin'] as const) {
    if (part === 'registry' && !config.registry.enabled) continue
    for (const { host, port } of config[part].listen) {
      if (port === 0) continue
      const address = host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
      const later = { part, port, ...sourceOf(part, sources, paths) }
      const earlier = claims.get(address)
      claims.set(address, later)
      if (earlier === undefined) continue
      const [cause, other] = earlier.rank > later.rank ? [earlier, later] : [later, earlier]
      problems.push({
        place: { source: cause.source },
        path: `${cause.part}.listen`,
        message: `the ${cause.part} cannot listen on ${address}, which the ${other.part} has (${other.source})`,
      })
      const free = freePort(port, taken)
      hints.add(`Add --${other.part}-port ${free}   (or MIRROR_${other.part.toUpperCase()}_PORT=${free})`)
    }
  }
  return { problems, hints: [...hints] }
}

function sourceOf(
  part: Part,
  { file, variables, flags }: ConfigSources,
  { configFile }: Pick<MirrorPaths, 'configFile'>,
): Pick<Claim, 'source' | 'rank'> {
  const variable = `MIRROR_${part.toUpperCase()}`
  if (flags[`${part}Port`] !== undefined) return { source: `--${part}-port or ${variable}_PORT`, rank: 3 }
  if (variables[part]?.listen !== undefined) return { source: `${variable}_LISTEN`, rank: 2 }
  if (file?.[part]?.listen !== undefined) return { source: `${basename(configFile)}, ${part}.listen`, rank: 1 }
  return { source: 'the default', rank: 0 }
}

function portsOf(config: Config, part: Part): number[] {
  return config[part].listen.map(({ port }) => port)
}

function freePort(port: number, taken: ReadonlySet<number>): number {
  const step = port + 3000 <= 65_535 ? 1000 : -1000
  let free = port + step
  while (taken.has(free)) free += step
  return free
}
