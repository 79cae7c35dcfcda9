import type { FilesNow } from './files-now.ts'
import { readToml, stringsOf, tableOf, tablesOf, type TomlTable } from './read-toml.ts'

/** What one file says about one registry. */
export interface RegistryTable {
  readonly path: string
  /** `/etc/containers/registries.conf:12` */
  readonly where: string
  /** What image names begin with, without a slash at its end; `*.example.com` means every host below it. */
  readonly prefix: string
  readonly table: TomlTable
}

/** The registries' tables of these files, in their order: of equal prefixes, the last one counts. */
export function registryTables(paths: readonly string[], files: FilesNow): RegistryTable[] {
  return paths.flatMap((path) => tablesOfFile(path, files.text(path) ?? ''))
}

/** The table that decides about all images of a registry, if there is one. */
export function governing(tables: readonly RegistryTable[], registry: string): RegistryTable | undefined {
  const exact = tables.findLast(({ prefix }) => prefix === registry)
  if (exact) return exact
  const wider = tables.filter(({ prefix }) => prefix.startsWith('*.') && registry.endsWith(prefix.slice(1)))
  return wider.reduce<RegistryTable | undefined>(
    (best, one) => (best === undefined || one.prefix.length >= best.prefix.length ? one : best),
    undefined,
  )
}

function tablesOfFile(path: string, text: string): RegistryTable[] {
  const toml = readToml(path, text)
  const tables = tablesOf(toml['registry'])
  const lines = headerLines(text)
  const found = tables.map((table, at) => ({
    path,
    // Only where every table has a header of its own can they be told apart by line.
    where: lines.length === tables.length ? `${path}:${lines[at]}` : path,
    prefix: trimmed(table['prefix']) || trimmed(table['location']),
    table,
  }))
  // Within a file, the first table of a prefix is the one that counts.
  return [...found, ...oldStyle(path, toml)].filter(
    ({ prefix }, at, all) => prefix !== '' && all.findIndex((one) => one.prefix === prefix) === at,
  )
}

/** Whether a file is in the first version of the format, which drop-ins may not have, and no file since podman 6. */
export function isOldStyle(path: string, text: string): boolean {
  const lists = tableOf(readToml(path, text)['registries'])
  return ['search', 'insecure', 'block'].some((list) => Array.isArray(tableOf(lists?.[list])?.['registries']))
}

/** `[registries.insecure]` and `[registries.block]` of the first version of the format. */
function oldStyle(path: string, toml: TomlTable): RegistryTable[] {
  const lists = tableOf(toml['registries'])
  const named = (list: string) => stringsOf(tableOf(lists?.[list])?.['registries']).map(trimmed)
  const [insecure, blocked] = [named('insecure'), named('block')]
  return [...new Set([...blocked, ...insecure])].map((prefix) => ({
    path,
    where: path,
    prefix,
    table: {
      location: prefix,
      ...(insecure.includes(prefix) && { insecure: true }),
      ...(blocked.includes(prefix) && { blocked: true }),
    },
  }))
}

function headerLines(text: string): number[] {
  return text.split('\n').flatMap((line, at) => (/^\s*\[\[\s*["']?registry["']?\s*\]\]/.test(line) ? [at + 1] : []))
}

export function trimmed(value: unknown): string {
  return typeof value === 'string' ? value.replace(/\/+$/, '') : ''
}
