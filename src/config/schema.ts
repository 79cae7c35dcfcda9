import type { ConfigEntry, ConfigNode, ConfigProblem, Place } from './config-tree.ts'
import { nearest } from './nearest.ts'

/** What reading a source needs and gathers. */
export interface ReadContext {
  readonly problems: ConfigProblem[]
  /** Makes a path that stands in this source absolute. */
  resolvePath(path: string): string
}

/** How one key of the configuration is read. The value is undefined when it is absent, or wrong and the context was told. */
export interface Field<T> {
  read(node: ConfigNode, path: string, context: ReadContext): T | undefined
  /** How one environment variable holds it: as it is, or separated by commas. Absent where it cannot. */
  readonly variable?: 'scalar' | 'list'
  /** A section's own keys. */
  readonly fields?: Readonly<Record<string, Field<unknown>>>
}

/** Reads a word, or says what it must be instead: `problem` takes the rest of the sentence `cache.maxSize: …`. */
export type ReadText<T> = (text: string, problem: (message: string) => undefined, context: ReadContext) => T | undefined

export function scalar<T>(readText: ReadText<T>): Field<T> {
  return {
    variable: 'scalar',
    read(node, path, context) {
      if (node.kind === 'absent') return undefined
      const problem = problemAt(context, node.place, path)
      if (node.kind !== 'scalar') return problem(`must be a single value, not a ${node.kind}`)
      return readText(node.text, problem, context)
    },
  }
}

/** A list of words; a single one stands for a list of one. */
export function list<T>(readText: ReadText<T>, { atLeast = 0 } = {}): Field<T[]> {
  const item = scalar(readText)
  return {
    variable: 'list',
    read(node, path, context) {
      if (node.kind === 'absent') return undefined
      if (node.kind === 'map') return problemAt(context, node.place, path)('must be a list')
      const items = node.kind === 'list' ? node.items : [node]
      if (items.length < atLeast) return problemAt(context, node.place, path)('must name at least one')
      return items.flatMap((value, index) => item.read(value, `${path}[${index}]`, context) ?? [])
    },
  }
}

/** A map with known keys. `complete` makes the value of what was read, or says what is missing. */
export function section<T extends object, U = T>(
  fields: { readonly [K in keyof Required<T>]: Field<NonNullable<T[K]>> },
  complete?: (given: T, problem: (message: string) => undefined) => U | undefined,
): Field<U> {
  return {
    fields,
    read(node, path, context) {
      if (node.kind === 'absent') return undefined
      if (node.kind !== 'map') return problemAt(context, node.place, path)('must be a map of keys and values')
      const given: Partial<T> = {}
      for (const [key, entry] of uniqueEntries(node.entries, path, context)) {
        if (!Object.hasOwn(fields, key)) {
          context.problems.push({
            place: entry.keyPlace,
            path: join(path, key),
            message: unknownKey(key, Object.keys(fields)),
          })
          continue
        }
        const name = key as keyof Required<T>
        const value = fields[name].read(entry.value, join(path, key), context)
        if (value !== undefined) given[name] = value
      }
      const problemsInside = context.problems.some((problem) => problem.path.startsWith(`${path}.`))
      if (complete === undefined) return given as unknown as U
      return problemsInside ? undefined : complete(given as T, problemAt(context, node.place, path))
    },
  }
}

/** A map with keys of the user's choice. `readKey` may map different spellings to one key. */
export function record<T>(readKey: ReadText<string>, readValue: (key: string) => Field<T>): Field<Record<string, T>> {
  return {
    read(node, path, context) {
      if (node.kind === 'absent') return undefined
      if (node.kind !== 'map') return problemAt(context, node.place, path)('must be a map of keys and values')
      const values = new Map<string, T>()
      const seen = new Map<string, string>()
      for (const [written, entry] of uniqueEntries(node.entries, path, context)) {
        const entryPath = join(path, written)
        const problem = problemAt(context, entry.keyPlace, entryPath)
        const key = readKey(written, problem, context)
        if (key === undefined) continue
        const earlier = seen.get(key)
        if (earlier !== undefined) problem(`means the same as ${earlier} above`)
        seen.set(key, written)
        // An entry without a value (`registry.corp.example:`) is an entry all the same.
        const value: ConfigNode =
          entry.value.kind === 'absent' ? { kind: 'map', place: entry.value.place, entries: [] } : entry.value
        const read = readValue(key).read(value, entryPath, context)
        if (read !== undefined) values.set(key, read)
      }
      return Object.fromEntries(values)
    },
  }
}

/** The entries by key, the first of a kind; the others are problems. */
function uniqueEntries(entries: readonly ConfigEntry[], path: string, context: ReadContext): Map<string, ConfigEntry> {
  const unique = new Map<string, ConfigEntry>()
  for (const entry of entries) {
    const earlier = unique.get(entry.key)
    if (earlier === undefined) unique.set(entry.key, entry)
    else problemAt(context, entry.keyPlace, join(path, entry.key))(`is already given in line ${earlier.keyPlace.line}`)
  }
  return unique
}

function unknownKey(key: string, known: readonly string[]): string {
  const meant = nearest(key, known)
  return meant === undefined
    ? `is not a known key; here there are ${known.join(', ')}`
    : `is not a known key; did you mean ${meant}?`
}

/** `upstreams["ghcr.io"]`: a key that is no plain word is quoted. */
function join(path: string, key: string): string {
  if (!/^[A-Za-z_][A-Za-z0-9_-]*$/.test(key)) return `${path}[${JSON.stringify(key)}]`
  return path === '' ? key : `${path}.${key}`
}

function problemAt(context: ReadContext, place: Place, path: string) {
  return (message: string): undefined => {
    context.problems.push({ place, path, message })
    return undefined
  }
}
