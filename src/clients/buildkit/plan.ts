import { isDeepStrictEqual } from 'node:util'
import { exitCode, MirrorError } from '../../lib/errors.ts'
import { isLoopback } from '../address.ts'
import {
  appendTable,
  joinSections,
  lineEndIn,
  readToml,
  renderToml,
  sectionPath,
  statementPath,
  stringsOf,
  tableOf,
  type TomlSection,
  tomlSections,
  type TomlTable,
  tryToml,
  withLineEnd,
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
  let text = current ?? writtenByMirror
  const wanted = { ...tables }
  const notes: string[] = []
  for (const registry of mirror.registries) {
    const table = tables[registry]
    const mirrors = mirrorsOf(path, registry, table)
    if (mirrors?.includes(host)) continue
    wanted[registry] = { ...table, mirrors: [host, ...(mirrors ?? [])] }
    text = table === undefined ? append(text, registry, { mirrors: [host] }) : addMirror(text, registry, host, mirrors)
    if (mirrors && mirrors.length > 0) notes.push(`${mirrors.join(' and ')} stay for ${registry}, and are asked next.`)
  }
  const table = tables[host]
  const own = ownKeys(mirror, ca.name)
  const missing = Object.fromEntries(Object.entries(own).filter(([key]) => table?.[key] === undefined))
  if (table?.['http'] !== undefined && table['http'] !== (own['http'] ?? false)) throw wrong(path, `http of ${host}`)
  if (own['ca'] !== undefined && !isDeepStrictEqual({ ...missing, ...table }['ca'], own['ca']))
    notes.push(`${host} keeps its own ca in ${path}, which has to hold the mirror's CA.`)
  if (Object.keys(missing).length > 0) {
    wanted[host] = { ...table, ...missing }
    const lines = renderToml(missing).trimEnd().split('\n')
    text =
      table === undefined
        ? append(text, host, missing)
        : lines.reduceRight((all, line) => addLine(all, host, line), text)
  }
  if (!isDeepStrictEqual(tryToml(text), { ...before, registry: wanted }))
    throw new MirrorError(`${path} is spelled in a way that cannot be changed safely, so it is left alone.`, {
      exit: exitCode.usage,
      hints: [`Give each registry in ${path} a table of its own: [registry."docker.io"]`],
    })
  return { changes: [...files.change(path, text), ...caChange(ca.path, mirror.ca, files)], notes, todo: [] }
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
  const before = readToml(path, text)
  const wanted = withoutMirror(before, host, own)
  if (isDeepStrictEqual(withoutNothing(before), wanted)) return authority
  const sections = tomlSections(withoutOwnHeader(text)).flatMap((section) => stripSection(section, host, own))
  const stripped = joinSections(sections)
  if (stripped.trim() === '') return [...files.change(path, undefined), ...authority]
  const after = tryToml(stripped)
  if (after === undefined || !isDeepStrictEqual(withoutNothing(after), wanted))
    throw new MirrorError(`${path} was changed in a way that mirror's own keys cannot be told apart any more.`, {
      exit: exitCode.usage,
      hints: [`take ${host} out of ${path} by hand`],
    })
  return [...files.change(path, stripped), ...authority]
}

function stripSection(section: TomlSection, host: string, own: TomlTable): TomlSection[] {
  const registry = registryOf(section)
  if (registry === undefined) return [section]
  const isOwn = (statement: string) =>
    Object.entries(own).some(([key, value]) => isDeepStrictEqual(tryToml(statement)?.[key], value))
  const statements = section.statements.flatMap((statement) => {
    if (registry === host && isOwn(statement)) return []
    return isMirrors(statement) ? withoutItem(statement, host) : [statement]
  })
  const isOurs =
    statements.length < section.statements.length && statements.every((one) => statementPath(one) === undefined)
  if (!isOurs) return [{ ...section, statements }]
  // Remarks below our table are of the user, or speak of what comes next.
  return statements.every((one) => one.trim() === '') ? [] : [{ heading: undefined, statements }]
}

/** The list without an item; nothing where it was the only one. */
function withoutItem(statement: string, host: string): string[] {
  const item = JSON.stringify(host)
  const lines = statement.split(/(?<=\n)/)
  // On a line of its own it goes with the line.
  const kept = lines.filter((line) => ![item, `${item},`].includes(line.trim()))
  const rest =
    kept.length < lines.length
      ? kept.join('')
      : statement.replace(`${item}, `, '').replace(`, ${item}`, '').replace(item, '')
  return stringsOf(tryToml(rest)?.['mirrors']).length === 0 && !rest.includes('#') ? [] : [rest]
}

/** Without lists and tables of registries that say nothing. */
function withoutNothing(all: TomlTable): TomlTable {
  return withoutMirror(all, undefined, {})
}

function withoutMirror(all: TomlTable, host: string | undefined, own: TomlTable): TomlTable {
  const { registry, ...others } = all
  const left: TomlTable = {}
  for (const [name, value] of Object.entries(tableOf(registry) ?? {})) {
    const { mirrors, ...rest } = tableOf(value) ?? {}
    const kept = Array.isArray(mirrors) ? mirrors.filter((one) => one !== host) : undefined
    const keys = Object.entries(rest).filter(([key, said]) => name !== host || !isDeepStrictEqual(said, own[key]))
    const table = {
      ...Object.fromEntries(keys),
      ...(kept !== undefined && kept.length > 0 && { mirrors: kept }),
    } as TomlTable
    if (Object.keys(table).length > 0) left[name] = table
  }
  return Object.keys(left).length > 0 ? { ...others, registry: left } : others
}

/** A table of its own, at the end. */
function append(text: string, registry: string, table: TomlTable): string {
  const added = { registry: { [registry]: table } }
  return text === writtenByMirror ? text + renderToml(added) : appendTable(text, added)
}

function addMirror(text: string, registry: string, host: string, mirrors: readonly string[] | undefined): string {
  if (mirrors === undefined) return addLine(text, registry, `mirrors = [ ${JSON.stringify(host)} ]`)
  return inSection(text, registry, (section) => {
    const at = section.statements.findIndex(isMirrors)
    if (at === -1) return section
    const statement = withItem(section.statements[at]!, host, mirrors.length === 0)
    return { ...section, statements: section.statements.with(at, statement) }
  })
}

/** The list with one more item in front, on a line of its own where the others have theirs. */
function withItem(statement: string, host: string, isEmpty: boolean): string {
  const item = JSON.stringify(host)
  const [, start, firstLine = '', rest] = /^([^[]*\[)([ \t]*(?:#[^\n]*)?\r?\n)?([\s\S]*)$/.exec(statement)!
  if (firstLine === '' || isEmpty) {
    const [, space, items] = /^([ \t]*)([\s\S]*)$/.exec(firstLine + rest!)!
    if (isEmpty && items!.startsWith('#')) return `${start}${item}${space === '' ? ' ' : space}${items}`
    return `${start}${space}${item}${isEmpty ? '' : ', '}${items}`
  }
  const indent = /^[ \t]*/.exec(rest!)![0]
  return `${start}${firstLine}${indent}${item},${lineEndIn(statement, firstLine)}${rest}`
}

/** Right after the line that names the table, indented as what follows it. */
function addLine(text: string, registry: string, line: string): string {
  return inSection(text, registry, ({ heading, statements }) => {
    const indent = /^[ \t]*(?=\S)/.exec(statements[0] ?? '')?.[0] ?? ''
    const added = indent + line + lineEndIn(text, heading)
    return { heading: withLineEnd(heading!, text), statements: [added, ...statements] }
  })
}

function inSection(text: string, registry: string, change: (section: TomlSection) => TomlSection): string {
  return joinSections(
    tomlSections(text).map((section) => (registryOf(section) === registry ? change(section) : section)),
  )
}

/** The registry whose table a section is. */
function registryOf(section: TomlSection): string | undefined {
  const path = sectionPath(section)
  return path?.length === 2 && path[0] === 'registry' ? path[1] : undefined
}

function isMirrors(statement: string): boolean {
  return statementPath(statement)?.join() === 'mirrors'
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
