import { isDeepStrictEqual } from 'node:util'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { isLoopbackUrl } from '../address.ts'
import {
  addTomlKeys,
  appendTomlTable,
  prependTomlItem,
  readToml,
  removeFromToml,
  asStrings,
  asTable,
  type TomlPath,
  type TomlTable,
} from '../edit/toml.ts'
import {
  buildkitdKeys,
  planCaFile,
  assertFileKind,
  assertKnownKeys,
  removeMirrorHeader,
  mirrorHeader,
} from '../files/kinds.ts'
import type { ConfigPlan, FileChange, FilesSnapshot, MirrorForClient } from '../types.ts'

/** Holds the files of one buildkitd. */
interface BuildkitTarget {
  /** Holds the path of its buildkitd.toml. */
  readonly path: string
  /**
   * Locates the copy of the mirror's CA: where mirror writes it, and the name by which buildkitd, or buildx for its builders, reads
   * it.
   */
  readonly ca: { readonly path: string; readonly name: string }
}

/**
 * Plans a buildkitd.toml: the mirror, as host and port, for each registry, and a table of the mirror's own with HTTP or the CA.
 * Throws a MirrorError (usage) for a file that cannot be changed safely.
 * https://github.com/moby/buildkit/blob/master/docs/buildkitd.toml.md
 */
export function planBuildkit(mirror: MirrorForClient, { path, ca }: BuildkitTarget, files: FilesSnapshot): ConfigPlan {
  if (!mirror.fallback)
    throw new MirrorError(
      'BuildKit always goes to the origin when its mirrors fail, so --no-fallback is not possible.',
      {
        exit: exitCode.usage,
        hints: ['leave out --no-fallback'],
      },
    )
  const { host } = new URL(mirror.cache)
  const current = files.getText(path)
  const isKnown = assertFileKind(path, current ?? '', { kinds: ['buildkitd.toml'], expected: expectedFile })
  const before = readToml(path, current ?? '')
  if (!isKnown) assertKnownKeys(path, before, { expected: expectedFile, keys: buildkitdKeys })
  const tables = getRegistryTables(path, before)
  const own = getOwnKeys(mirror, ca.name)
  const table = tables[host]
  if (table?.['http'] !== undefined && table['http'] !== (own['http'] ?? false))
    throw createInvalidValueError(path, `http of ${host}`)
  let text = current ?? ''
  const notes: string[] = []
  for (const registry of mirror.registries) {
    const mirrors = getMirrors(path, registry, tables[registry])
    if (mirrors?.includes(host)) continue
    const tablePath = ['registry', registry]
    text = assertChanged(
      path,
      mirrors === undefined
        ? addKeys(text, tablePath, tables[registry], { mirrors: [host] })
        : prependTomlItem(text, [...tablePath, 'mirrors'], host),
    )
    if (mirrors && mirrors.length > 0) notes.push(`${mirrors.join(' and ')} stay for ${registry}, after the mirror.`)
  }
  const missing = Object.fromEntries(Object.entries(own).filter(([key]) => table?.[key] === undefined))
  if (own['ca'] !== undefined && !isDeepStrictEqual({ ...missing, ...table }['ca'], own['ca']))
    notes.push(`${host} keeps its own ca in ${path}, which must contain the mirror's CA.`)
  if (Object.keys(missing).length > 0) text = assertChanged(path, addKeys(text, ['registry', host], table, missing))
  const after = current === undefined ? mirrorHeader + text : text
  return { changes: [...files.change(path, after), ...planCaFile(ca.path, mirror.ca, files)], notes, todo: [] }
}

/** Adds keys to a table, or appends the table with them. */
function addKeys(text: string, path: string[], table: TomlTable | undefined, keys: TomlTable): string | undefined {
  return table === undefined ? appendTomlTable(text, path, keys) : addTomlKeys(text, path, keys)
}

/** Returns the changed text. Throws a MirrorError (usage) if it could not be changed. */
function assertChanged(path: string, text: string | undefined): string {
  if (text !== undefined) return text
  throw new MirrorError(`${path} is written in a way that cannot be changed safely, so it is left alone.`, {
    exit: exitCode.usage,
    hints: [`give each registry in ${path} a table of its own: [registry."docker.io"]`],
  })
}

const expectedFile = 'a buildkitd.toml'

/** Returns the keys of the mirror's own table. */
function getOwnKeys({ cache, ca }: Pick<MirrorForClient, 'cache' | 'ca'>, caName: string): TomlTable {
  const isPlain = cache.startsWith('http:')
  // Set http also for TLS on loopback, where BuildKit expects HTTP by default.
  const http = isPlain || isLoopbackUrl(cache) ? { http: isPlain } : {}
  return { ...http, ...(ca !== undefined && { ca: [caName] }) }
}

/**
 * Plans the removal of the mirror from a buildkitd.toml that the user changed. Throws a MirrorError (usage) for keys without a
 * heading.
 */
export function stripBuildkit(
  { cache }: { readonly cache: string },
  { path, ca }: BuildkitTarget,
  files: FilesSnapshot,
): FileChange[] {
  const caChanges = planCaFile(ca.path, undefined, files)
  const text = files.getText(path)
  if (text === undefined) return caChanges
  const { host } = new URL(cache)
  const own = getOwnKeys({ cache, ca: '' }, ca.name)
  const findOwnPath = (all: string) => findMirrorValue(readToml(path, all), host, own)
  if (findOwnPath(text) === undefined) return caChanges
  let remaining = removeMirrorHeader(text)
  for (let ownPath = findOwnPath(remaining); ownPath !== undefined; ownPath = findOwnPath(remaining)) {
    const after = removeFromToml(remaining, ownPath)
    if (after === undefined)
      throw new MirrorError(`${path} was changed, and mirror's own keys can no longer be identified.`, {
        exit: exitCode.usage,
        hints: [`remove ${host} from ${path} by hand`],
      })
    remaining = after
  }
  return [...files.change(path, remaining.trim() === '' ? undefined : remaining), ...caChanges]
}

/** Returns the path of the first key or item in a buildkitd.toml that is mirror's own. */
function findMirrorValue(all: TomlTable, host: string, own: TomlTable): TomlPath | undefined {
  for (const [name, value] of Object.entries(asTable(all['registry']) ?? {})) {
    const table = asTable(value) ?? {}
    const key = Object.keys(own).find((one) => name === host && isDeepStrictEqual(table[one], own[one]))
    if (key !== undefined) return ['registry', name, key]
    const item = Array.isArray(table['mirrors']) ? table['mirrors'].indexOf(host) : -1
    if (item !== -1) return ['registry', name, 'mirrors', item]
  }
  return undefined
}

function getRegistryTables(path: string, all: TomlTable): Record<string, TomlTable> {
  const registries = asTable(all['registry'] ?? {})
  const entries = Object.entries(registries ?? {}).map(([name, value]) => [name, asTable(value)] as const)
  if (registries === undefined || entries.some(([, table]) => table === undefined))
    throw createInvalidValueError(path, 'registry')
  return Object.fromEntries(entries) as Record<string, TomlTable>
}

function getMirrors(path: string, registry: string, table: TomlTable | undefined): readonly string[] | undefined {
  const mirrors = table?.['mirrors']
  if (mirrors === undefined) return undefined
  const texts = asStrings(mirrors)
  if (Array.isArray(mirrors) && texts.length === mirrors.length) return texts
  throw createInvalidValueError(path, `mirrors of ${registry}`)
}

function createInvalidValueError(path: string, what: string): MirrorError {
  return new MirrorError(`${path} is left alone: BuildKit does not accept its ${what}.`, {
    exit: exitCode.usage,
    hints: [`fix ${path}, then run the command again`],
  })
}
