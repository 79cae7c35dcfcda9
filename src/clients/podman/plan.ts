import { exitCode, MirrorError } from '../../lib/errors.ts'
import { hostInNames, registryName } from '../containerd/hosts-toml.ts'
import { readToml, removeFromToml, renderToml, tablesOf, type TomlPath, type TomlTable } from '../edit/toml.ts'
import {
  caChange,
  caFileName,
  isWrittenByMirror,
  ownFileHeader,
  refuseOtherKinds,
  withoutOwnHeader,
} from '../files/kinds.ts'
import type { ConfigPlan, FileChange, FilesNow, MirrorForClient } from '../types.ts'
import {
  chooseName,
  dropInFolderIn,
  governing,
  inReadingOrder,
  isMasked,
  namedInVain,
  olderFormats,
  otherReaders,
  type PodmanFiles,
  type PodmanTarget,
  refuseOldStyle,
  type RegistryTable,
  registryTables,
  trimmed,
  usersOwn,
} from './registries-conf.ts'

export type { PodmanTarget }

/** Ours, the second for where another file's name would come after the first. */
const dropInNames = ['50-mirror.conf', 'zz-mirror.conf']

/** Where certificates are looked for, in a folder for each host. */
export function podmanCertificates({ files, scope }: PodmanTarget): string {
  return `${scope === 'user' ? files.user! : files.system.at(-1)!}/certs.d`
}

/** Our copies of the mirror's CA, one for each name by which it is called. */
function podmanCaFiles(target: PodmanTarget, mirror: Pick<MirrorForClient, 'cache' | 'registry'>): string[] {
  const { cache, registry } = mirror
  // Pulls follow a table to the address in it; pushes stay with the name.
  const hosts = [cache, ...(registry === undefined ? [] : [registry])].map((url) => endpointOf(url).host)
  const names = registry === undefined ? [] : [registryName(registry)]
  return [...new Set([...hosts, ...names])].map((host) => `${podmanCertificates(target)}/${host}/${caFileName}`)
}

/** Where our drop-in may lie. */
function podmanDropIns({ files, scope }: PodmanTarget): string[] {
  const folder = dropInFolderIn(scope === 'user' ? files.user! : files.system.at(-1)!)
  return dropInNames.map((name) => `${folder}/${name}`)
}

/**
 * A drop-in with a table per registry, the mirror first. What other files say about the same registries would be replaced by
 * it, so it is taken over: their mirrors after ours, their other keys as they are. Throws a MirrorError (usage) where it
 * cannot be.
 * https://github.com/containers/image/blob/main/docs/containers-registries.conf.5.md
 */
export function planPodman(mirror: MirrorForClient, target: PodmanTarget, files: FilesNow): ConfigPlan {
  const candidates = podmanDropIns(target)
  for (const path of candidates) refuseForeign(path, files)
  const layout = target.scope === 'user' ? target.files : { ...target.files, user: undefined }
  const others = files.paths.filter((path) => !path.endsWith('.conf') || !isWrittenByMirror(files.text(path)!))
  const read = inReadingOrder(layout, others)
  for (const path of read) {
    refuseOtherKinds(path, files.text(path) ?? '', { kinds: ['registries.conf'], expected: 'a registries.conf' })
    refuseOldStyle(path, layout, files)
  }
  const found = registryTables(read, files)
  const decisions = mirror.registries.map((registry) => mirrorTable(mirror, registry, governing(found, registry)))
  const { tables, notes } = agreeing(decisions)
  if (tables.length === 0)
    throw new MirrorError('Nothing is left that podman could get from the mirror.', {
      exit: exitCode.usage,
      hints: notes,
    })
  const masked = isMasked(layout)
  const path = masked ? maskedName(layout, candidates) : chooseName(candidates, tables, layout, others, files)
  const registry = [...tables, ...localRegistry(mirror, found)]
  const text = ownFileHeader + renderToml({ registry })
  return {
    changes: [
      ...candidates.flatMap((one) =>
        one === path ? files.change(one, text) : files.has(one) ? files.change(one, undefined) : [],
      ),
      ...podmanCaFiles(target, mirror).flatMap((file) => caChange(file, mirror.ca, files)),
    ],
    notes: [
      ...notes,
      ...narrower(mirror, found),
      ...olderFormats(read, layout, files),
      ...namedInVain(layout, path, files),
      ...usersOwn(tables, path, target, others, files),
      ...otherReaders(tables, path, target, others, files),
      ...pushes(mirror),
    ],
    todo: masked && layout.override !== path ? [overrideBy(path, layout)] : [],
  }
}

/** Our file, to be named by a variable. Throws a MirrorError (usage) where that names another file already. */
function maskedName({ named, override }: PodmanFiles, candidates: readonly string[]): string {
  if (override === undefined) return candidates[0]!
  const ours = candidates.find((path) => path === override)
  if (ours !== undefined) return ours
  throw new MirrorError(
    `podman reads nothing but ${named} and ${override}: CONTAINERS_REGISTRIES_CONF and CONTAINERS_REGISTRIES_CONF_OVERRIDE name them.`,
    {
      exit: exitCode.usage,
      hints: ['unset CONTAINERS_REGISTRIES_CONF CONTAINERS_REGISTRIES_CONF_OVERRIDE   (then run the command again)'],
    },
  )
}

function overrideBy(path: string, { named }: PodmanFiles): string {
  return (
    `export CONTAINERS_REGISTRIES_CONF_OVERRIDE=${path}   (podman reads no drop-ins while CONTAINERS_REGISTRIES_CONF names ` +
    `${named}; or unset that)`
  )
}

function refuseForeign(path: string, files: FilesNow): void {
  const text = files.text(path)
  if (text === undefined || isWrittenByMirror(text)) return
  throw new MirrorError(`${path} is there already and was not written by mirror, so it is left alone.`, {
    exit: exitCode.usage,
    hints: [`give ${path} another name that ends in .conf, and try again`],
  })
}

/** What becomes of one registry, and what there is to say about it. */
interface Decision {
  readonly registry: string
  readonly table?: TomlTable
  readonly note?: string
}

/** `found`: what decides about the registry so far. */
function mirrorTable(mirror: MirrorForClient, registry: string, found: RegistryTable | undefined): Decision {
  const { mirror: theirs, 'mirror-by-digest-only': digestsOnly, ...keys } = found?.table ?? {}
  if (found && keys['blocked'] === true)
    return { registry, note: `${registry} is blocked in ${found.where}, and stays so.` }
  const { host, insecure } = endpointOf(mirror.cache)
  const location = trimmed(keys['location']) || registry
  const upstream = location.replace(/^(registry-1|index)\.docker\.io(?=\/|$)/, 'docker.io')
  const asked = upstream.split('/')[0]!
  if (found && asked === host)
    return { registry, note: `${registry} comes through the mirror already, by ${found.where}.` }
  if (found && !mirror.registries.includes(asked))
    return {
      registry,
      note:
        `${registry} is taken from ${location}, says ${found.where}, and stays so. To have that mirrored, name ${asked} ` +
        `under "upstreams" in mirror.yaml.`,
    }
  // Behind its first slash a location has no colon; the mirror knows a port by an underscore, too, if the host has a dot.
  const path = upstream.replace(/^([^/]*\.[^/]*):(\d+)(?=\/|$)/, '$1_$2')
  if (path.includes(':'))
    return { registry, note: `${registry} cannot come through the mirror: podman knows no mirror for such a name.` }
  const ours = { location: `${host}/${path}`, ...insecure }
  const others = tablesOf(theirs).filter((one) => trimmed(one['location']) !== ours.location)
  const become = (what: string) =>
    others.length > 0 && { note: `The mirrors of ${registry} in ${found!.where} are ${what}.` }
  // podman can be kept from the origin only by not being told of it.
  if (!mirror.fallback) return { registry, table: { prefix: registry, ...ours }, ...become('left out') }
  // Said of all mirrors, it would hold for ours as well.
  const kept = digestsOnly === true ? others.map((one) => ({ ...one, 'pull-from-mirror': 'digest-only' })) : others
  const table = { ...keys, prefix: registry, location, mirror: [ours, ...kept] }
  return { registry, table, ...become('kept, after ours') }
}

/** An address as a location, which has no scheme. */
function endpointOf(address: string): { host: string; insecure: TomlTable } {
  return { host: hostInNames(address), insecure: address.startsWith('http:') ? { insecure: true } : {} }
}

/** podman refuses a file in which two tables of one location differ in these keys. */
const mustAgree = ['insecure', 'blocked', 'proxy']

function agreeing(decisions: readonly Decision[]): { tables: TomlTable[]; notes: string[] } {
  const tables: TomlTable[] = []
  const notes: string[] = []
  for (const { registry, table, note } of decisions) {
    const other = table && tables.find(({ location }) => location === table['location'])
    if (other && mustAgree.some((key) => other[key] !== table[key])) {
      notes.push(`${registry} is left out: ${trimmed(other['prefix'])} is taken from it in another way.`)
      continue
    }
    if (table) tables.push(table)
    if (note !== undefined) notes.push(note)
  }
  return { tables, notes }
}

/** Where the registry to push to is, and that it speaks HTTP, if it does. */
function localRegistry({ registry }: MirrorForClient, found: readonly RegistryTable[]): TomlTable[] {
  if (registry === undefined) return []
  const { host, insecure } = endpointOf(registry)
  const name = registryName(registry)
  const saysNothing = name === host && registry.startsWith('https:')
  return saysNothing || governing(found, name) ? [] : [{ prefix: name, location: host, ...insecure }]
}

/** Says which parts of a registry have settings of their own: the longest prefix wins. */
function narrower({ registries }: MirrorForClient, found: readonly RegistryTable[]): string[] {
  return found
    .filter(({ prefix }) => registries.some((registry) => prefix.startsWith(`${registry}/`)))
    .map(({ prefix, where }) => `${prefix} has settings of its own in ${where}, and does not come through the mirror.`)
}

function pushes({ fallback }: MirrorForClient): string[] {
  return fallback
    ? []
    : ['Without a way to the registries themselves, pushes to them fail as well: the mirror takes none.']
}

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
  const isOurs = (table: TomlTable) => hosts.includes(trimmed(table['location']).split('/')[0]!)
  const dropIns = podmanDropIns(target).flatMap((path) => {
    const text = files.text(path)
    return text === undefined ? [] : files.change(path, withoutOurs(path, text, isOurs))
  })
  return [...dropIns, ...podmanCaFiles(target, mirror).flatMap((path) => caChange(path, undefined, files))]
}

/** Returns undefined if nothing is left. */
function withoutOurs(path: string, text: string, isOurs: (table: TomlTable) => boolean): string | undefined {
  let left = withoutOwnHeader(text)
  let toml = readToml(path, text)
  for (let place = findOurTable(toml, isOurs); place !== undefined; place = findOurTable(toml, isOurs)) {
    const after = removeFromToml(left, place)
    if (after === undefined)
      throw new MirrorError(`${path} was changed in a way that mirror's own tables cannot be told apart any more.`, {
        exit: exitCode.usage,
        hints: [`take the tables that point at the mirror out of ${path} by hand`],
      })
    left = after
    toml = readToml(path, left)
  }
  return left.trim() === '' ? undefined : left
}

/** Returns the path of the first table of ours in a registries.conf. */
function findOurTable(toml: TomlTable, isOurs: (table: TomlTable) => boolean): TomlPath | undefined {
  for (const [at, table] of tablesOf(toml['registry']).entries()) {
    const mirrors = tablesOf(table['mirror'])
    const isOnlyForUs = mirrors.length > 0 && mirrors.every(isOurs) && saysNothing(table)
    if (isOurs(table) || isOnlyForUs) return ['registry', at]
    const index = mirrors.findIndex(isOurs)
    if (index !== -1) return ['registry', at, 'mirror', index]
  }
  return undefined
}

/** Whether a table only names its registry. */
function saysNothing(table: TomlTable): boolean {
  const names = Object.keys(table).filter((name) => name !== 'mirror')
  return names.every((name) => name === 'prefix' || name === 'location') && table['prefix'] === table['location']
}
