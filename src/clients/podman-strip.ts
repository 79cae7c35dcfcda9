import { isDeepStrictEqual } from 'node:util'
import { MirrorError, exitCode } from '../lib/errors.ts'
import { caChange } from './ca-file.ts'
import type { FileChange } from './client-config.ts'
import { joinSections, tomlSections } from './edit/toml.ts'
import type { FilesNow } from './files-now.ts'
import { podmanCaFiles, podmanDropIns, type PodmanTarget } from './podman/plan.ts'
import { trimmed } from './podman-tables.ts'
import { readToml, tablesOf, type TomlTable } from './read-toml.ts'
import { withoutOwnHeader } from './written-by-mirror.ts'

/** What was written then. */
interface WrittenMirror {
  readonly cache: string
  readonly registry: string | undefined
}

/**
 * Takes our tables out of a drop-in that the user has changed since; the rest stays byte for byte. Throws a MirrorError
 * (usage) for one that cannot be taken apart by its lines.
 */
export function stripPodman(mirror: WrittenMirror, target: PodmanTarget, files: FilesNow): FileChange[] {
  const hosts = [mirror.cache, mirror.registry].filter((url) => url !== undefined).map((url) => new URL(url).host)
  const isOurs = (table: TomlTable | undefined) => hosts.includes(trimmed(table?.['location']).split('/')[0]!)
  const dropIns = podmanDropIns(target).flatMap((path) => {
    const text = files.text(path)
    return text === undefined ? [] : files.change(path, withoutOurs(path, text, isOurs))
  })
  return [...dropIns, ...podmanCaFiles(target, mirror).flatMap((path) => caChange(path, undefined, files))]
}

function withoutOurs(
  path: string,
  text: string,
  isOurs: (table: TomlTable | undefined) => boolean,
): string | undefined {
  const [preamble, ...sections] = tomlSections(text).map((section) => joinSections([section]))
  const kept: string[] = []
  for (const registry of groups(sections)) {
    const [head, ...mirrors] = registry
    const table = isRegistry(head!) ? tablesOf(readToml(path, head!)['registry'])[0] : undefined
    const theirs = mirrors.map((section) => !isOurs(table) && !isOurs(mirrorOf(path, section)))
    // A table that only named the registry had no other purpose than our mirror.
    const empty = table && mirrors.length > 0 && !theirs.includes(true) && saysNothing(table)
    kept.push(isOurs(table) || empty ? remarkBelow(head!) : head!)
    kept.push(...mirrors.map((section, at) => (theirs[at] ? section : remarkBelow(section))))
  }
  const after = withoutOwnHeader(preamble!) + kept.join('')
  if (!isDeepStrictEqual(readToml(path, after), expected(readToml(path, text), isOurs))) {
    throw new MirrorError(`${path} was changed in a way that mirror's own tables cannot be told apart any more.`, {
      exit: exitCode.usage,
      hints: [`take the tables that point at the mirror out of ${path} by hand`],
    })
  }
  return after.trim() === '' ? undefined : after
}

/** Each `[[registry]]` with its mirrors, and every other section by itself. */
function groups(sections: readonly string[]): string[][] {
  const found: string[][] = []
  for (const section of sections) {
    if (/^\s*\[\[?\s*registry\s*\.\s*mirror\b/.test(section) && found.length > 0) found.at(-1)!.push(section)
    else found.push([section])
  }
  return found
}

function isRegistry(section: string): boolean {
  return /^\s*\[\[\s*registry\s*\]\]/.test(section)
}

function mirrorOf(path: string, section: string): TomlTable | undefined {
  const [registry] = tablesOf(readToml(path, `[[registry]]\n${section}`)['registry'])
  return tablesOf(registry?.['mirror'])[0]
}

/** The comment at a section's end, which speaks of what comes next. */
function remarkBelow(section: string): string {
  const remark = /(?:^[ \t]*(?:#.*)?(?:\r?\n|$))+$/m.exec(section)?.[0] ?? ''
  return remark.trim() === '' ? '' : remark
}

function saysNothing(table: TomlTable): boolean {
  const names = Object.keys(table).filter((name) => name !== 'mirror')
  return names.every((name) => name === 'prefix' || name === 'location') && table['prefix'] === table['location']
}

/** What shall be left, by meaning. */
function expected(toml: TomlTable, isOurs: (table: TomlTable | undefined) => boolean): TomlTable {
  const left = tablesOf(toml['registry']).flatMap((table) => {
    const mirrors = tablesOf(table['mirror'])
    const theirs = mirrors.filter((one) => !isOurs(one))
    if (isOurs(table) || (mirrors.length > 0 && theirs.length === 0 && saysNothing(table))) return []
    const { mirror: _, ...keys } = table
    return [theirs.length === 0 ? keys : { ...keys, mirror: theirs }]
  })
  const { registry: _, ...rest } = toml
  return left.length === 0 ? rest : { ...rest, registry: left }
}
