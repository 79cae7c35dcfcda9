import { isDeepStrictEqual } from 'node:util'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { isLoopback } from '../address.ts'
import {
  addTomlKeys,
  appendTomlTable,
  prependTomlItem,
  readToml,
  removeFromToml,
  stringsOf,
  tableOf,
  type TomlPath,
  type TomlTable,
} from '../edit/toml.ts'
import {
  buildkitdKeys,
  caChange,
  refuseOtherKinds,
  refuseUnknownKeys,
  withoutOwnHeader,
  writtenByMirror,
} from '../files/kinds.ts'
import type { ConfigPlan, FileChange, FilesNow, MirrorForClient } from '../types.ts'

/** Where the files of one buildkitd are. */
interface BuildkitTarget {
  /** Its buildkitd.toml. */
  readonly path: string
  /** Where our copy of the mirror's CA is put, and the path by which it is read: by buildkitd, or by buildx for its builders. */
  readonly ca: { readonly path: string; readonly name: string }
}

/**
 * What has to stand in a buildkitd.toml: the mirror, as host and port, for each registry, and HTTP or the CA under the mirror's
 * own name, where alone it means the mirror. Throws a MirrorError (usage) for a file that cannot be changed safely.
 * https://github.com/moby/buildkit/blob/master/docs/buildkitd.toml.md
 */
export function planBuildkit(mirror: MirrorForClient, { path, ca }: BuildkitTarget, files: FilesNow): ConfigPlan {
  if (!mirror.fallback)
    throw new MirrorError('BuildKit always goes to the origin when its mirrors fail: it cannot be told otherwise.', {
      exit: exitCode.usage,
      hints: ['Leave --no-fallback away'],
    })
  const { host } = new URL(mirror.cache)
  const current = files.text(path)
  const isKnown = refuseOtherKinds(path, current ?? '', { kinds: ['buildkitd.toml'], expected })
  const before = readToml(path, current ?? '')
  if (!isKnown) refuseUnknownKeys(path, before, { expected, keys: buildkitdKeys })
  const tables = registryTables(path, before)
  const own = ownKeys(mirror, ca.name)
  const table = tables[host]
  if (table?.['http'] !== undefined && table['http'] !== (own['http'] ?? false)) throw wrong(path, `http of ${host}`)
  let text = current ?? ''
  const notes: string[] = []
  for (const registry of mirror.registries) {
    const mirrors = mirrorsOf(path, registry, tables[registry])
    if (mirrors?.includes(host)) continue
    const place = ['registry', registry]
    text = orRefuse(
      path,
      mirrors === undefined
        ? putKeys(text, place, tables[registry], { mirrors: [host] })
        : prependTomlItem(text, [...place, 'mirrors'], host),
    )
    if (mirrors && mirrors.length > 0) notes.push(`${mirrors.join(' and ')} stay for ${registry}, and are asked next.`)
  }
  const missing = Object.fromEntries(Object.entries(own).filter(([key]) => table?.[key] === undefined))
  if (own['ca'] !== undefined && !isDeepStrictEqual({ ...missing, ...table }['ca'], own['ca']))
    notes.push(`${host} keeps its own ca in ${path}, which has to hold the mirror's CA.`)
  if (Object.keys(missing).length > 0) text = orRefuse(path, putKeys(text, ['registry', host], table, missing))
  const after = current === undefined ? writtenByMirror + text : text
  return { changes: [...files.change(path, after), ...caChange(ca.path, mirror.ca, files)], notes, todo: [] }
}

/** Adds keys to a table, or the table with them where there is none. */
function putKeys(text: string, path: string[], table: TomlTable | undefined, keys: TomlTable): string | undefined {
  return table === undefined ? appendTomlTable(text, path, keys) : addTomlKeys(text, path, keys)
}

function orRefuse(path: string, text: string | undefined): string {
  if (text !== undefined) return text
  throw new MirrorError(`${path} is spelled in a way that cannot be changed safely, so it is left alone.`, {
    exit: exitCode.usage,
    hints: [`Give each registry in ${path} a table of its own: [registry."docker.io"]`],
  })
}

const expected = 'a buildkitd.toml'

/** What is said of the mirror itself. */
function ownKeys({ cache, ca }: Pick<MirrorForClient, 'cache' | 'ca'>, caName: string): TomlTable {
  const isPlain = cache.startsWith('http:')
  // Of a host on loopback BuildKit expects HTTP until it is told otherwise.
  const http = isPlain || isLoopback(cache) ? { http: isPlain } : {}
  return { ...http, ...(ca !== undefined && { ca: [caName] }) }
}

/** Takes the mirror out of a file that was changed after us; undefined: nothing else was in it. */
export function stripBuildkit(
  { cache }: { readonly cache: string },
  { path, ca }: BuildkitTarget,
  files: FilesNow,
): FileChange[] {
  const authority = caChange(ca.path, undefined, files)
  const text = files.text(path)
  if (text === undefined) return authority
  const { host } = new URL(cache)
  const own = ownKeys({ cache, ca: '' }, ca.name)
  const findOurs = (all: string) => findOurValue(readToml(path, all), host, own)
  if (findOurs(text) === undefined) return authority
  let left = withoutOwnHeader(text)
  for (let place = findOurs(left); place !== undefined; place = findOurs(left)) {
    const after = removeFromToml(left, place)
    if (after === undefined)
      throw new MirrorError(`${path} was changed in a way that mirror's own keys cannot be told apart any more.`, {
        exit: exitCode.usage,
        hints: [`take ${host} out of ${path} by hand`],
      })
    left = after
  }
  return [...files.change(path, left.trim() === '' ? undefined : left), ...authority]
}

/** Returns the path of the first key or item of ours in a buildkitd.toml. */
function findOurValue(all: TomlTable, host: string, own: TomlTable): TomlPath | undefined {
  for (const [name, value] of Object.entries(tableOf(all['registry']) ?? {})) {
    const table = tableOf(value) ?? {}
    const key = Object.keys(own).find((one) => name === host && isDeepStrictEqual(table[one], own[one]))
    if (key !== undefined) return ['registry', name, key]
    const item = Array.isArray(table['mirrors']) ? table['mirrors'].indexOf(host) : -1
    if (item !== -1) return ['registry', name, 'mirrors', item]
  }
  return undefined
}

function registryTables(path: string, all: TomlTable): Record<string, TomlTable> {
  const registries = tableOf(all['registry'] ?? {})
  const entries = Object.entries(registries ?? {}).map(([name, value]) => [name, tableOf(value)] as const)
  if (registries === undefined || entries.some(([, table]) => table === undefined)) throw wrong(path, 'registry')
  return Object.fromEntries(entries) as Record<string, TomlTable>
}

function mirrorsOf(path: string, registry: string, table: TomlTable | undefined): readonly string[] | undefined {
  const mirrors = table?.['mirrors']
  if (mirrors === undefined) return undefined
  const texts = stringsOf(mirrors)
  if (Array.isArray(mirrors) && texts.length === mirrors.length) return texts
  throw wrong(path, `mirrors of ${registry}`)
}

function wrong(path: string, what: string): MirrorError {
  return new MirrorError(`${path} is left alone: its ${what} is nothing that BuildKit would take.`, {
    exit: exitCode.usage,
    hints: [`Fix ${path} and run this again`],
  })
}
