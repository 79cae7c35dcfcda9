import { exitCode, MirrorError } from '../../lib/errors.ts'
import { toImageHost, getRegistryName } from '../containerd/hosts-toml.ts'
import { readToml, removeFromToml, renderToml, asTables, type TomlPath, type TomlTable } from '../edit/toml.ts'
import {
  planCaFile,
  caFileName,
  isWrittenByMirror,
  ownFileHeader,
  assertFileKind,
  removeMirrorHeader,
} from '../files/kinds.ts'
import type { ConfigPlan, FileChange, FilesSnapshot, MirrorForClient } from '../types.ts'
import {
  chooseName,
  getDropInFolder,
  findGoverningTable,
  sortByReadingOrder,
  ignoresDropIns,
  describeMissingFiles,
  describeOldStyleFiles,
  describeOtherReaders,
  type PodmanLayout,
  type PodmanTarget,
  refuseOldStyle,
  type RegistryTable,
  readRegistryTables,
  withoutEndSlashes,
  describeUserFiles,
} from './registries-conf.ts'

export type { PodmanTarget }

/** Lists the names of the drop-in; the second one is for folders with a file that comes after the first. */
const dropInNames = ['50-mirror.conf', 'zz-mirror.conf']

/** Returns the root of the certificate folders, one for each host. */
export function getCertificatesFolder({ files, scope }: PodmanTarget): string {
  return `${scope === 'user' ? files.user! : files.system.at(-1)!}/certs.d`
}

/** Returns the paths of the copies of the mirror's CA, one for each name that podman calls it by. */
function getCaFiles(target: PodmanTarget, mirror: Pick<MirrorForClient, 'cache' | 'registry'>): string[] {
  const { cache, registry } = mirror
  // Add names: pulls use the address in a table, pushes use the name.
  const hosts = [cache, ...(registry === undefined ? [] : [registry])].map((url) => toEndpoint(url).host)
  const names = registry === undefined ? [] : [getRegistryName(registry)]
  return [...new Set([...hosts, ...names])].map((host) => `${getCertificatesFolder(target)}/${host}/${caFileName}`)
}

/** Returns the possible paths of the drop-in. */
function getOwnDropIns({ files, scope }: PodmanTarget): string[] {
  const folder = getDropInFolder(scope === 'user' ? files.user! : files.system.at(-1)!)
  return dropInNames.map((name) => `${folder}/${name}`)
}

/**
 * Plans a drop-in with a table for each registry, the mirror first. It replaces the tables of other files for the same
 * registries, so it takes over their mirrors, after the mirror, and their other keys. Throws a MirrorError (usage) where that is
 * not possible.
 * https://github.com/containers/image/blob/main/docs/containers-registries.conf.5.md
 */
export function planPodman(mirror: MirrorForClient, target: PodmanTarget, files: FilesSnapshot): ConfigPlan {
  const candidates = getOwnDropIns(target)
  for (const path of candidates) assertOwnFile(path, files)
  const layout = target.scope === 'user' ? target.files : { ...target.files, user: undefined }
  const others = files.paths.filter((path) => !path.endsWith('.conf') || !isWrittenByMirror(files.getText(path)!))
  const read = sortByReadingOrder(layout, others)
  for (const path of read) {
    assertFileKind(path, files.getText(path) ?? '', { kinds: ['registries.conf'], expected: 'a registries.conf' })
    refuseOldStyle(path, layout, files)
  }
  const found = readRegistryTables(read, files)
  const decisions = mirror.registries.map((registry) =>
    decideTable(mirror, registry, findGoverningTable(found, registry)),
  )
  const { tables, notes } = joinDecisions(decisions)
  if (tables.length === 0)
    throw new MirrorError('No registry is left that podman could use the mirror for.', {
      exit: exitCode.usage,
      hints: notes,
    })
  const dropInsIgnored = ignoresDropIns(layout)
  const path = dropInsIgnored
    ? chooseOverrideName(layout, candidates)
    : chooseName(candidates, tables, layout, others, files)
  const registry = [...tables, ...planLocalRegistryTables(mirror, found)]
  const text = ownFileHeader + renderToml({ registry })
  return {
    changes: [
      ...candidates.flatMap((one) =>
        one === path ? files.change(one, text) : files.has(one) ? files.change(one, undefined) : [],
      ),
      ...getCaFiles(target, mirror).flatMap((file) => planCaFile(file, mirror.ca, files)),
    ],
    notes: [
      ...notes,
      ...describeNarrowerTables(mirror, found),
      ...describeOldStyleFiles(read, layout, files),
      ...describeMissingFiles(layout, path, files),
      ...describeUserFiles(tables, path, target, others, files),
      ...describeOtherReaders(tables, path, target, others, files),
      ...describePushes(mirror),
    ],
    todo: dropInsIgnored && layout.override !== path ? [describeOverrideStep(path, layout)] : [],
    leftOut: decisions.flatMap(({ registry, isKept, note }) => (isKept && note ? [{ registry, why: note }] : [])),
  }
}

/** Returns the path for a file that a variable has to name. Throws a MirrorError (usage) if the variable names another file. */
function chooseOverrideName({ named, override }: PodmanLayout, candidates: readonly string[]): string {
  if (override === undefined) return candidates[0]!
  const found = candidates.find((path) => path === override)
  if (found !== undefined) return found
  throw new MirrorError(
    `podman reads only ${named} and ${override}: CONTAINERS_REGISTRIES_CONF and CONTAINERS_REGISTRIES_CONF_OVERRIDE name them.`,
    {
      exit: exitCode.usage,
      hints: ['unset CONTAINERS_REGISTRIES_CONF CONTAINERS_REGISTRIES_CONF_OVERRIDE   (then run the command again)'],
    },
  )
}

function describeOverrideStep(path: string, { named }: PodmanLayout): string {
  return (
    `export CONTAINERS_REGISTRIES_CONF_OVERRIDE=${path}   (podman reads no drop-ins while CONTAINERS_REGISTRIES_CONF names ` +
    `${named}; or unset that)`
  )
}

/** Throws a MirrorError (usage) for a file that mirror did not write. */
function assertOwnFile(path: string, files: FilesSnapshot): void {
  const text = files.getText(path)
  if (text === undefined || isWrittenByMirror(text)) return
  throw new MirrorError(`${path} already exists and was not written by mirror, so it is left alone.`, {
    exit: exitCode.usage,
    hints: [`rename ${path} to another name that ends in .conf, then run the command again`],
  })
}

/** Holds the new table of one registry, if any, and a note for the user. */
interface Decision {
  readonly registry: string
  readonly table?: TomlTable
  readonly note?: string
  /** Is true when a file of the user keeps podman from the mirror. */
  readonly isKept?: true
}

/** Decides about one registry. `found`: the table that governs it so far. */
function decideTable(mirror: MirrorForClient, registry: string, found: RegistryTable | undefined): Decision {
  const { mirror: existing, 'mirror-by-digest-only': digestsOnly, ...keys } = found?.table ?? {}
  if (found && keys['blocked'] === true)
    return { registry, isKept: true, note: `${registry} is blocked in ${found.where}, and stays so.` }
  const { host, insecure } = toEndpoint(mirror.cache)
  const location = withoutEndSlashes(keys['location']) || registry
  const upstream = location.replace(/^(registry-1|index)\.docker\.io(?=\/|$)/, 'docker.io')
  const upstreamHost = upstream.split('/')[0]!
  if (found && upstreamHost === host)
    return { registry, note: `Pulls from ${registry} already use the mirror, by ${found.where}.` }
  if (found && !mirror.registries.includes(upstreamHost))
    return {
      registry,
      isKept: true,
      note:
        `${registry} is taken from ${location}, says ${found.where}, and stays so. To mirror that, add ${upstreamHost} ` +
        `to "upstreams" in mirror.yaml.`,
    }
  // Write the port with an underscore: a location has no colon behind its first slash. The mirror reads it if the host has a dot.
  const path = upstream.replace(/^([^/]*\.[^/]*):(\d+)(?=\/|$)/, '$1_$2')
  if (path.includes(':'))
    return {
      registry,
      note: `Pulls from ${registry} cannot use the mirror: podman supports no mirror for such a name.`,
    }
  const own = { location: `${host}/${path}`, ...insecure }
  const others = asTables(existing).filter((one) => withoutEndSlashes(one['location']) !== own.location)
  const describeOthers = (what: string) =>
    others.length > 0 && { note: `The mirrors of ${registry} in ${found!.where} are ${what}.` }
  // Leave out the registry's own address: podman has no other way to keep from it.
  if (!mirror.fallback) return { registry, table: { prefix: registry, ...own }, ...describeOthers('left out') }
  // Move the key to the other mirrors: at the registry it would apply to mirror, too.
  const kept = digestsOnly === true ? others.map((one) => ({ ...one, 'pull-from-mirror': 'digest-only' })) : others
  const table = { ...keys, prefix: registry, location, mirror: [own, ...kept] }
  return { registry, table, ...describeOthers('kept, after ours') }
}

/** Returns a URL as a location, which has no scheme. */
function toEndpoint(address: string): { host: string; insecure: TomlTable } {
  return { host: toImageHost(address), insecure: address.startsWith('http:') ? { insecure: true } : {} }
}

/** Lists the keys in which tables of one location must agree: else podman refuses the file. */
const agreeingKeys = ['insecure', 'blocked', 'proxy']

function joinDecisions(decisions: readonly Decision[]): { tables: TomlTable[]; notes: string[] } {
  const tables: TomlTable[] = []
  const notes: string[] = []
  for (const { registry, table, note } of decisions) {
    const other = table && tables.find(({ location }) => location === table['location'])
    if (other && agreeingKeys.some((key) => other[key] !== table[key])) {
      notes.push(
        `${registry} is left out: ${withoutEndSlashes(other['prefix'])} has the same location with other settings.`,
      )
      continue
    }
    if (table) tables.push(table)
    if (note !== undefined) notes.push(note)
  }
  return { tables, notes }
}

/** Returns the table of the registry for pushed images, if podman needs one. */
function planLocalRegistryTables({ registry }: MirrorForClient, found: readonly RegistryTable[]): TomlTable[] {
  if (registry === undefined) return []
  const { host, insecure } = toEndpoint(registry)
  const name = getRegistryName(registry)
  const isObvious = name === host && registry.startsWith('https:')
  return isObvious || findGoverningTable(found, name) ? [] : [{ prefix: name, location: host, ...insecure }]
}

/** Returns a sentence for each part of a registry that has a table of its own: the longest prefix wins. */
function describeNarrowerTables({ registries }: MirrorForClient, found: readonly RegistryTable[]): string[] {
  return found
    .filter(({ prefix }) => registries.some((registry) => prefix.startsWith(`${registry}/`)))
    .map(({ prefix, where }) => `${prefix} has settings of its own in ${where}, so its pulls bypass the mirror.`)
}

function describePushes({ fallback }: MirrorForClient): string[] {
  return fallback ? [] : ['With --no-fallback pushes to these registries fail, too: the mirror accepts none.']
}

/** Holds the URLs that were written. */
interface WrittenMirror {
  readonly cache: string
  readonly registry: string | undefined
}

/**
 * Plans the removal of mirror's tables from a drop-in that the user changed. Keeps all else to the byte. Throws a MirrorError
 * (usage) for one in which the tables have no headings.
 */
export function stripPodman(mirror: WrittenMirror, target: PodmanTarget, files: FilesSnapshot): FileChange[] {
  const hosts = [mirror.cache, mirror.registry].filter((url) => url !== undefined).map((url) => new URL(url).host)
  const isMirror = (table: TomlTable) => hosts.includes(withoutEndSlashes(table['location']).split('/')[0]!)
  const dropIns = getOwnDropIns(target).flatMap((path) => {
    const text = files.getText(path)
    return text === undefined ? [] : files.change(path, removeMirrorTables(path, text, isMirror))
  })
  return [...dropIns, ...getCaFiles(target, mirror).flatMap((path) => planCaFile(path, undefined, files))]
}

/** Returns undefined if nothing is left. */
function removeMirrorTables(path: string, text: string, isMirror: (table: TomlTable) => boolean): string | undefined {
  let remaining = removeMirrorHeader(text)
  let toml = readToml(path, text)
  for (
    let tablePath = findMirrorTable(toml, isMirror);
    tablePath !== undefined;
    tablePath = findMirrorTable(toml, isMirror)
  ) {
    const after = removeFromToml(remaining, tablePath)
    if (after === undefined)
      throw new MirrorError(`${path} was changed, and mirror's own tables can no longer be identified.`, {
        exit: exitCode.usage,
        hints: [`remove the tables that point at the mirror from ${path} by hand`],
      })
    remaining = after
    toml = readToml(path, remaining)
  }
  return remaining.trim() === '' ? undefined : remaining
}

/** Returns the path of the first table in a registries.conf that names the mirror, or only a registry for it. */
function findMirrorTable(toml: TomlTable, isMirror: (table: TomlTable) => boolean): TomlPath | undefined {
  for (const [at, table] of asTables(toml['registry']).entries()) {
    const mirrors = asTables(table['mirror'])
    const isOnlyForMirror = mirrors.length > 0 && mirrors.every(isMirror) && onlyNamesRegistry(table)
    if (isMirror(table) || isOnlyForMirror) return ['registry', at]
    const index = mirrors.findIndex(isMirror)
    if (index !== -1) return ['registry', at, 'mirror', index]
  }
  return undefined
}

/** Returns whether a table only names its registry. */
function onlyNamesRegistry(table: TomlTable): boolean {
  const names = Object.keys(table).filter((name) => name !== 'mirror')
  return names.every((name) => name === 'prefix' || name === 'location') && table['prefix'] === table['location']
}
