/** A configuration source as plain values that know where they stand, whatever it was written in. */
export type ConfigNode =
  | { readonly kind: 'absent'; readonly place: Place }
  | { readonly kind: 'scalar'; readonly place: Place; readonly text: string }
  | { readonly kind: 'list'; readonly place: Place; readonly items: readonly ConfigNode[] }
  | { readonly kind: 'map'; readonly place: Place; readonly entries: readonly ConfigEntry[] }

export interface ConfigEntry {
  readonly key: string
  readonly keyPlace: Place
  readonly value: ConfigNode
}

/** Where a value stands: a line and a column (from 1) of a file, or a variable of the environment. */
export interface Place {
  readonly source: string
  readonly line?: number
  readonly column?: number
}

/** One thing that is wrong with a configuration. */
export interface ConfigProblem {
  readonly place: Place
  /** `cache.maxSize`, `upstreams["ghcr.io"].url`; empty for the whole. */
  readonly path: string
  readonly message: string
}

/** `mirror.yaml:3:5 cache.maxSize: must be …`, or `MIRROR_CACHE_MAX_SIZE: must be …`. */
export function formatProblem({ place, path, message }: ConfigProblem): string {
  if (place.line === undefined) return `${place.source}: ${message}`
  return `${place.source}:${place.line}:${place.column}${path === '' ? '' : ` ${path}`}: ${message}`
}
