import { resolve } from 'node:path'
import type { ConfigEntry, ConfigNode, ConfigProblem } from './config-tree.ts'
import type { Field } from './schema.ts'
import { flagSettings, settings, type ConfigLayer, type FlagLayer } from './settings.ts'

type Environment = Readonly<Record<string, string | undefined>>

/** The names of all variables that mean a key. */
export function settingVariables(): string[] {
  return [...namesOf(settings, 'MIRROR'), ...namesOf(flagSettings, 'MIRROR')]
}

/**
 * The keys that `MIRROR_*` variables give: `MIRROR_CACHE_MAX_SIZE` is `cache.maxSize`, a list is separated by commas.
 * Empty variables count as unset; those that mean no key are somebody else's.
 */
export function readEnvironment(
  env: Environment,
  cwd: string,
): { layer: ConfigLayer; flags: FlagLayer; problems: ConfigProblem[] } {
  const problems: ConfigProblem[] = []
  const context = { problems, resolvePath: (path: string) => resolve(cwd, path) }
  return {
    layer: settings.read(toNode(settings, 'MIRROR', env), '', context) ?? {},
    flags: flagSettings.read(toNode(flagSettings, 'MIRROR', env), '', context) ?? {},
    problems,
  }
}

function toNode(field: Field<unknown>, name: string, env: Environment): ConfigNode {
  const place = { source: name }
  const absent: ConfigNode = { kind: 'absent', place }
  if (field.fields !== undefined) {
    const entries = Object.entries(field.fields).flatMap(([key, inner]): ConfigEntry[] => {
      const value = toNode(inner, variableOf(name, key), env)
      return value.kind === 'absent' ? [] : [{ key, keyPlace: value.place, value }]
    })
    return entries.length === 0 ? absent : { kind: 'map', place: entries[0]!.keyPlace, entries }
  }
  const text = env[name]?.trim()
  // Kubernetes tells every container about a service named `mirror-cache` by MIRROR_CACHE_PORT=tcp://…
  if (field.variable === undefined || !text || text.startsWith('tcp://')) return absent
  const item = (part: string): ConfigNode => ({ kind: 'scalar', place, text: part.trim() })
  return field.variable === 'scalar'
    ? item(text)
    : {
        kind: 'list',
        place,
        items: text
          .split(',')
          .filter((part) => part.trim() !== '')
          .map(item),
      }
}

function namesOf(field: Field<unknown>, name: string): string[] {
  if (field.fields === undefined) return field.variable === undefined ? [] : [name]
  return Object.entries(field.fields).flatMap(([key, inner]) => namesOf(inner, variableOf(name, key)))
}

/** `MIRROR_CACHE` and `maxSize`: `MIRROR_CACHE_MAX_SIZE`. */
function variableOf(section: string, key: string): string {
  return `${section}_${key.replaceAll(/[A-Z]/g, '_$&').toUpperCase()}`
}
